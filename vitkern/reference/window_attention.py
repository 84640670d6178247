"""Window attention by the book: roll, pad, partition, softmax, reverse. The definition that the kernels and the fast
path must meet."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vitkern.reference.rounding import rounded

# log(1 / 0.01): the temperature of cosine attention does not fall below 0.01 (Swin V2, arXiv 2111.09883, section 3.3).
MAX_LOGIT_SCALE = math.log(100.0)


def relative_position_index(window: tuple[int, int]) -> Tensor:
    """Row of the bias table for each pair of tokens of a window: (N, N) int64, query first (Swin, arXiv 2103.14030,
    equation 4)."""
    window_h, window_w = window
    y = torch.arange(window_h).repeat_interleave(window_w)
    x = torch.arange(window_w).repeat(window_h)
    return (y[:, None] - y[None, :] + window_h - 1) * (2 * window_w - 1) + (x[:, None] - x[None, :] + window_w - 1)


def regions(padded: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Region of each token of a shifted, padded image: (padded_h, padded_w) int64. Tokens of different regions were no
    neighbours."""
    axes = []
    for size, extent, offset in zip(padded, window, shift, strict=True):
        position = torch.arange(size)
        axes.append(
            (position >= size - extent).long() + (position >= size - offset).long()
            if offset
            else torch.zeros_like(position)
        )
    return axes[0][:, None] * 3 + axes[1][None, :]


def _partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, padded_h, padded_w, C) -> (B, windows, N, C)."""
    batch, height, width, channels = x.shape
    rows, cols = height // window[0], width // window[1]
    x = x.reshape(batch, rows, window[0], cols, window[1], channels)
    return x.transpose(2, 3).reshape(batch, rows * cols, window[0] * window[1], channels)


def _reverse(x: Tensor, window: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """(B, windows, N, C) -> (B, padded_h, padded_w, C)."""
    x = x.reshape(x.shape[0], padded[0] // window[0], padded[1] // window[1], *window, x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], *padded, x.shape[-1])


def _pad(x: Tensor, padded: tuple[int, int], value: Tensor) -> Tensor:
    batch, height, width, channels = x.shape
    x = torch.cat([x, value.expand(batch, height, padded[1] - width, channels)], 2)
    return torch.cat([x, value.expand(batch, padded[0] - height, padded[1], channels)], 1)


def window_attention(
    qkv: Tensor,
    *,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    table: Tensor | None = None,
    padding: Tensor | None = None,
    wrap: str = "image",
    mask_value: float | None = -100.0,
    scale: float | None = None,
    logit_scale: Tensor | None = None,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """The formula of `vitkern.ops.window_attention.window_attention`, whose arguments these are.

    Computed and returned in float64 where ``qkv`` is float64, else in float32. ``low_precision`` gives what a perfect
    kernel of that dtype
    would: operands of matrix products rounded to it, everything else kept, one final rounding.
    """
    dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    _, img_h, img_w, packed = qkv.shape
    channels = packed // 3
    head_dim = channels // num_heads
    padded = tuple(-(-size // extent) * extent for size, extent in zip((img_h, img_w), window, strict=True))
    value = qkv.new_zeros(packed, dtype=dtype) if padding is None else padding.to(dtype)
    offset = (-shift[0], -shift[1])

    x = qkv.to(dtype)
    if wrap == "image":
        x = _pad(x.roll(offset, (1, 2)), padded, value)
    else:
        x = _pad(x, padded, value).roll(offset, (1, 2))
    windows = _partition(x, window).unflatten(-1, (3, num_heads, head_dim))  # (B, windows, N, 3, H, D)
    q, k, v = windows.permute(3, 0, 1, 4, 2, 5)  # (B, windows, H, N, D)

    if logit_scale is None:
        factor = head_dim**-0.5 if scale is None else scale
    else:
        q, k = (t / t.norm(dim=-1, keepdim=True).clamp_min(1e-12) for t in (q, k))
        factor = logit_scale.to(dtype).reshape(num_heads, 1, 1).clamp(max=MAX_LOGIT_SCALE).exp()
    scores = rounded(q, low_precision) @ rounded(k, low_precision).transpose(-1, -2) * factor
    if table is not None:
        scores = scores + table.to(dtype)[relative_position_index(window).to(table.device)].permute(2, 0, 1)
    region = _partition(regions(padded, window, shift).to(qkv.device)[None, ..., None], window)[
        0, ..., 0
    ]  # (windows, N)
    crossing = region[:, :, None] != region[:, None, :]
    added = torch.zeros_like(crossing, dtype=dtype).masked_fill(
        crossing, -math.inf if mask_value is None else mask_value
    )
    scores = scores + added[:, None]

    p = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    out = rounded(p, low_precision) @ rounded(v, low_precision) / p.sum(-1, keepdim=True)
    out = _reverse(out.transpose(2, 3).flatten(-2), window, padded)
    if wrap == "image":
        out = out[:, :img_h, :img_w].roll(shift, (1, 2))
    else:
        out = out.roll(shift, (1, 2))[:, :img_h, :img_w]
    return rounded(out, low_precision)


def projected_window_attention(
    x: Tensor, project: Callable[[Tensor], Tensor], *, low_precision: torch.dtype | None = None, **arguments
) -> Tensor:
    """The formula of `vitkern.ops.window_attention.projected_window_attention`: padded tokens are zeros before
    ``project``."""
    padding = project(x.new_zeros(x.shape[-1]))
    return window_attention(project(x), padding=padding, low_precision=low_precision, **arguments)
