"""Softmax attention of a few windows at a time by explicit batched products, forward and backward: the CPU path of
window attention.

The scores of a step never leave the cache. SDPA's CPU kernel is slow on groups as small as a window, and refuses a bias
that needs a gradient. Half precision is computed in float32.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.dispatch import is_batched

_CHUNK_TOKENS = 2048  # window tokens that each thread of a CPU projects at a time
_CHUNK_SCORES = 1 << 18  # scores that it holds at a time
_LARGE = 100  # tokens per window from which SDPA's CPU kernel is the faster one
EPS = 1e-12  # smallest norm that a cosine divides by


class Scores(NamedTuple):
    """How scores are made: H heads, (window_h, window_w), the bias table and what is added between regions, the factor
    of q . k.

    ``head_scale`` (H,) makes them cosines times that factor, and ``scale`` is ignored. ``dropout_p`` drops weights of
    the softmax.
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


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that scores are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def steps_of(counts: Sequence[int], size: int, tokens: int = _CHUNK_TOKENS) -> Iterator[tuple[int, slice]]:
    """(class, slice of the window tokens) of each step of ``tokens`` a thread or fewer; none spans two classes."""
    step, start = max(1, torch.get_num_threads() * tokens // size), 0
    for number, count in enumerate(counts):
        for first in range(0, count, step):
            last = min(first + step, count)
            yield number, slice((start + first) * size, (start + last) * size)
        start += count


def _heads_first(rows: Tensor, parts: int, size: int, heads: int) -> Tensor:
    """(windows * N, parts * H * D) -> (parts, windows * H, N, D), a copy, never in half precision."""
    count, head_dim = rows.shape[0] // size, rows.shape[1] // (parts * heads)
    split = rows.reshape(count, size, parts, heads, head_dim).permute(2, 0, 3, 1, 4)
    # not reshape: with one head that is a view, and callers write into the copy
    copy = rows.new_empty(split.shape, dtype=wide(rows.dtype)).copy_(split)
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
    """Normalises q and k (2, windows * H, N, D) in place, q times ``head_scale``; returns 1 / max(norm, eps) (2,
    windows * H, N, 1)."""
    inverse = torch.linalg.vector_norm(qk, dim=-1, keepdim=True).clamp_min_(EPS).reciprocal_()
    qk.mul_(inverse)
    q = qk[0].view(-1, head_scale.shape[0], *qk.shape[2:])
    q.mul_(head_scale.view(-1, 1, 1))
    return inverse


class _Operands(NamedTuple):
    """Of a few windows: q, k, v (3, windows * H, N, D), the probabilities (windows * H, N, N), and for cosines the
    inverse norms (2, windows * H, N, 1)."""

    qkv: Tensor
    probabilities: Tensor
    inverse: Tensor | None


def _operands(rows: Tensor, mask: Tensor | None, scores: Scores, probabilities: Tensor | None) -> _Operands:
    """``probabilities`` are computed where there are none."""
    qkv = _heads_first(rows, 3, scores.size, scores.num_heads)
    inverse = None if scores.head_scale is None else _cosine(qkv[:2], scores.head_scale)
    if probabilities is None:
        probabilities = _probabilities(qkv[0], qkv[1], mask, scores.num_heads, _scale(qkv, scores))
    return _Operands(qkv, probabilities, inverse)


def _explicit(rows: Tensor, mask: Tensor | None, scores: Scores, out: Tensor) -> Tensor:
    """Attention of a few windows, written to ``out``; returns the probabilities."""
    (_, _, v), p, _ = _operands(rows, mask, scores, None)
    _heads_last(torch.bmm(p, v)[None], scores.num_heads, out)
    return p


def _scale(qkv: Tensor, scores: Scores) -> float:
    if scores.head_scale is not None:
        return 1.0  # it is in q
    return qkv.shape[-1] ** -0.5 if scores.scale is None else scores.scale


def attend_step(rows: Tensor, mask: Tensor | None, scores: Scores, out: Tensor) -> None:
    """Attention of a few windows (windows * N, 3 * C) of one class, written to ``out`` (windows * N, C)."""
    heads, size = scores.num_heads, scores.size
    together = max(1, torch.get_num_threads() * _CHUNK_SCORES // (heads * size * size)) * size
    for part, target in zip(rows.split(together), out.split(together), strict=True):
        if size <= _LARGE:
            _explicit(part, mask, scores, target)
            continue
        qkv = _heads_first(part, 3, size, heads)
        scale = _scale(qkv, scores)
        if scores.head_scale is not None:
            _cosine(qkv[:2], scores.head_scale)
        q, k, v = qkv.unflatten(1, (-1, heads))  # (windows, H, N, D) each
        result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        _heads_last(result.reshape(1, *qkv.shape[1:]), heads, target)


class AttendInSteps(torch.autograd.Function):
    """`attend` in steps that stay in a CPU's cache. The backward finds small windows' probabilities kept, as plain
    PyTorch would, and computes those of large ones again. Where more than a gradient is asked of it, a graph of its own
    or one for a batch of gradients, it differentiates the formula.

    ``masks`` is (classes, 1 or H, N, N) and has a gradient, ``head_scale`` too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        masks: Tensor | None,
        head_scale: Tensor | None,
        scores: Scores,
        counts: tuple[int, ...],
    ) -> Tensor:
        ctx.scores, ctx.counts = scores._replace(head_scale=None), counts
        scores = scores._replace(head_scale=head_scale)
        out = rows.new_empty(rows.shape[0], rows.shape[1] // 3)
        kept = []
        with torch.autocast("cpu", enabled=False):
            for number, part in _score_steps(counts, scores):
                mask = None if masks is None else masks[number]
                if scores.size <= _LARGE:
                    kept.append(_explicit(rows[part], mask, scores, out[part]))
                else:
                    attend_step(rows[part], mask, scores, out[part])
        ctx.save_for_backward(rows, masks, head_scale, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled() or is_batched(grad):
                return (*_differentiated(ctx, grad), None, None)
            return (*_gradients(ctx, grad), None, None)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of rows, masks and head_scale."""
    rows, masks, head_scale, *kept = ctx.saved_tensors
    scores = ctx.scores._replace(head_scale=head_scale)
    heads, size = scores.num_heads, scores.size
    d_rows = torch.empty_like(rows, memory_format=torch.contiguous_format)
    d_masks = torch.zeros_like(masks) if ctx.needs_input_grad[1] else None
    d_head_scale = None if head_scale is None else torch.zeros_like(head_scale)
    for step, (number, part) in enumerate(_score_steps(ctx.counts, scores)):
        mask = None if masks is None else masks[number]
        (q, k, v), p, inverse = _operands(rows[part], mask, scores, kept[step] if kept else None)
        g = _heads_first(grad[part], 1, size, heads)[0]
        d_qkv = q.new_empty(3, *q.shape)
        torch.bmm(p.transpose(1, 2), g, out=d_qkv[2])
        d_scores = torch.ops.aten._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), p, -1, p.dtype)
        if d_masks is not None:
            d_masks[number] += d_scores.view(-1, heads, size, size).sum(0).sum_to_size(d_masks.shape[1:])
        torch.bmm(d_scores, k, out=d_qkv[0])
        torch.bmm(d_scores.transpose(1, 2), q, out=d_qkv[1])
        if d_head_scale is None or inverse is None:
            d_qkv[:2].mul_(_scale(q, scores))
        else:
            d_head_scale += _cosine_backward(d_qkv[:2], torch.stack((q, k)), inverse, head_scale)
        _heads_last(d_qkv, heads, d_rows[part])
    return d_rows, d_masks, d_head_scale


def _differentiated(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """As `_gradients`, by autograd on the formula, so that they have a graph where one is wanted."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        rows, masks, head_scale = ctx.saved_tensors[:3]
        rows = rows.view_as(rows)
        masks, head_scale = (None if value is None else value.view_as(value) for value in (masks, head_scale))
        out = _formula(rows, masks, head_scale, ctx.scores, ctx.counts)
        pairs = zip((rows, masks, head_scale), ctx.needs_input_grad, strict=False)
        leaves = [value for value, needed in pairs if needed and value is not None]
        found = iter(torch.autograd.grad(out, leaves, grad, create_graph=again))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:3]]


def _formula(
    rows: Tensor, masks: Tensor | None, head_scale: Tensor | None, scores: Scores, counts: tuple[int, ...]
) -> Tensor:
    """What `AttendInSteps` computes, of operators that can be differentiated any number of times."""
    heads, dtype = scores.num_heads, wide(rows.dtype)
    packed = rows.to(dtype).unflatten(-1, (3, heads, -1)).unflatten(0, (-1, scores.size))
    q, k, v = packed.permute(2, 0, 3, 1, 4)  # (windows, H, N, D)
    scale = _scale(q, scores._replace(head_scale=head_scale))
    if head_scale is not None:
        q, k = (F.normalize(t, dim=-1, eps=EPS) for t in (q, k))
        q = q * head_scale.view(-1, 1, 1)
    logits = q @ k.mT * scale
    if masks is not None:
        each = zip(logits.split(counts), masks, strict=True)
        logits = torch.cat([part + mask for part, mask in each])
    out = logits.softmax(-1) @ v
    return out.transpose(1, 2).reshape(rows.shape[0], rows.shape[1] // 3).to(rows.dtype)


def _score_steps(counts: Sequence[int], scores: Scores) -> Iterator[tuple[int, slice]]:
    """`steps_of` as many windows as hold ``_CHUNK_SCORES`` scores."""
    return steps_of(counts, scores.size, _CHUNK_SCORES // (scores.num_heads * scores.size))


def _cosine_backward(d_qk: Tensor, qk: Tensor, inverse: Tensor, head_scale: Tensor) -> Tensor:
    """Turns d(normalised q, k) in place into d(q, k), and returns d(head_scale) (H,). ``qk`` is what `_cosine` left: q
    carries its factor."""
    factor = head_scale.view(-1, 1, 1)
    along = (d_qk * qk).sum(-1, keepdim=True)  # (2, windows * H, N, 1), the same for q with its factor and without
    d_q, along_q = (
        d_qk[0].view(-1, head_scale.shape[0], *qk.shape[2:]),
        along[0].view(-1, head_scale.shape[0], qk.shape[2], 1),
    )
    d_head_scale = along_q.sum((0, 2, 3)) / head_scale
    along.masked_fill_(inverse >= 1 / EPS, 0.0)  # a clamped norm is a constant
    along_q.div_(factor)
    d_q.mul_(factor)
    d_qk.addcmul_(qk, along, value=-1).mul_(inverse)
    return d_head_scale
