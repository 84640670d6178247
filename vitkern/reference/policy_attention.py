"""Policy attention as the plain formula: each key counts for what a policy says (DynamicViT, Rao et al., arXiv
2106.02034, section 3.3, with the smoothing of its code)."""

import math

import torch
from torch import Tensor

from vitkern.reference.attention import read_back
from vitkern.reference.rounding import rounded, rounded_gradient


def policy_attention(
    qkv: Tensor,
    policy: Tensor,
    *,
    scale: float | None = None,
    eps: float = 1e-6,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """The definition of `vitkern.ops.policy_attention.policy_attention`, with the same arguments.

    Computes in float64 when ``qkv`` is float64, else in float32. ``low_precision`` gives the ideal kernel of that
    dtype: q, k, v, the weights and the gradient of the scores are rounded where they are operands of products, and the
    output is, which its backward reads as stored.
    """
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    q, k, v = (rounded(x, low_precision) for x in qkv.to(wide).permute(2, 0, 3, 1, 4))  # (B, H, N, D) each
    product = rounded_gradient(q @ k.transpose(-1, -2), low_precision)
    scores = product * (1 / math.sqrt(qkv.shape[-1]) if scale is None else scale)
    weights, total = smoothed_softmax(scores, policy.reshape(policy.shape[:2]).to(wide), eps)
    exact = weights
    if low_precision is not None:
        weights = weights + (weights.to(low_precision).to(wide) - weights).detach()
    out = rounded(weights @ v, low_precision)
    if low_precision is not None and out.requires_grad:
        out = read_back(out, exact @ v, total.log())
    return out.transpose(1, 2).to(qkv.dtype)


def smoothed_softmax(scores: Tensor, policy: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """scores (B, H, N, N), policy (B, N) -> weights (B, H, N, N) and their denominators (B, H, N, 1)."""
    if scores.numel() == 0:
        return scores + policy[:, None, None, :], scores.sum(-1, keepdim=True) + 1.0
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    counts = torch.where(own, 1.0, policy[:, None, None, :])
    pivot = scores.max(-1, keepdim=True).values  # of equal ones the first has the gradient
    weights = (scores - pivot).exp() * counts
    total = weights.sum(-1, keepdim=True) + eps
    total = total.masked_fill(total == 0.0, 1.0)
    return (weights + eps / scores.shape[-1]) / total, total
