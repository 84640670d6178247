"""Pooling by multi-head attention, MAP (Set Transformer, Lee et al., arXiv 1810.00825, section 3.2): the head of scaled
vision transformers (Zhai et al., arXiv 2106.04560, section 3.4) and of SigLIP (arXiv 2303.15343)."""

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.nn.heads import head_dim
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import Mlp, mlp_residual
from vitkern.nn.layers import DropPath
from vitkern.ops.attention import attention
from vitkern.ops.bypass import may_bypass
from vitkern.ops.class_attention import class_attention

POOLS = ("token", "avg", "")


class AttentionPool(nn.Module):
    """A few learnt latents attend to all tokens, then a residual MLP; named as in `timm.layers.AttentionPoolLatent`.

    Where ``kv`` is a plain linear layer and keys have no norm no token is projected, see
    `vitkern.ops.class_attention.class_attention`.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        out_dim: channels of the result, C by default; 0: neither output projection nor norm nor MLP.
        mlp_ratio: width of the MLP over ``out_dim``.
        qkv_bias: q and kv projections have a bias.
        q_proj: latents are projected; otherwise they are the queries.
        qk_norm: LayerNorm over the D channels of each query and key.
        latent_len: L, the number of latents.
        latent_dim: channels of a latent, C by default.
        feat_size: number of tokens, where each has a position embedding of its own.
        pool: "token" gives the first latent's result, "avg" the mean of all, "" all of them.
        norm: LayerNorm before the MLP.
        act: of the MLP, see `Mlp`.
        drop: dropout after the output projection, in training.
        eps: of the norms.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, latents that are not projected have another width, or
            ``pool`` is unknown.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        out_dim: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        q_proj: bool = True,
        qk_norm: bool = False,
        latent_len: int = 1,
        latent_dim: int | None = None,
        feat_size: int | None = None,
        pool: str = "token",
        norm: bool = True,
        act: str = "gelu",
        drop: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim("AttentionPool", dim, num_heads)
        latent_dim, out_dim = latent_dim or dim, dim if out_dim is None else out_dim
        if pool not in POOLS:
            raise ValueError(
                f"AttentionPool: pool is unknown: got {pool!r}; expected one of {', '.join(map(repr, POOLS))}."
            )
        if not q_proj and latent_dim != dim:
            raise ValueError(
                f"AttentionPool: latents are the queries and have other channels: got latent_dim={latent_dim}, "
                f"dim={dim}; expected one width. Project them with q_proj=True."
            )
        self.pool = pool
        self.pos_embed = None if feat_size is None else _drawn(feat_size, dim)
        self.latent = _drawn(1, latent_len, latent_dim)
        self.q = nn.Linear(latent_dim, dim, bias=qkv_bias) if q_proj else nn.Identity()
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.q_norm = LayerNorm(self.head_dim, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = LayerNorm(self.head_dim, eps=eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, out_dim) if out_dim else nn.Identity()
        self.proj_drop = nn.Dropout(drop)
        self.norm = LayerNorm(out_dim, eps=eps) if norm and out_dim else nn.Identity()
        self.mlp = Mlp(out_dim, int(out_dim * mlp_ratio), act) if out_dim else None
        self.drop_path = DropPath(0.0)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, C), mask as `vitkern.ops.attention.attention` takes it -> (B, out_dim), or (B, L, out_dim)."""
        if self.pos_embed is not None:
            x = x + self.pos_embed.to(x.dtype)
        plain = may_bypass(self.q, nn.Linear, nn.Identity) and may_bypass(self.q_norm, nn.Identity)
        latent = self.latent if plain else self.latent.expand(x.shape[0], -1, -1)  # who watches sees the batch
        q = self.q_norm(
            self.q(latent).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        )  # (B or 1, H, L, D)
        if may_bypass(self.k_norm, nn.Identity):
            out = class_attention(q, x, self.kv, mask=attn_mask)  # (B, L, H, D)
        else:
            rows = self.kv(x).unflatten(-1, (2, self.num_heads, self.head_dim))
            k, v = rows.permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
            k = self.k_norm(k)
            q = q.to(k.dtype).expand(x.shape[0], -1, -1, -1)
            out = attention(q, k, v.to(k.dtype), mask=attn_mask).transpose(1, 2)
        out = self.proj_drop(self.proj(out.flatten(2)))
        if self.mlp is not None:
            out = mlp_residual(out, self.norm, self.mlp, self.drop_path)
        return out[:, 0] if self.pool == "token" else out.mean(1) if self.pool == "avg" else out


def _drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=shape[-1] ** -0.5))
