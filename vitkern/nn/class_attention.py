"""Class attention (CaiT, Touvron et al., arXiv 2103.17239, section 3)."""

import torch.nn as nn
from torch import Tensor

from vitkern.nn.attention import dropped_attention
from vitkern.nn.heads import head_dim
from vitkern.ops.bypass import plain
from vitkern.ops.class_attention import class_attention


class ClassAttention(nn.Module):
    """The class token, which is the first, attends to all tokens; named as in `timm.models.cait.ClassAttn`.

    Where ``k`` and ``v`` are plain linear layers no token is projected, see
    `vitkern.ops.class_attention.class_attention`.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        qkv_bias: q, k and v projections have a bias.
        attn_drop: dropout of the attention weights, 0 <= p < 1, in training.
        proj_drop: dropout after the output projection, in training.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim("ClassAttention", dim, num_heads)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k = nn.Linear(dim, dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C), the class token first -> (B, 1, C)."""
        q = self.q(x[:, 0]).unflatten(-1, (self.num_heads, 1, self.head_dim))  # (B, H, 1, D)
        if plain(self.attn_drop, nn.Dropout):
            dropout_p = self.attn_drop.p if self.training else 0.0
            out = class_attention(q, x, self.k, self.v, dropout_p=dropout_p)  # (B, 1, H, D)
        else:
            k, v = (project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for project in (self.k, self.v))
            out = dropped_attention(self, q, k, v).transpose(1, 2)
        return self.proj_drop(self.proj(out.flatten(2)))
