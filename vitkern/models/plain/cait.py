"""CaiT (Touvron et al. 2021, arXiv 2103.17239): blocks of talking heads for the patches, then blocks in which the class
token alone attends; all branches have LayerScale. Named as in `timm.models.cait`."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Backbone
from vitkern.models.head import check_pool, init_linear
from vitkern.models.mlp import build_mlp
from vitkern.models.registry import register
from vitkern.nn.class_attention import ClassAttention
from vitkern.nn.embed import PatchEmbed
from vitkern.nn.grid import as_image
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.layers import DropPath
from vitkern.nn.talking_heads_attention import TalkingHeadsAttention

PAPER = "Going deeper with Image Transformers, Touvron et al. 2021, arXiv 2103.17239"


class Block(nn.Module):
    """x + gamma_1 attn(norm1(x)), then x + gamma_2 mlp(norm2(x)) (arXiv 2103.17239, equation 4)."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        init_values: float,
        *,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        mlp_layer: str = "mlp",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn = attn
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.mlp = build_mlp(mlp_layer, dim, int(dim * mlp_ratio), drop=proj_drop)
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((dim,), float(init_values))) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Patches (B, N, C) -> the same."""
        return self.residuals(x, x)

    def residuals(self, x: Tensor, read: Tensor) -> Tensor:
        """``x``, of which ``read`` says what attention sees, with both branches added."""
        x = x + self.drop_path(self.attn(self.norm1(read)) * self.gamma_1)
        return mlp_residual(x, self.norm2, self.mlp, self.drop_path, self.gamma_2)


class ClassBlock(Block):
    """A block that changes the class token alone (arXiv 2103.17239, section 3)."""

    def forward(self, x: Tensor, x_cls: Tensor) -> Tensor:  # type: ignore[override] # as timm's
        """Patches (B, N, C), class token (B, 1, C) -> class token."""
        return self.residuals(x_cls, torch.cat([x_cls, x], 1))


class Cait(Backbone):
    """Patches with positions, ``depth`` blocks, a class token and its blocks, a head.

    Args:
        img_size: pixels, one number or (height, width); any whole number of patches. patch_size: pixels.
        in_chans: channels of the image. num_classes: logits; 0 gives the pooled features.
        global_pool: "token" (class token), "avg" over the patches, or "" for all tokens.
        embed_dim: channels C. depth: blocks. num_heads: H. mlp_ratio: hidden channels of an MLP over C.
        qkv_bias: q, k and v projections have a bias. init_values: start of LayerScale.
        depth_token_only, mlp_ratio_token_only: of the class token's blocks.
        drop_rate, pos_drop_rate, proj_drop_rate, attn_drop_rate: dropout before the head, of the embedded tokens, of
            projections and MLPs, of attention weights. drop_path_rate: DropPath of every block of patches.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`. eps: of every LayerNorm.

    Raises:
        ValueError: arguments that do not fit each other.
    """

    POOLS = ("token", "avg", "")

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float = 1e-4,
        depth_token_only: int = 2,
        mlp_ratio_token_only: float = 4.0,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mlp_layer: str = "mlp",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_pool("Cait", global_pool, self.POOLS)
        self.num_classes, self.global_pool, self.num_features = num_classes, global_pool, embed_dim
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches, embed_dim))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        attention: dict[str, Any] = dict(qkv_bias=qkv_bias, attn_drop=attn_drop_rate, proj_drop=proj_drop_rate)
        self.blocks = nn.Sequential(
            *(
                Block(
                    embed_dim,
                    TalkingHeadsAttention(embed_dim, num_heads, **attention),
                    mlp_ratio,
                    init_values,
                    proj_drop=proj_drop_rate,
                    drop_path=drop_path_rate,
                    mlp_layer=mlp_layer,
                    eps=eps,
                )
                for _ in range(depth)
            )
        )
        self.blocks_token_only = nn.ModuleList(
            ClassBlock(
                embed_dim,
                ClassAttention(embed_dim, num_heads, qkv_bias=qkv_bias),
                mlp_ratio_token_only,
                init_values,
                mlp_layer=mlp_layer,
                eps=eps,
            )
            for _ in range(depth_token_only)
        )
        self.feature_info = [
            dict(num_chs=embed_dim, reduction=patch_size, module=f"blocks.{index}") for index in range(depth)
        ]
        self.norm = LayerNorm(embed_dim, eps=eps)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(init_linear)
        for parameter in (self.pos_embed, self.cls_token):
            nn.init.trunc_normal_(parameter, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {"pos_embed", "cls_token"}

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (class token and patches (B, 1 + N, C), patches after the blocks numbered in ``taken``)."""
        x = self.pos_drop(self.patch_embed(x).flatten(1, 2) + self.pos_embed)
        x, found = self.walk(self.blocks, x, taken, stop_early)
        return x if stop_early else self.attend_class(x), found

    def attend_class(self, x: Tensor) -> Tensor:
        """Patches (B, N, C) -> class token and patches (B, 1 + N, C)."""
        x_cls = self.cls_token.expand(x.shape[0], -1, -1)
        for block in self.blocks_token_only:
            x_cls = self.run(block, x, x_cls)
        return torch.cat([x_cls, x], 1)

    def as_map(self, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) -> ((B, C, img_h, img_w), None)."""
        return as_image("Cait", x, self.patch_embed.grid_of(size)), None

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As of every backbone; the class token's blocks go with the head, and it is not trained."""
        if prune_head:
            self.blocks_token_only = nn.ModuleList()
            self.cls_token.requires_grad_(False)
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        if self.global_pool:
            x = x[:, 0] if self.global_pool == "token" else x[:, 1:].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)


SIZES = {
    "xxs24": dict(embed_dim=192, depth=24, num_heads=4, init_values=1e-5),
    "xxs36": dict(embed_dim=192, depth=36, num_heads=4, init_values=1e-5),
    "xs24": dict(embed_dim=288, depth=24, num_heads=6, init_values=1e-5),
    "s24": dict(embed_dim=384, depth=24, num_heads=8, init_values=1e-5),
    "s36": dict(embed_dim=384, depth=36, num_heads=8, init_values=1e-6),
    "m36": dict(embed_dim=768, depth=36, num_heads=16, init_values=1e-6),
    "m48": dict(embed_dim=768, depth=48, num_heads=16, init_values=1e-6),
}
VARIANTS = "xxs24_224 xxs24_384 xxs36_224 xxs36_384 xs24_384 s24_224 s24_384 s36_384 m36_384 m48_448"

for _variant in VARIANTS.split():
    _size, _pixels = _variant.split("_")
    register(f"cait_{_variant}", Cait, PAPER, img_size=int(_pixels), **SIZES[_size])
