"""ViT-22B (Dehghani et al. 2023, arXiv 2302.05442): attention and MLP side by side, norms of queries and keys. Named as
in timm's `ParallelScalingBlock`; its LayerNorms keep a bias, which the paper leaves out."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.plain.vit import VisionTransformer
from vitkern.models.registry import register
from vitkern.nn.attention import normed_attention
from vitkern.nn.heads import head_dim
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layers import DropPath, LayerScale

PAPER = "Scaling Vision Transformers to 22 Billion Parameters, Dehghani et al. 2023, arXiv 2302.05442"


class ParallelBlock(nn.Module):
    """x + attn(norm(x)) + mlp(norm(x)) (arXiv 2302.05442, equations 1, 2): one projection gives what both need.

    Args:
        fuse_out_proj: one projection joins both. Others as of `vitkern.models.plain.vit.Block`; ``mlp_layer`` is "mlp".

    Raises:
        ValueError: a gated MLP.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        qkv_bias: bool = False,
        qk_norm: bool = True,
        init_values: float | None = None,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        mlp_layer: str = "mlp",
        act: str = "gelu",
        eps: float = 1e-6,
        fuse_out_proj: bool = False,
    ) -> None:
        super().__init__()
        if mlp_layer != "mlp" or act != "gelu":
            raise ValueError(
                f"ParallelBlock: its MLP is the plain one: got mlp_layer={mlp_layer!r}, act={act!r}; expected 'mlp', "
                "'gelu'."
            )
        self.num_heads, self.head_dim = num_heads, head_dim("ParallelBlock", dim, num_heads)
        self.hidden_dim = int(dim * mlp_ratio)
        self.in_norm = LayerNorm(dim, eps=eps)
        self.in_proj = nn.Linear(dim, self.hidden_dim + 3 * dim, bias=qkv_bias)
        self.register_parameter("mlp_bias", None if qkv_bias else nn.Parameter(torch.zeros(self.hidden_dim)))
        self.q_norm = LayerNorm(self.head_dim, eps=eps) if qk_norm else nn.Identity()
        self.k_norm = LayerNorm(self.head_dim, eps=eps) if qk_norm else nn.Identity()
        self.attn_drop, self.mlp_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        self.out_proj: Any = nn.Linear(dim + self.hidden_dim, dim) if fuse_out_proj else None
        self.attn_out_proj: Any = None if fuse_out_proj else nn.Linear(dim, dim)
        self.mlp_out_proj: Any = None if fuse_out_proj else nn.Linear(self.hidden_dim, dim)
        self.ls = LayerScale(dim, init_values) if init_values is not None else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        hidden, qkv = self.in_proj(self.in_norm(x)).split([self.hidden_dim, 3 * x.shape[-1]], -1)
        dropout_p = self.attn_drop.p if self.training else 0.0
        qkv = qkv.unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, D)
        attended = normed_attention(qkv, self.q_norm, self.k_norm, dropout_p).flatten(2)
        hidden = self.mlp_drop(F.gelu(hidden if self.mlp_bias is None else hidden + self.mlp_bias))
        if self.out_proj is not None:
            branch = self.out_proj(torch.cat([attended, hidden], -1))
        else:
            branch = self.attn_out_proj(attended) + self.mlp_out_proj(hidden)
        return x + self.drop_path(self.ls(branch))


class ParallelVisionTransformer(VisionTransformer):
    """A ViT of parallel blocks, `ParallelBlock`, without biases of q, k and v, with norms of q and k.

    Arguments are `VisionTransformer`'s.
    """

    def __init__(
        self, img_size: int | tuple[int, int] = 224, *, qkv_bias: bool = False, qk_norm: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(img_size, qkv_bias=qkv_bias, qk_norm=qk_norm, block_fn=ParallelBlock, **kwargs)


_22b: dict[str, Any] = dict(embed_dim=6144, depth=48, num_heads=48, global_pool="map", class_token=False)
register("vit_22b_patch14_224", ParallelVisionTransformer, PAPER, patch_size=14, **_22b)
