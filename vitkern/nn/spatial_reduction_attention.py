"""Attention to spatially reduced keys: PVT (Wang et al., arXiv 2102.12122, equations 1 to 4), PVTv2 (arXiv 2106.13797),
and the global sub-sampled attention of Twins (Chu et al., arXiv 2104.13840)."""

from typing import Any

import torch.nn as nn
from torch import Tensor

from vitkern.nn.attention import dropped_attention
from vitkern.nn.grid import as_image, as_tokens
from vitkern.nn.heads import head_dim
from vitkern.nn.layernorm import LayerNorm

POOLED = 7  # rows and columns of keys of linear reduction


class SpatialReductionAttention(nn.Module):
    """Every token attends to keys and values of an image that is reduced first; named as `timm.models.pvt_v2.Attention`
    and `timm.models.twins.GlobalSubSampleAttn`, of which it takes weights, and PVT's own code.

    Reduction is a convolution of sr_ratio x sr_ratio pixels with that stride (rows and columns that do not fill one
    are left out, as in the originals) and LayerNorm, or, ``linear``, an average to 7 x 7, a 1 x 1 convolution,
    LayerNorm and GELU. The scores of N tokens and N / sr_ratio^2 keys are never stored.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        sr_ratio: pixels that become one, each way; with 1 nothing is reduced.
        linear: as in PVTv2-Li: keys are 7 x 7, whatever the image; ``sr_ratio`` says nothing then.
        qkv_bias: q, k and v projections have a bias.
        attn_drop: dropout of the attention weights, 0 <= p < 1, in training.
        proj_drop: dropout after the output projection, in training.
        norm_eps: of the LayerNorm after the reduction; transformers' PVT has 1e-6.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``; ``sr_ratio`` below 1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        sr_ratio: int = 1,
        *,
        linear: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if sr_ratio < 1:
            raise ValueError(
                f"SpatialReductionAttention: sr_ratio is no reduction: got {sr_ratio}; expected an int of 1 or more."
            )
        self.num_heads = num_heads
        self.head_dim = head_dim("SpatialReductionAttention", dim, num_heads)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.pool = nn.AdaptiveAvgPool2d(POOLED) if linear else None
        ratio = 1 if linear else sr_ratio
        reduced = linear or sr_ratio > 1
        self.sr = nn.Conv2d(dim, dim, ratio, stride=ratio) if reduced else None
        self.norm = LayerNorm(dim, eps=norm_eps) if reduced else None
        self.act = nn.GELU() if linear else None

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, N, C), the tokens of an image of ``size`` = (H, W) row by row -> (B, N, C).

        Raises:
            ValueError: N is not H * W where tokens are reduced; the image is smaller than what becomes one.
        """
        return attend(self, x, self._reduced(x, size))

    def _reduced(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, M, C)."""
        if self.sr is None or self.norm is None:
            return x
        image = as_image("SpatialReductionAttention", x, size)
        if self.pool is not None:
            image = self.pool(image)
        elif min(size) < self.sr.stride[0]:
            raise ValueError(
                f"SpatialReductionAttention: image is smaller than one key: got size={tuple(size)}, "
                f"sr_ratio={self.sr.stride[0]}; expected both sides of sr_ratio or more. Take larger images."
            )
        x = self.norm(as_tokens(self.sr(image)))
        return x if self.act is None else self.act(x)


def attend(module: Any, x: Tensor, keys: Tensor) -> Tensor:
    """x (B, N, C) attends to keys (B, M, C), by the projections and the dropouts of ``module``."""
    q = module.q(x).unflatten(-1, (module.num_heads, -1))  # (B, N, H, D)
    k, v = module.kv(keys).unflatten(-1, (2, module.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, M, D) each
    out = dropped_attention(module, q.transpose(1, 2), k, v).transpose(1, 2)
    return module.proj_drop(module.proj(out.flatten(2)))
