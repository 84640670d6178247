"""Softmax attention of tokens that lie in window order: the arithmetic of window attention's PyTorch path.

Two ways to one result. `attend` is plain SDPA, one call per class of windows: it traces, and serves other devices. On a CPU a few windows at a
time go through explicit batched products instead, whose scores never leave the cache: SDPA's CPU kernel is slow on groups as small as a
window, and refuses a bias that needs a gradient. Half precision is computed in float32 there.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitkern.dispatch import autocast
from vitkern.ops.checks import check_tensor
from vitkern.ops.windows import Windows, gather_windows, is_eager, relative_index, scatter_windows

_CHUNK_TOKENS = 2048  # window tokens that a CPU projects at a time
_CHUNK_SCORES = 1 << 18  # scores that it holds at a time
_LARGE = 100  # tokens per window from which SDPA's CPU kernel is the faster one
_EPS = 1e-12  # smallest norm that a cosine divides by


class Scores(NamedTuple):
    """How scores are made: H heads, (window_h, window_w), the bias table and what is added between regions, the factor of q . k.

    ``head_scale`` (H,) makes them cosines times that factor, and ``scale`` is ignored. ``dropout_p`` drops weights of the softmax.
    """

    num_heads: int
    window: tuple[int, int]
    table: Tensor | None
    mask_value: float | None
    scale: float | None
    head_scale: Tensor | None
    dropout_p: float = 0.0

    @property
    def size(self) -> int:
        return self.window[0] * self.window[1]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _masks(windows: Windows, scores: Scores, dtype: torch.dtype) -> list[Tensor | None]:
    """What is added to the scores of each class: (1, H, N, N); (1, 1, N, N) without a table; None for nothing. Never in half precision."""
    dtype = _wide(dtype)
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
    q, k, v = (
        rows.unflatten(-1, (3, heads, -1)).unflatten(0, (-1, scores.size)).permute(2, 0, 3, 1, 4)
    )  # (windows, H, N, D)
    if scores.head_scale is not None:
        q, k, v = (
            t.to(_wide(t.dtype)) for t in (q, k, v)
        )  # 1e-12 is 0 in half precision, and 100 times its rounding is no small error
        q = F.normalize(q, dim=-1, eps=_EPS) * scores.head_scale.view(-1, 1, 1)
        k = F.normalize(k, dim=-1, eps=_EPS)
        scale = 1.0
    masks = _masks(windows, scores, rows.dtype)
    classes = zip(*(t.split(windows.counts) for t in (q, k, v)), masks, strict=True)
    transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
    # under torch.func SDPA does not see that the mask has a gradient, and picks a kernel that has none
    backend = sdpa_kernel(SDPBackend.MATH) if transformed else nullcontext()
    with torch.autocast("cpu" if rows.is_meta else rows.device.type, enabled=False), backend:
        parts = [
            F.scaled_dot_product_attention(*qkv, mask, scores.dropout_p, scale=scale).transpose(1, 2)
            for *qkv, mask in classes
        ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(rows.shape[0], -1).to(rows.dtype)


def _chunks(counts, size: int, tokens: int = _CHUNK_TOKENS) -> Iterator[tuple[int, slice]]:
    """(class, slice of the window tokens) of each step of ``tokens`` or fewer; none spans two classes."""
    step, start = max(1, tokens // size), 0
    for number, count in enumerate(counts):
        for first in range(0, count, step):
            last = min(first + step, count)
            yield number, slice((start + first) * size, (start + last) * size)
        start += count


def _heads_first(rows: Tensor, parts: int, size: int, heads: int) -> Tensor:
    """(windows * N, parts * H * D) -> (parts, windows * H, N, D), a copy, never in half precision."""
    count, head_dim = rows.shape[0] // size, rows.shape[1] // (parts * heads)
    split = rows.reshape(count, size, parts, heads, head_dim).permute(2, 0, 3, 1, 4)
    copy = torch.empty(split.shape, dtype=_wide(rows.dtype)).copy_(
        split
    )  # not reshape: with one head that is a view, and callers write into it
    return copy.view(parts, count * heads, size, head_dim)


def _heads_last(x: Tensor, heads: int, out: Tensor) -> None:
    """Writes (parts, windows * H, N, D) into ``out`` (windows * N, parts * H * D)."""
    parts, groups, size, head_dim = x.shape
    out.view(groups // heads, size, parts, heads, head_dim).copy_(
        x.view(parts, groups // heads, heads, size, head_dim).permute(1, 3, 0, 2, 4)
    )


def _probabilities(q: Tensor, k: Tensor, mask: Tensor | None, heads: int, scale: float) -> Tensor:
    """(windows * H, N, D) twice -> (windows * H, N, N)."""
    s = torch.bmm(q, k.transpose(1, 2))
    per_head = s.view(-1, heads, *s.shape[1:])
    if mask is not None:
        torch.add(mask, per_head, alpha=scale, out=per_head)
    elif scale != 1.0:
        s.mul_(scale)
    return torch.softmax(s, -1)


def _cosine(qk: Tensor, head_scale: Tensor) -> Tensor:
    """Normalises q and k (2, windows * H, N, D) in place, q times ``head_scale``; returns 1 / max(norm, eps) (2, windows * H, N, 1)."""
    inverse = torch.linalg.vector_norm(qk, dim=-1, keepdim=True).clamp_min_(_EPS).reciprocal_()
    qk.mul_(inverse)
    q = qk[0].view(-1, head_scale.shape[0], *qk.shape[2:])
    q.mul_(head_scale.view(-1, 1, 1))
    return inverse


def _step(rows: Tensor, mask: Tensor | None, scores: Scores, out: Tensor) -> None:
    """Attention of a few windows (windows * N, 3 * C) of one class, written to ``out`` (windows * N, C)."""
    heads, size = scores.num_heads, scores.size
    together = max(1, _CHUNK_SCORES // (heads * size * size)) * size
    for part, target in zip(rows.split(together), out.split(together), strict=True):
        qkv = _heads_first(part, 3, size, heads)
        scale = qkv.shape[-1] ** -0.5 if scores.scale is None else scores.scale
        if scores.head_scale is not None:
            _cosine(qkv[:2], scores.head_scale)
            scale = 1.0
        if size > _LARGE:
            result = F.scaled_dot_product_attention(*qkv.unflatten(1, (-1, heads)), attn_mask=mask, scale=scale)
        else:
            result = torch.bmm(_probabilities(qkv[0], qkv[1], mask, heads, scale), qkv[2])
        _heads_last(result.reshape(1, *qkv.shape[1:]), heads, target)


class _Attend(torch.autograd.Function):
    """`attend` in steps that stay in a CPU's cache; the backward recomputes the probabilities, so that only the input is kept.

    ``masks`` is (classes, 1 or H, N, N) and has a gradient, ``head_scale`` too.
    """

    @staticmethod
    def forward(ctx, rows, masks, head_scale, scores, counts):
        ctx.save_for_backward(rows, masks, head_scale)
        ctx.scores, ctx.counts = scores, counts
        scores = scores._replace(head_scale=head_scale)
        out = rows.new_empty(rows.shape[0], rows.shape[1] // 3)
        with torch.autocast("cpu", enabled=False):
            for number, part in _chunks(counts, scores.size):
                _step(rows[part], None if masks is None else masks[number], scores, out[part])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.autocast("cpu", enabled=False)
    def backward(ctx, grad):
        rows, masks, head_scale = ctx.saved_tensors
        heads, size = ctx.scores.num_heads, ctx.scores.size
        scale = (rows.shape[1] // (3 * heads)) ** -0.5 if ctx.scores.scale is None else ctx.scores.scale
        d_rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
        d_masks = torch.zeros_like(masks) if ctx.needs_input_grad[1] else None
        d_head_scale = None if head_scale is None else torch.zeros_like(head_scale)
        for number, part in _chunks(ctx.counts, size, _CHUNK_SCORES // (heads * size)):
            qkv = _heads_first(rows[part], 3, size, heads)
            q, k, v = qkv
            if head_scale is not None:
                inverse = _cosine(qkv[:2], head_scale)
                scale = 1.0
            p = _probabilities(q, k, None if masks is None else masks[number], heads, scale)
            g = _heads_first(grad[part], 1, size, heads)[0]
            d_qkv = torch.empty_like(qkv)
            torch.bmm(p.transpose(1, 2), g, out=d_qkv[2])
            d_scores = torch.ops.aten._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), p, -1, p.dtype)
            if d_masks is not None:
                d_masks[number] += d_scores.view(-1, heads, size, size).sum(0).sum_to_size(d_masks.shape[1:])
            torch.bmm(d_scores, k, out=d_qkv[0])
            torch.bmm(d_scores.transpose(1, 2), q, out=d_qkv[1])
            if head_scale is None:
                d_qkv[:2].mul_(scale)
            else:
                d_head_scale += _cosine_backward(d_qkv[:2], qkv[:2], inverse, head_scale)
            _heads_last(d_qkv, heads, d_rows[part])
        return d_rows, d_masks, d_head_scale, None, None


def _cosine_backward(d_qk: Tensor, qk: Tensor, inverse: Tensor, head_scale: Tensor) -> Tensor:
    """Turns d(normalised q, k) in place into d(q, k), and returns d(head_scale) (H,). ``qk`` is what `_cosine` left: q carries its factor."""
    factor = head_scale.view(-1, 1, 1)
    per_head = (2, -1, head_scale.shape[0], *qk.shape[2:])
    d_q, q = d_qk.view(per_head)[0], qk.view(per_head)[0]
    q.div_(factor)  # (windows, H, N, D), unit vectors again
    d_head_scale = (d_q * q).sum((0, 2, 3))
    d_q.mul_(factor)
    along = (d_qk * qk).sum(-1, keepdim=True).masked_fill_(inverse >= 1 / _EPS, 0.0)  # a clamped norm is a constant
    d_qk.addcmul_(qk, along, value=-1).mul_(inverse)
    return d_head_scale


def _calls_freely(project) -> bool:
    """False where someone watches the calls of ``project``: then it is called once."""
    if not isinstance(project, torch.nn.Module):
        return True
    return not any(module._forward_hooks or module._forward_pre_hooks for module in project.modules())


def _projected(project, tokens: Tensor, heads: int) -> Tensor:
    """``project`` of (tokens, C_in), or the tokens where it is None: (tokens, 3 * C)."""
    if project is None:
        return tokens
    op = "projected_window_attention"
    rows = project(tokens)
    check_tensor(op, "project(x)", rows, ndim=2)
    rows = autocast(rows)[0]
    if rows.shape[0] != tokens.shape[0] or rows.shape[1] % (3 * heads):
        raise ValueError(
            f"{op}: project does not give q, k and v of {heads} heads for each token: got {tuple(tokens.shape)} -> {tuple(rows.shape)}; "
            f"expected (tokens, 3 C) with C a multiple of {heads}."
        )
    return rows


def window_softmax(
    tokens: Tensor, project: Callable | None, padding: Tensor | None, windows: Windows, scores: Scores
) -> Tensor:
    """Image tokens (B * img_h * img_w, C_in) -> attention (B * img_h * img_w, C); ``project`` makes them q, k, v, None where they are."""
    in_steps = tokens.device.type == "cpu" and is_eager() and scores.dropout_p == 0.0
    if in_steps and tokens.shape[0] > 0 and not torch.is_grad_enabled() and _calls_freely(project):
        return _inference(tokens, project, padding, windows, scores)
    rows = _projected(project, gather_windows(tokens, windows, padding), scores.num_heads)
    if in_steps:
        masks = _masks(windows, scores, rows.dtype)
        masks = None if masks[0] is None else torch.stack([mask[0] for mask in masks])
        out = _Attend.apply(
            rows, masks, scores.head_scale, scores._replace(table=None, head_scale=None), windows.counts
        )
    else:
        out = attend(rows, windows, scores)
    return scatter_windows(out, windows)


def _inference(tokens, project, padding, windows: Windows, scores: Scores) -> Tensor:
    """Gather, projection and attention of a few windows at a time."""
    masks, out = None, None
    for number, part in _chunks(windows.counts, scores.size):
        rows = tokens.index_select(0, windows.gather[part])
        if windows.outside is not None:
            outside = windows.outside[part]
            rows = rows.masked_fill_(outside, 0.0) if padding is None else torch.where(outside, padding, rows)
        rows = _projected(project, rows, scores.num_heads)
        if out is None:
            masks = _masks(windows, scores, rows.dtype)
            out = rows.new_empty(windows.gather.shape[0], rows.shape[1] // 3)
        with torch.autocast("cpu", enabled=False):
            _step(rows, masks[number], scores, out[part])
    return out.index_select(0, windows.scatter)
