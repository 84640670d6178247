"""Neighbourhood attention as a module: NAT (arXiv 2204.07143) and DiNAT (arXiv 2209.15001)."""

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.nn.embed import pair
from vitkern.nn.heads import head_dim
from vitkern.ops.neighborhood_attention import neighborhood_attention
from vitkern.ops.projection import projected


class NeighborhoodAttention(nn.Module):
    """softmax(q k^T * scale + B) v over the window around each token, B a table of relative positions.

    (B, img_h, img_w, C) -> the same. Parameters are named as in NATTEN 0.14 and the NAT repository: qkv, rpb, proj. An
    image smaller than kernel_size * dilation is padded at the bottom and right with zeros before the projection.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        kernel_size: odd, one number or (height, width).
        dilation: one number or (height, width).
        bias: learn the table ``rpb`` (H, 2 kernel_h - 1, 2 kernel_w - 1).
        qkv_bias: q, k and v projections have a bias.
        qk_scale: factor of the scores; (C / H) ** -0.5 by default.
        proj_drop: dropout after the output projection, in training.

    Raises:
        ValueError: heads do not divide the channels, the kernel has no centre, or the dilation is not above 0.
    """

    rpb: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int | tuple[int, int],
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        head_dim("NeighborhoodAttention", dim, num_heads)
        self.num_heads, self.scale = num_heads, qk_scale
        self.kernel_size, self.dilation = pair(kernel_size), pair(dilation)
        if any(size % 2 == 0 or size <= 0 for size in self.kernel_size):
            raise ValueError(
                f"NeighborhoodAttention: the kernel has no centre: got kernel_size={self.kernel_size}; "
                "expected odd sizes. Take one more or one less."
            )
        if min(self.dilation) < 1:
            raise ValueError(
                f"NeighborhoodAttention: the dilation is not usable: got dilation={self.dilation}; expected 1 or more."
            )
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        rpb = torch.zeros(num_heads, *(2 * size - 1 for size in self.kernel_size)) if bias else None
        self.register_parameter("rpb", None if rpb is None else nn.Parameter(nn.init.trunc_normal_(rpb, std=0.02)))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        small = any(n < k * d for n, k, d in zip(x.shape[1:3], self.kernel_size, self.dilation, strict=True))
        qkv, padding = projected("neighborhood_attention", x, self.qkv, self.num_heads, small)
        out = neighborhood_attention(
            qkv, num_heads=self.num_heads, kernel=self.kernel_size, dilation=self.dilation, table=self.rpb,
            padding=padding, scale=self.scale,
        )  # fmt: skip
        return self.proj_drop(self.proj(out))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, kernel_size={self.kernel_size}, dilation={self.dilation}"
