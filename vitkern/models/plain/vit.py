"""Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929). Named as in `timm.models.vision_transformer`."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.backbone import Backbone
from vitkern.models.head import check_pool, init_linear, pool
from vitkern.models.mlp import build_mlp
from vitkern.models.registry import register
from vitkern.nn.attention import Attention
from vitkern.nn.attention_pool import AttentionPool
from vitkern.nn.embed import PatchEmbed
from vitkern.nn.grid import as_image
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.layers import DropPath, LayerScale, drop_path_rates

PAPER = "An Image is Worth 16x16 Words, Dosovitskiy et al. 2020, arXiv 2010.11929"


POOLS = ("token", "avg", "max", "avgmax", "map", "")


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)) (arXiv 2010.11929, equations 2, 3); LayerScale is optional."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        init_values: float | None = None,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        mlp_layer: str = "mlp",
        act: str = "gelu",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn = Attention(
            dim, num_heads, qkv_bias=qkv_bias, qk_norm=qk_norm, attn_drop=attn_drop, proj_drop=proj_drop, eps=eps
        )
        self.ls1 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.mlp = build_mlp(mlp_layer, dim, int(dim * mlp_ratio), act, proj_drop)
        self.ls2 = LayerScale(dim, init_values) if init_values else nn.Identity()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return mlp_residual(x, self.norm2, self.mlp, self.drop_path2, self.ls2)


class VisionTransformer(Backbone):
    """Patches, position embeddings, ``depth`` blocks, a head.

    Args:
        img_size: pixels, one number or (height, width); any whole number of patches.
        patch_size: pixels.
        in_chans: channels of the image.
        num_classes: logits; 0 gives the pooled features.
        global_pool: "token" (class token), "avg", "max", "avgmax" over the patches, "map" (`vitkern.nn.AttentionPool`
            over them, arXiv 2106.04560, section 3.4), or "" for all tokens.
        embed_dim: channels C. depth: blocks. num_heads: H. mlp_ratio: hidden channels of an MLP over C.
        qkv_bias, qk_norm: as in `vitkern.nn.Attention`.
        init_values: start of LayerScale; None: there is none.
        class_token: a class token precedes the patches. reg_tokens: so many register tokens follow it.
        pos_embed: "learn", or "none": there are no position embeddings.
        no_embed_class: class and register tokens have no position embedding.
        pre_norm: a norm precedes the blocks, and the projection of patches has no bias, as in CLIP.
        fc_norm: the last norm follows the pooling; by default it does for "avg", "max", "avgmax".
        dynamic_img_size: take images of any whole number of patches; position embeddings are resampled (bicubic,
            antialiased).
        drop_rate, pos_drop_rate, proj_drop_rate, attn_drop_rate: dropout before the head, of the embedded tokens, of
            projections and MLPs, of attention weights. drop_path_rate: DropPath of the last block; it grows linearly
            from 0.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`.
        act: "gelu", "gelu_tanh" or "quick_gelu".
        eps: of every LayerNorm; 1e-6 in timm and torchvision, 1e-12 in transformers' ViT and DeiT.
        embed_layer: what makes tokens of an image, called as `vitkern.nn.PatchEmbed`. block_fn: called as `Block`.

    Raises:
        ValueError: arguments that do not fit each other.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        init_values: float | None = None,
        class_token: bool = True,
        pos_embed: str = "learn",
        no_embed_class: bool = False,
        reg_tokens: int = 0,
        pre_norm: bool = False,
        fc_norm: bool | None = None,
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mlp_layer: str = "mlp",
        act: str = "gelu",
        eps: float = 1e-6,
        embed_layer: Callable[..., Any] = PatchEmbed,
        block_fn: Callable[..., nn.Module] = Block,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_pool(name, global_pool, POOLS)
        self._check_token(global_pool, class_token)
        if pos_embed not in ("learn", "none"):
            raise ValueError(f"{name}: unknown positions: got pos_embed={pos_embed!r}; expected 'learn' or 'none'.")
        self.num_classes, self.global_pool, self.embed_dim = num_classes, global_pool, embed_dim
        self.num_features = embed_dim
        self.num_prefix_tokens = int(class_token) + reg_tokens
        self.no_embed_class, self.dynamic_img_size = no_embed_class, dynamic_img_size

        sizes = dict(img_size=img_size, patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim)
        self.patch_embed = embed_layer(**sizes, bias=not pre_norm, strict_img_size=not dynamic_img_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, reg_tokens, embed_dim)) if reg_tokens else None
        embedded = self.patch_embed.num_patches + (0 if no_embed_class else self.num_prefix_tokens)
        self.pos_embed = nn.Parameter(torch.zeros(1, embedded, embed_dim)) if pos_embed == "learn" else None
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.norm_pre = LayerNorm(embed_dim, eps=eps) if pre_norm else nn.Identity()
        block: dict[str, Any] = dict(qkv_bias=qkv_bias, qk_norm=qk_norm, init_values=init_values)
        block |= dict(proj_drop=proj_drop_rate, attn_drop=attn_drop_rate, mlp_layer=mlp_layer, act=act, eps=eps)
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.Sequential(
            *(block_fn(embed_dim, num_heads, mlp_ratio, drop_path=rate, **block) for rate in rates)
        )
        self.feature_info = [
            dict(num_chs=embed_dim, reduction=max(self.patch_embed.patch_size), module=f"blocks.{index}")
            for index in range(depth)
        ]
        norm_after_pool = global_pool in ("avg", "max", "avgmax") if fc_norm is None else fc_norm
        self.norm = nn.Identity() if norm_after_pool else LayerNorm(embed_dim, eps=eps)
        self.attn_pool = None
        if global_pool == "map":
            self.attn_pool = AttentionPool(embed_dim, num_heads, mlp_ratio=mlp_ratio, act=act, eps=eps)
        self.fc_norm = LayerNorm(embed_dim, eps=eps) if norm_after_pool else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Random weights: truncated normal of deviation 0.02 for linear layers and position embeddings."""
        self.apply(init_linear)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=1e-6)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        names = {"pos_embed", "cls_token", "reg_token", "dist_token"}
        return names & {name for name, _ in self.named_parameters(recurse=False)}

    def _check_token(self, global_pool: str, class_token: bool) -> None:
        if global_pool == "token" and not class_token:
            raise ValueError(
                f"{type(self).__name__}: no token to pool: got global_pool='token', class_token=False; "
                "expected global_pool='avg'."
            )

    def _prefix_tokens(self) -> list[Tensor]:
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

    def _position(self, position: Tensor, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid of patches: (1, prefix + patches, C)."""
        if grid == self.patch_embed.grid_size:
            return position
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        patches = position[:, prefix:].unflatten(1, self.patch_embed.grid_size).permute(0, 3, 1, 2)
        patches = F.interpolate(patches.float(), size=grid, mode="bicubic", antialias=True).to(position.dtype)
        return torch.cat([position[:, :prefix], patches.flatten(2).transpose(1, 2)], 1)

    def embed(self, x: Tensor) -> Tensor:
        """Image (B, in_chans, height, width) -> tokens with positions (B, N, C), prefix tokens first."""
        x = self.patch_embed(x)
        position = 0 if self.pos_embed is None else self._position(self.pos_embed, (x.shape[1], x.shape[2]))
        x = x.flatten(1, 2)
        prefix = [token.expand(x.shape[0], -1, -1) for token in self._prefix_tokens()]
        if self.no_embed_class:
            x = torch.cat([*prefix, x + position], 1)
        else:
            x = torch.cat([*prefix, x], 1) + position
        return self.norm_pre(self.pos_drop(x))

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (all tokens before the last norm (B, N, C), those after the blocks numbered in ``taken``)."""
        return self.walk(self.blocks, self.embed(x), taken, stop_early)

    def as_map(self, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) -> ((B, C, img_h, img_w), prefix tokens)."""
        prefix = self.num_prefix_tokens
        image = as_image(type(self).__name__, x[:, prefix:], self.patch_embed.grid_of(size))
        return image, x[:, :prefix] if prefix else None

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As of every backbone; what pools goes with the head."""
        if prune_head:
            self.attn_pool, self.fc_norm, self.global_pool = None, nn.Identity(), ""
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    def set_pool(self, global_pool: str) -> None:
        """Another pooling; where the last norm stands stays as it was built."""
        name = type(self).__name__
        check_pool(name, global_pool, POOLS)
        self._check_token(global_pool, self.cls_token is not None)
        if global_pool == "map" and self.attn_pool is None:
            raise ValueError(
                f"{name}: there are no latents to pool with: got global_pool='map' for a model of "
                f"global_pool={self.global_pool!r}; expected a model that is built with 'map'."
            )
        if global_pool != "map":
            self.attn_pool = None
        self.global_pool = global_pool

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool:
            patches = x[:, self.num_prefix_tokens :]
            x = pool(patches, self.global_pool) if self.attn_pool is None else self.attn_pool(patches)
        x = self.head_drop(self.fc_norm(x))
        return x if pre_logits else self.head(x)


SIZES = {
    "tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "small": dict(embed_dim=384, depth=12, num_heads=6),
    "base": dict(embed_dim=768, depth=12, num_heads=12),
    "large": dict(embed_dim=1024, depth=24, num_heads=16),
    "huge": dict(embed_dim=1280, depth=32, num_heads=16),
}
VARIANTS = {
    "tiny": "16_224 16_384",
    "small": "8_224 16_224 16_384 32_224 32_384",
    "base": "8_224 16_224 16_384 32_224 32_384",
}
VARIANTS.update(large="14_224 16_224 16_384 32_224 32_384", huge="14_224")
# Their checkpoints of the first choice have no head, and neither have timm's models of these names.
HEADLESS = {"vit_small_patch8_224", "vit_large_patch32_224", "vit_huge_patch14_224"}

for _size, _variants in VARIANTS.items():
    for _variant in _variants.split():
        _patch, _pixels = map(int, _variant.split("_"))
        _name = f"vit_{_size}_patch{_variant}"
        _head = {"num_classes": 0} if _name in HEADLESS else {}
        register(_name, VisionTransformer, PAPER, img_size=_pixels, patch_size=_patch, **SIZES[_size], **_head)
