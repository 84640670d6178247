"""ViTDet (Li et al. 2022, arXiv 2203.16527): a plain ViT as the backbone of a detector. Most blocks attend within
windows, four to the whole image, all with decomposed relative positions. Named as in detectron2's `ViT`."""

from collections.abc import Collection

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.backbone import Backbone
from vitkern.models.head import init_linear
from vitkern.models.mlp import build_mlp
from vitkern.models.registry import register
from vitkern.nn.decomposed_attention import DecomposedAttention
from vitkern.nn.embed import PatchEmbed, pair
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.layers import DropPath, drop_path_rates

PAPER = "Exploring Plain Vision Transformer Backbones for Object Detection, Li et al. 2022, arXiv 2203.16527"


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)). Arguments are `ViTDet`'s and `DecomposedAttention`'s."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        input_size: tuple[int, int],
        window_size: int | None,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        mlp_layer: str = "mlp",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn = DecomposedAttention(
            dim, num_heads, input_size=input_size, window_size=window_size, qkv_bias=qkv_bias
        )
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.mlp = build_mlp(mlp_layer, dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return mlp_residual(x, self.norm2, self.mlp, self.drop_path)


class ViTDet(Backbone):
    """Patches with positions, then blocks: an image -> the map of the last block (B, C, height / 16, width / 16).

    Images of any whole number of patches are taken; position embeddings are resampled (bicubic), relative positions
    interpolated.

    Args:
        img_size: pixels, one number or (height, width), which relative positions of global blocks are sized for.
        patch_size: pixels. in_chans: channels of the image.
        num_classes: logits of the mean of the map, for other uses; 0: the map itself.
        embed_dim: channels C. depth: blocks. num_heads: H. mlp_ratio: hidden channels of an MLP over C.
        qkv_bias: q, k and v projections have a bias.
        window_size: tokens, of the blocks that are not global. global_blocks: the numbers of those that are; by
            default the last of each quarter.
        pretrain_img_size: pixels of the square image that the position embeddings are for.
        drop_path_rate: DropPath of the last block; it grows linearly from 0.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`. eps: of every LayerNorm.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 1024,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 0,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        window_size: int = 14,
        global_blocks: Collection[int] | None = None,
        pretrain_img_size: int = 224,
        drop_path_rate: float = 0.0,
        mlp_layer: str = "mlp",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, embed_dim
        self.global_blocks = quarters(depth) if global_blocks is None else tuple(global_blocks)
        self.patch_embed = PatchEmbed(pair(img_size), patch_size, in_chans, embed_dim, strict_img_size=False)
        self.side = pretrain_img_size // patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, embed_dim))  # a class token's first
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio,
                input_size=self.patch_embed.grid_size,
                window_size=None if index in self.global_blocks else window_size,
                qkv_bias=qkv_bias,
                drop_path=rate,
                mlp_layer=mlp_layer,
                eps=eps,
            )
            for index, rate in enumerate(drop_path_rates(drop_path_rate, depth))
        )
        self.feature_info = [
            dict(num_chs=embed_dim, reduction=patch_size, module=f"blocks.{index}") for index in range(depth)
        ]
        self.norm = nn.Identity()
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(init_linear)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {"pos_embed", *(name for name, _ in self.named_parameters() if "rel_pos_" in name)}

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (tokens (B, img_h, img_w, C), those after the blocks numbered in ``taken``)."""
        x = self.patch_embed(x)
        position = self.pos_embed[:, 1:].unflatten(1, (self.side, self.side))
        if x.shape[1:3] != position.shape[1:3]:
            image = position.permute(0, 3, 1, 2)
            position = F.interpolate(image, size=x.shape[1:3], mode="bicubic").permute(0, 2, 3, 1)
        return self.walk(self.blocks, x + position, taken, stop_early)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits (B, num_classes) of their mean; ``pre_logits``: the mean (B, C)."""
        x = x.mean((1, 2))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, in_chans, height, width) -> map (B, C, img_h, img_w), or logits where there are classes."""
        x = self.forward_features(x)
        return self.forward_head(x) if self.num_classes else x.permute(0, 3, 1, 2)


def quarters(depth: int) -> tuple[int, ...]:
    """The last block of each quarter, which is global (arXiv 2203.16527, section 3)."""
    return tuple(depth * part // 4 - 1 for part in range(1, 5) if depth * part // 4)


SIZES = {
    "base": dict(embed_dim=768, depth=12, num_heads=12, drop_path_rate=0.1),
    "large": dict(embed_dim=1024, depth=24, num_heads=16, drop_path_rate=0.4),
    "huge": dict(embed_dim=1280, depth=32, num_heads=16, drop_path_rate=0.5),
}
for _size, _arguments in SIZES.items():
    register(f"vitdet_{_size}", ViTDet, PAPER, **_arguments)
