"""Differential attention: the difference of two softmaxes (Ye et al., Differential Transformer, arXiv 2410.05258)."""

import math

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.nn.heads import head_dim
from vitkern.nn.rmsnorm import RMSNorm
from vitkern.ops.attention import attention


class DifferentialAttention(nn.Module):
    """(softmax(q1 k1^T / sqrt(D)) - lambda softmax(q2 k2^T / sqrt(D))) v with lambda learnt, RMSNorm of each head, a
    factor, and projections; named as in `timm.layers.DiffAttention`. Scores are never stored.

    A head has 2 D = dim / num_heads channels of v, and two queries and keys of D. lambda is exp(lambda_q1 . lambda_k1)
    - exp(lambda_q2 . lambda_k2) + lambda_init (equation 2), the result is scaled by 1 - lambda_init.

    Args:
        dim: channels C; ``num_heads`` divides it, and 2 what is left.
        num_heads: H.
        qkv_bias: q, k and v projections have a bias.
        qk_norm: RMSNorm over the D channels of each query and key.
        scale_norm: RMSNorm before the output projection.
        proj_bias: the output projection has a bias.
        attn_drop: dropout of the weights of each softmax, 0 <= p < 1, in training. Read, not
            called: its hooks do not run.
        proj_drop: dropout after the output projection, in training.
        depth: number of the block, from 0: lambda_init is 0.8 - 0.6 exp(-0.3 depth).
        dual_lambda: lambda is exp(lambda_a) - exp(lambda_b) + lambda_init, two numbers.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, or what is left is odd.
    """

    lambda_a: Tensor
    lambda_b: Tensor
    lambda_q1: Tensor
    lambda_k1: Tensor
    lambda_q2: Tensor
    lambda_k2: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        depth: int = 0,
        dual_lambda: bool = False,
    ) -> None:
        super().__init__()
        width = head_dim("DifferentialAttention", dim, num_heads)
        if width % 2:
            raise ValueError(
                f"DifferentialAttention: a head does not split in two: got dim={dim}, num_heads={num_heads}; expected "
                "an even number of channels of each head. Take other heads."
            )
        self.num_heads, self.head_dim = num_heads, width // 2
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = RMSNorm(self.head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = RMSNorm(dim, eps=1e-6) if scale_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)
        self.dual_lambda = dual_lambda
        names = ("a", "b") if dual_lambda else ("q1", "k1", "q2", "k2")
        for name in names:
            value = torch.zeros(()) if dual_lambda else 0.1 * torch.randn(self.head_dim)
            self.register_parameter(f"lambda_{name}", nn.Parameter(value))
        self.sub_norm = RMSNorm(width, eps=1e-5)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * depth)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C); ``mask`` as in `vitkern.ops.attention.attention`."""
        q, k, v = self.qkv(x).chunk(3, -1)
        q = self.q_norm(q.unflatten(-1, (self.num_heads, 2, self.head_dim)))  # (B, N, H, 2, D)
        k = self.k_norm(k.unflatten(-1, (self.num_heads, 2, self.head_dim)))
        v = v.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, 2 D)
        dropout_p = self.attn_drop.p if self.training else 0.0
        q, k = q.permute(3, 0, 2, 1, 4), k.permute(3, 0, 2, 1, 4)  # (2, B, H, N, D)
        one, other = (attention(q[i], k[i], v, mask=mask, dropout_p=dropout_p) for i in range(2))
        out = (one - self._lambda().to(one.dtype) * other).transpose(1, 2)  # (B, N, H, 2 D)
        out = self.sub_norm(out) * (1 - self.lambda_init)
        return self.proj_drop(self.proj(self.norm(out.flatten(2))))

    def _lambda(self) -> Tensor:
        if self.dual_lambda:
            return self.lambda_a.exp() - self.lambda_b.exp() + self.lambda_init
        one, other = (self.lambda_q1 * self.lambda_k1).sum(), (self.lambda_q2 * self.lambda_k2).sum()
        return one.float().exp() - other.float().exp() + self.lambda_init
