"""Talking-heads attention (Shazeer et al., arXiv 2003.02436; CaiT, Touvron et al., arXiv 2103.17239)."""

import torch.nn as nn
from torch import Tensor

from vitkern.nn.heads import head_dim
from vitkern.ops.bypass import may_bypass
from vitkern.ops.talking_heads_attention import talking_heads_attention


class TalkingHeadsAttention(nn.Module):
    """Attention whose H heads are mixed before the softmax, by ``proj_l``, and after it, by ``proj_w``, with
    projections; named as in `timm.models.cait.TalkingHeadAttn`.

    Where ``proj_l``, ``proj_w`` or ``attn_drop`` is not a plain module (adapters, hooks), all three are called, on all
    weights.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        qkv_bias: q, k and v projections have a bias.
        attn_drop: dropout of the mixed weights, 0 <= p < 1, in training; above 0 PyTorch holds all of them.
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
        self.head_dim = head_dim("TalkingHeadsAttention", dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_l = nn.Linear(num_heads, num_heads)
        self.proj_w = nn.Linear(num_heads, num_heads)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, D)
        mixing = self.proj_l, self.proj_w
        if all(may_bypass(linear, nn.Linear) for linear in mixing) and may_bypass(self.attn_drop, nn.Dropout):
            dropout_p = self.attn_drop.p if self.training else 0.0
            matrices = [linear.weight for linear in mixing]
            out = talking_heads_attention(qkv, *matrices, *(linear.bias for linear in mixing), dropout_p=dropout_p)
        else:
            out = self._called(qkv)
        return self.proj_drop(self.proj(out.flatten(2)))

    def _called(self, qkv: Tensor) -> Tensor:
        """(B, N, 3, H, D) -> (B, N, H, D)."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D)
        scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
        weights = self.proj_l(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        weights = self.attn_drop(self.proj_w(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return (weights @ v).transpose(1, 2)
