"""Attention of normalised queries and keys as the plain formula (Henry et al., arXiv 2010.04245; ViT-22B, Dehghani et
al., arXiv 2302.05442, section 2)."""

import torch
from torch import Tensor

from vitkern.reference.attention import attention
from vitkern.reference.layernorm import layernorm
from vitkern.reference.rmsnorm import rmsnorm


def qk_norm_attention(
    qkv: Tensor,
    q_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_bias: Tensor | None = None,
    *,
    norm: str = "layernorm",
    eps: float = 1e-6,
    scale: float | None = None,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """The definition of `vitkern.ops.qk_norm_attention.qk_norm_attention`, with the same arguments.

    Computes in float64 when ``qkv`` is float64, else in float32. ``low_precision`` gives the ideal kernel of that
    dtype, see `attention`: q and k are rounded once they are normalised.
    """
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    q, k, v = qkv.to(wide).permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
    q, k = (
        _normalised(x, weight, bias, norm, eps) for x, weight, bias in ((q, q_weight, q_bias), (k, k_weight, k_bias))
    )
    return attention(q, k, v, scale=scale, low_precision=low_precision).transpose(1, 2).to(qkv.dtype)


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, eps: float) -> Tensor:
    weight, bias = (None if one is None else one.to(x.dtype) for one in (weight, bias))
    return layernorm(x, weight, bias, eps) if norm == "layernorm" else rmsnorm(x, weight, eps)
