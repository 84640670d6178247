"""Softmax attention of tokens that lie in window order: the arithmetic of window attention's PyTorch path.

Two ways to one result. `attend` is plain SDPA, one call per class of windows: it traces, and serves other devices. On a
CPU the windows go through `steps`; without gradients so do the gather and the projection, and no intermediate leaves
the cache.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.dispatch import autocast, is_eager, no_autocast
from vitkern.ops.projection import calls_freely, check_projection
from vitkern.ops.sdpa import differentiable_sdpa
from vitkern.ops.window_attention.steps import EPS, AttendInSteps, Scores, attend_step, steps_of, wide
from vitkern.ops.window_attention.windows import (
    Windows,
    gather_windows,
    relative_index,
    scatter_windows,
    windows_of,
)

Project = Callable[[Tensor], Tensor]  # (..., C_in) -> (..., 3 * C)


def _masks(windows: Windows, scores: Scores, dtype: torch.dtype) -> list[Tensor | None]:
    """What is added to the scores of each class, never in half precision.

    (1, H, N, N); (1, 1, N, N) without a table; None for nothing.
    """
    dtype = wide(dtype)
    bias = None
    if scores.table is not None:
        index = relative_index(scores.window, scores.table.device)
        bias = scores.table.to(dtype).index_select(0, index).t().reshape(1, scores.num_heads, scores.size, scores.size)
    if windows.crossing is None:
        return [bias]
    value = -math.inf if scores.mask_value is None else scores.mask_value
    added = torch.zeros_like(windows.crossing, dtype=dtype).masked_fill(windows.crossing, value)[:, None, None]
    return list(added if bias is None else bias + added)


def attend(rows: Tensor, windows: Windows, scores: Scores) -> Tensor:
    """(windows * N, 3 * C) -> (windows * N, C), by one SDPA call per class of windows."""
    heads, scale = scores.num_heads, scores.scale
    packed = rows.unflatten(-1, (3, heads, -1)).unflatten(0, (-1, scores.size))
    q, k, v = packed.permute(2, 0, 3, 1, 4)  # (windows, H, N, D)
    if scores.head_scale is not None:
        # 1e-12 is 0 in half precision, and 100 times its rounding is no small error
        q, k, v = (t.to(wide(t.dtype)) for t in (q, k, v))
        q = F.normalize(q, dim=-1, eps=EPS) * scores.head_scale.view(-1, 1, 1)
        k = F.normalize(k, dim=-1, eps=EPS)
        scale = 1.0
    masks = _masks(windows, scores, rows.dtype)
    classes = zip(*(t.split(windows.counts) for t in (q, k, v)), masks, strict=True)
    with no_autocast(rows), differentiable_sdpa(rows):
        parts = [
            F.scaled_dot_product_attention(q, k, v, mask, scores.dropout_p, scale=scale).transpose(1, 2)
            for q, k, v, mask in classes
        ]
    # in a graph the copy stays: who runs it may lay out SDPA's result otherwise than here
    whole = parts[0] if len(parts) == 1 and not torch.compiler.is_compiling() else torch.cat(parts)
    return whole.reshape(rows.shape[0], rows.shape[1] // 3).to(rows.dtype)


def _projected(project: Project | None, tokens: Tensor, heads: int) -> Tensor:
    """``project`` of (tokens, C_in), or the tokens where it is None: (tokens, 3 * C)."""
    if project is None:
        return tokens
    op = "projected_window_attention"
    rows = project(tokens)
    check_projection(op, tokens, rows, heads)
    return autocast(rows)[0]


def window_softmax(
    tokens: Tensor, project: Project | None, padding: Tensor | None, windows: Windows, scores: Scores
) -> Tensor:
    """Image tokens (B * img_h * img_w, C_in) -> attention (B * img_h * img_w, C).

    ``project`` makes them (tokens, 3 * C); None: they are already.
    """
    in_steps = tokens.device.type == "cpu" and is_eager() and scores.dropout_p == 0.0
    if in_steps and tokens.shape[0] > 0 and not torch.is_grad_enabled() and calls_freely(project):
        return _inference(tokens, project, padding, windows, scores)
    rows = _projected(project, gather_windows(tokens, windows, padding), scores.num_heads)
    if in_steps:
        masks = [mask[0] for mask in _masks(windows, scores, rows.dtype) if mask is not None]
        kept = scores._replace(table=None, head_scale=None)
        out = AttendInSteps.apply(rows, torch.stack(masks) if masks else None, scores.head_scale, kept, windows.counts)
    else:
        out = attend(rows, windows, scores)
    return scatter_windows(out, windows)


def image_softmax(
    image: Tensor,
    project: Project | None,
    padding: Tensor | None,
    shift: tuple[int, int],
    wrap: str,
    scores: Scores,
) -> Tensor:
    """`window_softmax` of the shifted windows of an image (B, img_h, img_w, C_in) -> (B, img_h, img_w, C)."""
    batch, img_h, img_w = image.shape[:3]
    windows = windows_of(batch, img_h, img_w, scores.window, shift, wrap, image.device)
    out = window_softmax(image.flatten(0, 2), project, padding, windows, scores)
    return out.view(batch, img_h, img_w, out.shape[-1])


def windows_in_pytorch(
    qkv: Tensor,
    table: Tensor | None,
    padding: Tensor | None,
    head_scale: Tensor | None,
    num_heads: int,
    window: Sequence[int],
    shift: Sequence[int],
    wrap: Sequence[int],
    scale: float,
    mask_value: float,
) -> Tensor:
    """The first output of `vitkern.kernels.window_attention.window_attention_forward`, whose arguments these are."""
    order = "image" if tuple(wrap) == tuple(qkv.shape[1:3]) else "padded"
    scores = Scores(num_heads, (window[0], window[1]), table, mask_value, scale, head_scale)
    return image_softmax(qkv, None, padding, (shift[0], shift[1]), order, scores)


def _inference(
    tokens: Tensor, project: Project | None, padding: Tensor | None, windows: Windows, scores: Scores
) -> Tensor:
    """Gather, projection and attention of a few windows at a time."""
    masks: list[Tensor | None] = []
    out = tokens.new_empty(0)
    for number, part in steps_of(windows.counts, scores.size):
        rows = tokens.index_select(0, windows.gather[part])
        if windows.outside is not None:
            outside = windows.outside[part]
            rows = rows.masked_fill_(outside, 0.0) if padding is None else torch.where(outside, padding, rows)
        rows = _projected(project, rows, scores.num_heads)
        if not masks:  # the first rows show dtype and channels
            masks = _masks(windows, scores, rows.dtype)
            out = rows.new_empty(windows.gather.shape[0], rows.shape[1] // 3)
        with torch.autocast("cpu", enabled=False):
            attend_step(rows, masks[number], scores, out[part])
    return out.index_select(0, windows.scatter)
