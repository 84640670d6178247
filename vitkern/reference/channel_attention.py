"""Attention between channels as the plain formula: out = carried softmax(scale left^T right)^T, a D x D matrix for each
head, summed over all tokens (DaViT, Ding et al., arXiv 2204.03645, section 3.2); with channels of unit length, cross-
covariance attention (XCiT, El-Nouby et al., arXiv 2106.09681, section 3.2, equation 3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.reference.rounding import rounded_gradient


def channel_attention(
    qkv: Tensor, *, value: str = "q", scale: float | None = None, low_precision: torch.dtype | None = None
) -> Tensor:
    """The definition of `vitkern.ops.channel_attention.channel_attention`, with the same arguments.

    Computes in float64 when ``qkv`` is float64, else in float32. ``low_precision`` gives the ideal kernel of that
    dtype: the weights, and the gradient of the D x D product, are rounded where they are operands of products.
    """
    q, k, v = _heads_of(qkv)
    left, right, carried = (k, v, q) if value == "q" else (q, k, v)
    product = rounded_gradient(left.transpose(-1, -2) @ right, low_precision)  # (B, H, D, D)
    logits = product * (1 / math.sqrt(qkv.shape[-1]) if scale is None else scale)
    return _mixed(logits, carried, low_precision).to(qkv.dtype)


def cross_covariance_attention(qkv: Tensor, temperature: Tensor, *, low_precision: torch.dtype | None = None) -> Tensor:
    """The definition of `vitkern.ops.channel_attention.cross_covariance_attention`, with the same arguments;
    see `channel_attention`. Norms below 1e-12 are taken as 1e-12."""
    q, k, v = _heads_of(qkv)
    q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
    cosines = rounded_gradient(q.transpose(-1, -2) @ k, low_precision)  # (B, H, D, D)
    logits = cosines * temperature.to(cosines.dtype).reshape(-1, 1, 1)
    return _mixed(logits, v, low_precision).to(qkv.dtype)


def _heads_of(qkv: Tensor) -> Tensor:
    """(B, N, 3, H, D) -> (3, B, H, N, D), float64 or float32."""
    return qkv.to(torch.float64 if qkv.dtype == torch.float64 else torch.float32).permute(2, 0, 3, 1, 4)


def _mixed(logits: Tensor, carried: Tensor, low_precision: torch.dtype | None) -> Tensor:
    """Each channel of ``carried`` (B, H, N, D) a mean of all, by the softmax of its row of ``logits``: (B, N, H, D)."""
    weights = torch.softmax(logits, -1)
    if low_precision is not None:
        weights = weights + (weights.to(low_precision).to(weights.dtype) - weights).detach()
    return (carried @ weights.transpose(-1, -2)).transpose(1, 2)
