"""Talking-heads attention in PyTorch, a few queries at a time: what the cache holds, and no N x N of all images. The
backward computes the weights again."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vitkern.dispatch import is_batched, is_seen, no_autocast

SCORES = {"cpu": 2**19}  # of all heads of a chunk
OTHERWISE = 2**27


def formula(
    qkv: Tensor,
    before: Tensor,
    after: Tensor,
    before_bias: Tensor | None,
    after_bias: Tensor | None,
    scale: float,
    dropout_p: float = 0.0,
) -> tuple[Tensor, None]:
    """(B, N, H, D), all scores at once, of operators that every transformation knows; and no lse."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
    with no_autocast(qkv):
        scores = (q * scale) @ k.transpose(-1, -2)
        if before_bias is not None:  # it shifts whole rows of logits, which no softmax sees: its gradient is 0
            before = before + 0.0 * before_bias[:, None]
        logits = torch.einsum("gh,bhnm->bgnm", before.to(qkv.dtype), scores)
        weights = torch.einsum("gh,bhnm->bgnm", after.to(qkv.dtype), logits.softmax(-1))
        if after_bias is not None:
            weights = weights + after_bias.to(qkv.dtype)[:, None, None]
        out = torch.dropout(weights, dropout_p, True) @ v if dropout_p else weights @ v
    return out.transpose(1, 2).contiguous(), None


def in_chunks(
    qkv: Tensor,
    before: Tensor,
    after: Tensor,
    before_bias: Tensor | None,
    after_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, None]:
    """`formula`, in chunks where nobody sees which operators run."""
    if is_seen():
        return formula(qkv, before, after, before_bias, after_bias, scale)
    with no_autocast(qkv):
        return _Chunks.apply(qkv, before, after, before_bias, after_bias, scale), None


class _Chunks(torch.autograd.Function):
    """Keeps its arguments and nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        before: Tensor,
        after: Tensor,
        before_bias: Tensor | None,
        after_bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(qkv, before, after, before_bias, after_bias)
        ctx.scale = scale
        wl, ww = before.to(qkv.dtype), after.to(qkv.dtype)
        bias = None if after_bias is None else after_bias.to(qkv.dtype)[None, :, None]
        out = qkv.new_empty(qkv.shape[:2] + qkv.shape[3:])
        for images, rows in _chunks(qkv):
            q, k, v = qkv[images].permute(2, 0, 3, 1, 4).contiguous()
            _, _, weights = _weights(q[:, :, rows] * scale, k, wl, ww, bias)
            out[images, rows] = (weights @ v).transpose(1, 2)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with no_autocast(grad):
            if torch.is_grad_enabled() or is_batched(grad):
                return *_differentiated(ctx.scale, grad, ctx.needs_input_grad, *ctx.saved_tensors), None
            return *_gradients(ctx.scale, grad, *ctx.saved_tensors), None


def _chunks(qkv: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of their queries: whole images, or a part of one."""
    batch, tokens, _, heads, _ = qkv.shape
    most = SCORES.get(qkv.device.type, OTHERWISE)
    image = max(1, heads * tokens * tokens)
    images, queries = max(1, most // image), tokens if image <= most else max(16, most // (heads * tokens))
    for first in range(0, batch, images):
        for row in range(0, tokens, max(1, queries)):
            yield slice(first, first + images), slice(row, row + queries)


def _weights(q: Tensor, k: Tensor, wl: Tensor, ww: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, of ``q`` with their scale, weights of the softmax, and these mixed: (B, H, n, N) each."""
    scores = q @ k.transpose(-1, -2)
    flat = wl @ scores.flatten(2)
    softmax = flat.view(scores.shape).softmax(-1)
    mixed = ww @ softmax.flatten(2)
    if bias is not None:
        mixed += bias
    return scores, softmax, mixed.view(scores.shape)


def _gradients(
    scale: float,
    grad: Tensor,
    qkv: Tensor,
    before: Tensor,
    after: Tensor,
    before_bias: Tensor | None,
    after_bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    wl, ww = before.to(qkv.dtype), after.to(qkv.dtype)
    bias = None if after_bias is None else after_bias.to(qkv.dtype)[None, :, None]
    sums = torch.promote_types(qkv.dtype, torch.float32)
    dqkv = torch.zeros(qkv.shape, dtype=sums, device=qkv.device)
    dbefore, dafter = (torch.zeros(x.shape, dtype=sums, device=x.device) for x in (before, after))
    dbias = torch.zeros(after.shape[:1], dtype=sums, device=after.device)
    for images, rows in _chunks(qkv):
        q, k, v = qkv[images].permute(2, 0, 3, 1, 4).contiguous()
        dq, dk, dv = dqkv[images].permute(2, 0, 3, 1, 4)
        q, g = q[:, :, rows] * scale, grad[images, rows].transpose(1, 2)
        scores, softmax, weights = _weights(q, k, wl, ww, bias)
        dv += weights.transpose(-1, -2) @ g
        dweights = (g @ v.transpose(-1, -2)).flatten(2)  # (B, H, n N)
        dafter += (dweights @ softmax.flatten(2).transpose(-1, -2)).sum(0)
        dbias += dweights.sum((0, 2), dtype=sums)
        dsoftmax = (ww.T @ dweights).view(scores.shape)
        dlogits = torch._softmax_backward_data(dsoftmax, softmax, -1, softmax.dtype).flatten(2)
        dbefore += (dlogits @ scores.flatten(2).transpose(-1, -2)).sum(0)
        dscores = (wl.T @ dlogits).view(scores.shape)
        dq[:, :, rows] = (dscores @ k) * scale
        dk += dscores.transpose(-1, -2) @ q
    dbefore_bias = None if before_bias is None else torch.zeros_like(before_bias)
    dafter_bias = None if after_bias is None else dbias.to(after_bias.dtype)
    return dqkv.to(qkv.dtype), dbefore.to(before.dtype), dafter.to(after.dtype), dbefore_bias, dafter_bias


def _differentiated(scale: float, grad: Tensor, needs: Sequence[bool], *saved: Any) -> list[Tensor | None]:
    """As `_gradients`, by autograd on the formula, so that they have a graph where one is wanted."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        tensors: list[Any] = [None if x is None else x.view_as(x) for x in saved]
        qkv, before, after, before_bias, after_bias = tensors
        out = formula(qkv, before, after, before_bias, after_bias, scale)[0]
        leaves = [x for x, needed in zip(tensors, needs, strict=False) if needed]
        found = iter(torch.autograd.grad(out, leaves, grad, create_graph=again))
    return [next(found) if needed else None for needed in needs[: len(tensors)]]
