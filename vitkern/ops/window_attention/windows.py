"""Where the tokens of shifted windows lie in an image: the index arithmetic of window attention's PyTorch path, cached.

Windows come in classes: only those of the last row or column hold tokens of several regions, and all windows of a class
share one mask. Sorted by class, four masks at most serve any number of windows, and none is expanded.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitkern.dispatch import is_eager, is_transformed


class Windows(NamedTuple):
    """The windows of ``B`` images of ``img_h`` x ``img_w`` tokens, sorted by class.

    gather: (windows * N,) the flat image token of each window token; 0 for padding.
    scatter: (B * img_h * img_w,) the flat window token of each image token.
    outside: (windows * N, 1) bool, true where a window token is padding; None where none is.
    counts: windows of each class.
    crossing: (classes, N, N) bool, true between tokens of different regions; None where there is one class without
        regions.
    """

    gather: Tensor
    scatter: Tensor
    outside: Tensor | None
    counts: tuple[int, ...]
    crossing: Tensor | None


def padded_size(size: int, extent: int) -> int:
    """``size`` rounded up to whole windows. Of positive numbers alone: ONNX rounds quotients towards zero."""
    return (size + extent - 1) // extent * extent


def _axis(size: int, extent: int, shift: int, wrap: str, device: torch.device) -> Tensor:
    """Image coordinate of each coordinate of the shifted, padded axis: (padded,), -1 for padding."""
    padded = padded_size(size, extent)
    position = torch.arange(padded, device=device)
    if wrap == "image":
        return torch.where(position < size, (position + shift) % size, -1)
    source = (position + shift) % padded
    return torch.where(source < size, source, -1)


def _parts(count: int, shift: int) -> list[tuple[slice, bool]]:
    """Slices of an axis of ``count`` windows, and whether tokens of two regions meet in them."""
    if not shift:
        return [(slice(0, count), False)]
    return [(slice(0, count - 1), False)] * (count > 1) + [(slice(count - 1, count), True)]


def _build(
    batch: int,
    img_h: int,
    img_w: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    wrap: str,
    device: torch.device,
) -> Windows:
    (window_h, window_w), (shift_h, shift_w) = window, shift
    y = _axis(img_h, window_h, shift_h, wrap, device)
    x = _axis(img_w, window_w, shift_w, wrap, device)
    rows, cols = y.shape[0] // window_h, x.shape[0] // window_w
    image = torch.arange(batch, device=device) * (img_h * img_w)
    flat = image[:, None, None] + y[:, None] * img_w + x
    flat = torch.where((y[:, None] < 0) | (x < 0), -1, flat)
    flat = flat.reshape(batch, rows, window_h, cols, window_w).transpose(2, 3)  # (B, rows, cols, window_h, window_w)

    y_in_window, x_in_window = torch.arange(window_h, device=device), torch.arange(window_w, device=device)
    pieces, counts, crossing = [], [], []
    for row_slice, row_meets in _parts(rows, shift_h):
        for col_slice, col_meets in _parts(cols, shift_w):
            piece = flat[:, row_slice, col_slice]
            pieces.append(piece.reshape(-1))
            counts.append(batch * piece.shape[1] * piece.shape[2])
            late_y = y_in_window[:, None] >= window_h - shift_h * row_meets
            late_x = x_in_window >= window_w - shift_w * col_meets
            region = (late_y * 2 + late_x).reshape(-1)
            crossing.append(region[:, None] != region[None, :])
    gather = torch.cat(pieces)

    tokens = batch * img_h * img_w
    scatter = torch.empty(tokens + 1, dtype=torch.long, device=device)
    scatter[gather] = torch.arange(gather.shape[0], device=device)  # padding, -1, lands in the last place
    outside = None
    if y.shape[0] > img_h or x.shape[0] > img_w:
        outside = gather[:, None] < 0
        gather = gather.clamp_min(0)
    return Windows(
        gather, scatter[:tokens], outside, tuple(counts), torch.stack(crossing) if shift_h or shift_w else None
    )


@functools.lru_cache(maxsize=64)
def _cached(*key: Any) -> Windows:
    with torch.inference_mode(False):  # an index made in inference mode could not be saved for a backward
        return _build(*key)


def _relative_index(window: tuple[int, int], device: torch.device) -> Tensor:
    window_h, window_w = window
    y = torch.arange(window_h, device=device).repeat_interleave(window_w)
    x = torch.arange(window_w, device=device).repeat(window_h)
    index = (y[:, None] - y + window_h - 1) * (2 * window_w - 1) + (x[:, None] - x + window_w - 1)
    return index.reshape(-1)


@functools.lru_cache(maxsize=64)
def _cached_relative_index(*key: Any) -> Tensor:
    with torch.inference_mode(False):
        return _relative_index(*key)


def windows_of(
    batch: int,
    img_h: int,
    img_w: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    wrap: str,
    device: torch.device,
) -> Windows:
    """The `Windows` of a batch; ``wrap`` "image" or "padded" as in window_attention."""
    build = _cached if is_eager() else _build
    return build(batch, img_h, img_w, window, shift, wrap, device)


def relative_index(window: tuple[int, int], device: torch.device) -> Tensor:
    """(N * N,) row of the bias table for each pair of window tokens, query first."""
    return (_cached_relative_index if is_eager() else _relative_index)(window, device)


class _Gather(torch.autograd.Function):
    """Rows of an image in window order. Its gradient is a gather as well, by the inverse index, where autograd's would
    be an addition."""

    @staticmethod
    def forward(
        rows: Tensor, padding: Tensor | None, gather: Tensor, scatter: Tensor, outside: Tensor | None
    ) -> Tensor:
        out = rows.index_select(0, gather)
        if outside is None:
            return out
        return out.masked_fill(outside, 0.0) if padding is None else torch.where(outside, padding, out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, padding, _, scatter, outside = inputs
        ctx.save_for_backward(scatter, outside)
        ctx.has_padding = padding is not None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scatter, outside = ctx.saved_tensors
        d_rows = grad.index_select(0, scatter) if ctx.needs_input_grad[0] else None
        d_padding = None
        if ctx.has_padding and ctx.needs_input_grad[1]:
            d_padding = grad.new_zeros(grad.shape[1]) if outside is None else torch.where(outside, grad, 0.0).sum(0)
        return d_rows, d_padding, None, None, None


class _Scatter(torch.autograd.Function):
    """The inverse of `_Gather`: padded tokens are dropped."""

    @staticmethod
    def forward(rows: Tensor, gather: Tensor, scatter: Tensor, outside: Tensor | None) -> Tensor:
        return rows.index_select(0, scatter)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, gather, _, outside = inputs
        ctx.save_for_backward(gather, outside)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gather, outside = ctx.saved_tensors
        d_rows = grad.index_select(0, gather)
        return d_rows if outside is None else d_rows.masked_fill(outside, 0.0), None, None, None


def _function(kind: type[torch.autograd.Function]) -> Callable[..., Tensor]:
    """With its own gradient, or with autograd's where derivatives are transformed, as a ``jvp`` of its own is something
    that torch.compile does not take, and where torch.jit.trace would record a call of Python."""
    plain = not torch.compiler.is_compiling() and (is_transformed() or torch.jit.is_tracing())
    return kind.forward if plain else kind.apply


def gather_windows(rows: Tensor, windows: Windows, padding: Tensor | None = None) -> Tensor:
    """Image tokens (B * img_h * img_w, C) -> window tokens (windows * N, C); ``padding`` (C,), zeros by default, where
    there is no token."""
    return _function(_Gather)(rows, padding, windows.gather, windows.scatter, windows.outside)


def scatter_windows(rows: Tensor, windows: Windows) -> Tensor:
    """Window tokens (windows * N, C) -> image tokens (B * img_h * img_w, C)."""
    return _function(_Scatter)(rows, windows.gather, windows.scatter, windows.outside)
