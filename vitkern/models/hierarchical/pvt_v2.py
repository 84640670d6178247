"""PVTv2 (Wang et al. 2021, arXiv 2106.13797). Named as in `timm.models.pvt_v2`."""

from collections.abc import Collection
from typing import Any, cast

import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Checkpointed
from vitkern.models.head import init_conv, init_linear
from vitkern.models.hierarchical.pyramid import Block, Pyramid
from vitkern.models.registry import register
from vitkern.nn.conv_mlp import ConvMlp, conv_mlp_residual
from vitkern.nn.embed import ConvEmbed
from vitkern.nn.grid import as_image, as_tokens
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layers import drop_path_rates
from vitkern.nn.spatial_reduction_attention import SpatialReductionAttention

PAPER = "PVT v2: Improved Baselines with Pyramid Vision Transformer, Wang et al. 2021, arXiv 2106.13797"


class ConvBlock(Block):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), an MLP that sees the image."""

    def feed(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return conv_mlp_residual(x, self.norm2, self.mlp, self.drop_path2, size)


class Stage(Checkpointed):
    """An overlapping embedding in all stages but the first, blocks, a norm."""

    def __init__(self, dim: int, downsample: ConvEmbed | None, blocks: list[ConvBlock], eps: float) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.norm = LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C', img_h', img_w') -> (B, C, img_h, img_w), half as high and wide, rounded up, if it embeds."""
        x = x.permute(0, 2, 3, 1) if self.downsample is None else self.downsample(x)
        size, x = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        for block in self.blocks:
            x = self.run(block, x, size)
        return as_image("PyramidVisionTransformerV2", self.norm(x), size)


class PyramidVisionTransformerV2(Pyramid):
    """Stages on overlapping patches, without position embeddings: zero padding of the MLPs' convolutions gives them.

    A tuple has one entry for each stage. Images of any size are taken that give each stage a key.

    Args:
        img_size: pixels, one number or (height, width), which `describe` names. in_chans: channels of the image.
        num_classes: logits; 0 gives the pooled features.
        global_pool: "avg", or "" for logits of every token.
        depths, embed_dims, num_heads, mlp_ratios: blocks, channels, heads, hidden channels of an MLP over C.
        sr_ratios: pixels that become one key, each way. linear: keys are an average to 7 x 7 instead (PVTv2-Li).
        qkv_bias: biases of the q, k, v projections.
        drop_rate, proj_drop_rate, attn_drop_rate: dropout before the head, of projections and MLPs, of attention
            weights. drop_path_rate: DropPath of the last block; it grows linearly from 0.
        eps: of the LayerNorms of blocks and stages; those of embeddings and reductions have 1e-5.

    Raises:
        ValueError: arguments that do not fit each other, or an image that is too small.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: tuple[int, ...] = (3, 4, 6, 3),
        embed_dims: tuple[int, ...] = (64, 128, 256, 512),
        num_heads: tuple[int, ...] = (1, 2, 4, 8),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0),
        qkv_bias: bool = True,
        linear: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        lists = dict(depths=depths, num_heads=num_heads, sr_ratios=sr_ratios, mlp_ratios=mlp_ratios)
        super().__init__(img_size, in_chans, num_classes, global_pool, "stages.{}", 4, embed_dims, **lists)
        self.least = (1,) * len(depths) if linear else sr_ratios
        self.patch_embed = ConvEmbed(in_chans, embed_dims[0], 7, 4, 3)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        attention: dict[str, Any] = dict(
            linear=linear, qkv_bias=qkv_bias, attn_drop=attn_drop_rate, proj_drop=proj_drop_rate
        )
        stages = []
        for index, dim in enumerate(embed_dims):
            blocks = []
            for _ in range(depths[index]):
                attn = SpatialReductionAttention(dim, num_heads[index], sr_ratios[index], **attention)
                mlp = ConvMlp(dim, int(dim * mlp_ratios[index]), proj_drop_rate, relu=linear)
                blocks.append(ConvBlock(dim, attn, mlp, next(rates), eps))
            stages.append(Stage(dim, ConvEmbed(embed_dims[index - 1], dim, 3, 2, 1) if index else None, blocks, eps))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(init_linear).apply(init_conv)

    @property
    def embeddings(self) -> list[ConvEmbed]:
        """Of each stage."""
        later = [cast(Stage, stage).downsample for stage in self.stages]
        return [self.patch_embed, *(embed for embed in later if embed is not None)]

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (map of the last stage (B, C, img_h, img_w), those of stages in ``taken``), each after its norm."""
        return self.walk(self.stages, self.patch_embed(self.check(x)).permute(0, 3, 1, 2), taken, stop_early)

    def as_map(self, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor | None]:
        """(B, C, img_h, img_w) as it is."""
        return x, None

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        return super().forward_head(as_tokens(x), pre_logits)


WIDE: dict[str, Any] = dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8))
SIZES = {
    "b0": dict(embed_dims=(32, 64, 160, 256), num_heads=(1, 2, 5, 8), depths=(2, 2, 2, 2)),
    "b1": WIDE | dict(depths=(2, 2, 2, 2)),
    "b2": WIDE | dict(depths=(3, 4, 6, 3)),
    "b2_li": WIDE | dict(depths=(3, 4, 6, 3), linear=True),
    "b3": WIDE | dict(depths=(3, 4, 18, 3)),
    "b4": WIDE | dict(depths=(3, 8, 27, 3)),
    "b5": WIDE | dict(depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}
for _size, _arguments in SIZES.items():
    register(f"pvt_v2_{_size}", PyramidVisionTransformerV2, PAPER, **_arguments)
