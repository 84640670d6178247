"""Talking-heads attention as the plain formula: heads are mixed before and after the softmax (Shazeer et al., arXiv
2003.02436, section 3; CaiT, Touvron et al., arXiv 2103.17239)."""

import math

import torch
from torch import Tensor

from vitkern.reference.rounding import rounded_gradient, with_value


def talking_heads_attention(
    qkv: Tensor,
    before: Tensor,
    after: Tensor,
    before_bias: Tensor | None = None,
    after_bias: Tensor | None = None,
    *,
    scale: float | None = None,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """The definition of `vitkern.ops.talking_heads_attention.talking_heads_attention`, with the same arguments.

    Computes in float64 when ``qkv`` is float64, else in float32. ``low_precision`` gives the ideal kernel of that
    dtype: the mixed weights, and the gradient of the scores, are rounded where they are operands of products.
    """
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    q, k, v = qkv.to(wide).permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
    scores = (q @ k.transpose(-1, -2)) * (1 / math.sqrt(qkv.shape[-1]) if scale is None else scale)
    logits = mixed(rounded_gradient(scores, low_precision), before.to(wide), before_bias)
    weights = mixed(torch.softmax(logits, -1), after.to(wide), after_bias)
    if low_precision is not None:
        weights = with_value(weights, weights.to(low_precision).to(wide))
    return (weights @ v).transpose(1, 2).to(qkv.dtype)


def mixed(tiles: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Heads of (B, H, N, M) mixed: matrix (H, H), bias (H,)."""
    found = torch.einsum("gh,bhnm->bgnm", matrix, tiles)
    return found if bias is None else found + bias.to(found.dtype)[:, None, None]
