"""Cross-covariance attention (XCiT, El-Nouby et al., arXiv 2106.09681, section 3.2)."""

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.nn.heads import head_dim
from vitkern.ops.channel_attention import cross_covariance_attention


class CrossCovarianceAttention(nn.Module):
    """softmax(t (q / |q|)^T (k / |k|)) v^T over the D channels of each head, norms over all tokens, with projections
    and a temperature t for each head; named as in `timm.models.xcit.XCA`. Linear in the number of tokens.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        qkv_bias: q, k and v projections have a bias.
        proj_drop: dropout after the output projection, in training.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, qkv_bias: bool = False, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim("CrossCovarianceAttention", dim, num_heads)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, D)
        out = cross_covariance_attention(qkv, self.temperature)  # (B, N, H, D)
        return self.proj_drop(self.proj(out.flatten(2)))
