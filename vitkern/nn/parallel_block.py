"""A transformer block whose attention and MLP run side by side (ViT-22B, arXiv 2302.05442, section 2)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.attention import attended
from vitkern.nn.heads import head_dim
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layers import DropPath, LayerScale
from vitkern.ops.branch import activate
from vitkern.ops.bypass import may_bypass
from vitkern.ops.layernorm_mlp import ACTIVATIONS


class ParallelBlock(nn.Module):
    """``x + ls(attn_out_proj(attention(q, k, v)) + mlp_out_proj(act(h)))`` with h, q, k and v of one product,
    ``in_proj(in_norm(x))``; parameters named as in `timm.models.vision_transformer.ParallelScalingBlock`.

    Args:
        dim: channels C of x (B, N, C); ``num_heads`` divides it.
        num_heads: H.
        mlp_ratio: hidden channels of the MLP over C.
        qkv_bias: q, k and v have a bias, in in_proj with that of the MLP; else that is ``mlp_bias``, alone.
        qk_norm: LayerNorm over the D channels of each query and key.
        proj_bias: the output projections have a bias.
        act: "gelu", "gelu_tanh" or "quick_gelu".
        proj_drop: dropout of act(h), in training.
        attn_drop: dropout of the attention weights, in training.
        init_values: of the LayerScale; None for none.
        drop_path: probability that a sample skips both branches, in training.
        fuse_out_proj: one output projection, ``out_proj``, of both branches side by side.
        eps: of the norms.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, or ``act`` is unknown.
    """

    mlp_bias: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        proj_bias: bool = True,
        act: str = "gelu",
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        fuse_out_proj: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"ParallelBlock: unknown act: got {act!r}; expected one of {', '.join(ACTIVATIONS)}.")
        self.num_heads, self.act = num_heads, act
        self.head_dim = head_dim("ParallelBlock", dim, num_heads)
        self.hidden_dim = hidden = int(mlp_ratio * dim)
        self.in_norm = LayerNorm(dim, eps)
        self.in_proj = nn.Linear(dim, hidden + 3 * dim, bias=qkv_bias)
        self.register_parameter("mlp_bias", None if qkv_bias else nn.Parameter(torch.zeros(hidden)))
        self.q_norm = LayerNorm(self.head_dim, eps) if qk_norm else nn.Identity()
        self.k_norm = LayerNorm(self.head_dim, eps) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.mlp_drop = nn.Dropout(proj_drop)
        self.out_proj = nn.Linear(dim + hidden, dim, bias=proj_bias) if fuse_out_proj else None
        self.attn_out_proj = None if fuse_out_proj else nn.Linear(dim, dim, bias=proj_bias)
        self.mlp_out_proj = None if fuse_out_proj else nn.Linear(hidden, dim, bias=proj_bias)
        self.ls = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        h, qkv = self._projected(self.in_norm(x)).split((self.hidden_dim, 3 * x.shape[-1]), -1)
        h = self.mlp_drop(activate(h, self.act))
        out = self._attended(qkv.unflatten(-1, (3, self.num_heads, self.head_dim)))
        if self.out_proj is not None:
            y = self.out_proj(torch.cat((out, h), -1))
        else:
            assert self.attn_out_proj is not None and self.mlp_out_proj is not None
            y = self.attn_out_proj(out) + self.mlp_out_proj(h)
        return x + self.drop_path(self.ls(y))

    def _projected(self, x: Tensor) -> Tensor:
        """(B, N, F + 3 C), the bias of the MLP with it."""
        if self.mlp_bias is None:
            return self.in_proj(x)
        bias = F.pad(self.mlp_bias, (0, 3 * x.shape[-1]))
        if may_bypass(self.in_proj, nn.Linear):
            return F.linear(x, self.in_proj.weight, bias)
        return self.in_proj(x) + bias

    def _attended(self, qkv: Tensor) -> Tensor:
        """(B, N, 3, H, D) -> (B, N, C)."""
        return attended(self, qkv).flatten(2)
