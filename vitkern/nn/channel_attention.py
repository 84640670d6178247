"""Attention between channels (DaViT, Ding et al., arXiv 2204.03645, section 3.2)."""

import torch.nn as nn
from torch import Tensor

from vitkern.nn.heads import head_dim
from vitkern.ops.channel_attention import channel_attention
from vitkern.ops.sizes import fixed


class ChannelAttention(nn.Module):
    """softmax(k^T v / sqrt(D)) q^T over the D channels of each head, with projections; named as in
    `timm.models.davit.ChannelAttention`. Linear in the number of tokens.

    With ``value="v"``, ``dynamic_scale`` and ``qkv_bias`` it is timm's ``ChannelAttentionV2``, that of the later
    variants: softmax(q^T k / sqrt(N)) v^T.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H, the groups of channels that see one another.
        qkv_bias: q, k and v projections have a bias.
        value: which of "q" and "v" is mixed; see `vitkern.ops.channel_attention.channel_attention`.
        dynamic_scale: scale by 1 / sqrt(N), N the tokens of the call, not by 1 / sqrt(D).

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        qkv_bias: bool = False,
        value: str = "q",
        dynamic_scale: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.value, self.dynamic_scale = num_heads, value, dynamic_scale
        self.head_dim = head_dim("ChannelAttention", dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, D)
        scale = max(1, fixed(x.shape[1])) ** -0.5 if self.dynamic_scale else None
        return self.proj(channel_attention(qkv, value=self.value, scale=scale).flatten(2))
