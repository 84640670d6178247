"""Policy attention in PyTorch, a few heads at a time: what the cache holds, and no N x N of all. The backward computes
the weights again."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vitkern.dispatch import is_batched, is_seen, no_autocast

SCORES = {"cpu": 2**19}  # of all heads of a chunk
OTHERWISE = 2**27


def formula(qkv: Tensor, policy: Tensor, scale: float, eps: float) -> tuple[Tensor, None]:
    """(B, N, H, D), all scores at once, of operators that every transformation knows; and nothing that only kernels
    read. Rows are divided once they are summed, not their N weights."""
    if qkv.shape[1] == 0:
        return qkv[:, :, 2] + policy.to(qkv.dtype)[:, :, None, None], None
    rows = _wide(qkv)
    q, k, v = rows.permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
    with no_autocast(qkv):
        scores = (q * scale) @ k.transpose(-1, -2)  # (B, H, N, N)
        weights = (scores - scores.max(-1, keepdim=True).values).exp() * _counts(policy, rows.dtype)
        total = _denominators(weights, eps)
        out = (weights @ v + eps * v.mean(-2, keepdim=True)) / total
    return out.transpose(1, 2).to(qkv.dtype).contiguous(), None


def in_chunks(qkv: Tensor, policy: Tensor, scale: float, eps: float) -> tuple[Tensor, None]:
    """`formula`, in chunks where nobody sees which operators run."""
    if is_seen() or qkv.numel() == 0:
        return formula(qkv, policy, scale, eps)
    with no_autocast(qkv):
        return _Chunks.apply(qkv, policy, scale, eps), None


def _wide(x: Tensor) -> Tensor:
    """Sums of weights may pass the range of float16."""
    return x.float() if x.dtype == torch.float16 else x


def _counts(policy: Tensor, dtype: torch.dtype) -> Tensor:
    """What each key counts for, (B, 1, N, N)."""
    own = torch.eye(policy.shape[1], dtype=torch.bool, device=policy.device)
    return torch.where(own, 1.0, policy.to(dtype)[:, None, None, :])


def _denominators(weights: Tensor, eps: float) -> Tensor:
    total = weights.sum(-1, keepdim=True) + eps
    return total.masked_fill(total == 0.0, 1.0) if eps == 0.0 else total


class _Chunks(torch.autograd.Function):
    """Keeps its arguments and the result."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, policy: Tensor, scale: float, eps: float) -> Tensor:
        out = qkv.new_empty(qkv.shape[:2] + qkv.shape[3:])
        for images, heads in _chunks(qkv):
            rows = _wide(qkv[images, :, :, heads])
            q, k, v = rows.permute(2, 0, 3, 1, 4).contiguous()
            weights, _ = _exponentials(q * scale, k)
            weights *= _counts(policy[images], rows.dtype)
            total = _denominators(weights, eps)
            out[images, :, heads] = ((weights @ v).add_(v.mean(-2, keepdim=True), alpha=eps) / total).transpose(1, 2)
        ctx.save_for_backward(qkv, policy, out)
        ctx.numbers = scale, eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (scale, eps), (qkv, policy, out) = ctx.numbers, ctx.saved_tensors
        with no_autocast(grad):
            if torch.is_grad_enabled() or is_batched(grad):
                return *_differentiated(scale, eps, grad, ctx.needs_input_grad, qkv, policy), None, None
            return *_gradients(scale, eps, grad, qkv, policy, out), None, None


def _chunks(qkv: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of their heads: whole images, or some heads of one."""
    batch, tokens, _, heads, _ = qkv.shape
    most = SCORES.get(qkv.device.type, OTHERWISE) // tokens**2
    images, of_each = max(1, most // heads), min(heads, max(1, most))
    for first in range(0, batch, images):
        for head in range(0, heads, of_each):
            yield slice(first, first + images), slice(head, head + of_each)


def _exponentials(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Of the scores, of ``q`` with their scale, below the largest of each row, (B, H, N, N); which that is."""
    scores = q @ k.transpose(-1, -2)
    largest, first = scores.max(-1, keepdim=True)
    return scores.sub_(largest).exp_(), first


def _gradients(
    scale: float, eps: float, grad: Tensor, qkv: Tensor, policy: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    sums = torch.promote_types(qkv.dtype, torch.float32)
    dpolicy = torch.zeros(policy.shape, dtype=sums, device=policy.device)
    for images, heads in _chunks(qkv):
        rows = _wide(qkv[images, :, :, heads])
        q, k, v = rows.permute(2, 0, 3, 1, 4).contiguous()
        g, results = (x[images, :, heads].transpose(1, 2).to(rows.dtype) for x in (grad, out))
        counts = _counts(policy[images], rows.dtype)
        q = q * scale
        exponentials, first = _exponentials(q, k)
        weights = exponentials * counts
        total = _denominators(weights, eps)
        of_sums = g / total  # gradient of what is divided
        dv = (weights.transpose(-1, -2) @ of_sums).add_(of_sums.mean(-2, keepdim=True), alpha=eps)
        delta = (of_sums * results).sum(-1, keepdim=True)
        slope = (of_sums @ v.transpose(-1, -2)).sub_(delta).mul_(exponentials)
        lost = eps * (delta - (of_sums * v.mean(-2, keepdim=True)).sum(-1, keepdim=True))
        by_key = slope.sum((1, 2), dtype=sums) - slope.diagonal(dim1=-2, dim2=-1).sum(1, dtype=sums)
        dpolicy[images] += by_key
        slope.mul_(counts).scatter_add_(-1, first, -lost)
        dk = slope.transpose(-1, -2) @ q
        dq = (slope @ k).mul_(scale)
        dqkv[images, :, :, heads] = torch.stack((dq, dk, dv)).permute(1, 3, 0, 2, 4).to(qkv.dtype)
    return dqkv, dpolicy.to(policy.dtype)


def _differentiated(
    scale: float, eps: float, grad: Tensor, needs: Sequence[bool], qkv: Tensor, policy: Tensor
) -> list[Tensor | None]:
    """As `_gradients`, by autograd on the formula, so that they have a graph where one is wanted."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        qkv, policy = qkv.view_as(qkv), policy.view_as(policy)
        out = formula(qkv, policy, scale, eps)[0]
        leaves = [x for x, needed in zip((qkv, policy), needs, strict=False) if needed]
        found = iter(torch.autograd.grad(out, leaves, grad, create_graph=again))
    return [next(found) if needed else None for needed in needs[:2]]
