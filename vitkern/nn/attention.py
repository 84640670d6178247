"""Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.2; ViT, arXiv 2010.11929)."""

from typing import Any

import torch.nn as nn
from torch import Tensor

from vitkern.nn.heads import head_dim
from vitkern.nn.layernorm import LayerNorm
from vitkern.ops.attention import attention, attention_qkvpacked
from vitkern.ops.bypass import may_bypass, plain
from vitkern.ops.qk_norm_attention import qk_norm_attention


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D)) v over H heads of D channels, with projections; named as in `timm.layers.Attention`.
    Where ``attn_drop`` is not a plain module (hooks), it is called, on all weights (B, H, N, N).

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        qkv_bias: q, k and v projections have a bias.
        qk_norm: LayerNorm over the D channels of each query and key.
        proj_bias: the output projection has a bias.
        attn_drop: dropout of the attention weights, 0 <= p < 1, in training.
        proj_drop: dropout after the output projection, in training.
        eps: of the norms of ``qk_norm``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim("Attention", dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = LayerNorm(self.head_dim, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = LayerNorm(self.head_dim, eps=eps) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, D)
        return self.proj_drop(self.proj(attended(self, qkv).flatten(2)))


def attended(module: Any, qkv: Tensor) -> Tensor:
    """Attention of qkv (B, N, 3, H, D) by the norms and the dropout of ``module`` -> (B, N, H, D)."""
    if plain(module.attn_drop, nn.Dropout):
        dropout_p = module.attn_drop.p if module.training else 0.0
        return normed_attention(qkv, module.q_norm, module.k_norm, dropout_p)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
    return dropped_attention(module, module.q_norm(q), module.k_norm(k), v).transpose(1, 2)


def dropped_attention(module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Attention of q (B, H, N, D) over k, v (B, H, M, D) by the dropout of ``module`` -> (B, H, N, D). Where that is no
    plain module (hooks), it is called, on all weights (B, H, N, M)."""
    if plain(module.attn_drop, nn.Dropout):
        return attention(q, k, v, scale=scale, dropout_p=module.attn_drop.p if module.training else 0.0)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return module.attn_drop(((q * scale) @ k.transpose(-1, -2)).softmax(-1)) @ v


def normed_attention(qkv: Tensor, q_norm: nn.Module, k_norm: nn.Module, dropout_p: float = 0.0) -> Tensor:
    """Attention of qkv (B, N, 3, H, D) whose queries and keys have norms over D -> (B, N, H, D)."""
    if may_bypass(q_norm, nn.Identity) and may_bypass(k_norm, nn.Identity):
        return attention_qkvpacked(qkv, dropout_p=dropout_p)
    if dropout_p == 0.0 and may_bypass(q_norm, LayerNorm) and may_bypass(k_norm, LayerNorm):
        parameters = q_norm.weight, q_norm.bias, k_norm.weight, k_norm.bias
        if q_norm.eps == k_norm.eps:
            return qk_norm_attention(qkv, *parameters, eps=q_norm.eps)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
    return attention(q_norm(q), k_norm(k), v, dropout_p=dropout_p).transpose(1, 2)
