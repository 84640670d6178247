"""Twins (Chu et al. 2021, arXiv 2104.13840): PCPVT and SVT. Named as in `timm.models.twins`."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Results
from vitkern.models.head import init_conv, init_linear
from vitkern.models.hierarchical.pyramid import Block, Pyramid
from vitkern.models.mlp import build_mlp
from vitkern.models.positional_conv import PositionalConv
from vitkern.models.registry import register
from vitkern.nn.embed import ConvEmbed
from vitkern.nn.grid import as_image
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layers import drop_path_rates
from vitkern.nn.spatial_reduction_attention import SpatialReductionAttention
from vitkern.nn.window_attention import WindowAttention

PAPER = "Twins: Revisiting the Design of Spatial Attention in Vision Transformers, Chu et al. 2021, arXiv 2104.13840"


class LocallyGroupedAttention(WindowAttention):
    """Attention in windows, of tokens row by row (section 3.2)."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """(B, N, C), the tokens of an image of ``size`` -> the same shape."""
        return super().forward(x.unflatten(1, size)).flatten(1, 2)


class PositionEncoder(PositionalConv):
    """Of tokens row by row, named as there."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.proj = nn.Sequential(self.proj)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """(B, N, C), the tokens of an image of ``size`` -> the same shape."""
        return super().forward(x.unflatten(1, size)).flatten(1, 2)


class Twins(Pyramid):
    """Stages whose first block is followed by a positional convolution; attention to reduced keys (PCPVT), or by turns
    within windows and to reduced keys (SVT).

    A tuple has one entry for each stage. Images of any size are taken that give each stage a key.

    Args:
        img_size: pixels, one number or (height, width), which `describe` names. patch_size: of the first stage; 2 in
            the others. in_chans: channels of the image.
        num_classes: logits; 0 gives the pooled features.
        global_pool: "avg", or "" for logits of every token.
        embed_dims, num_heads, mlp_ratios, depths: channels, heads, hidden channels of an MLP over C, blocks.
        sr_ratios: pixels that become one key, each way.
        wss: sides of the windows of the first, third, ... block; None: these attend to reduced keys too.
        drop_rate, pos_drop_rate, proj_drop_rate, attn_drop_rate: dropout before the head, of embedded tokens, of
            projections and MLPs, of attention weights. drop_path_rate: DropPath of the last block; it grows linearly
            from 0.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`.
        eps: of the LayerNorms of blocks and the last one; those of embeddings and reductions have 1e-5.

    Raises:
        ValueError: arguments that do not fit each other, or an image that is too small.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: tuple[int, ...] = (64, 128, 256, 512),
        num_heads: tuple[int, ...] = (1, 2, 4, 8),
        mlp_ratios: tuple[float, ...] = (4, 4, 4, 4),
        depths: tuple[int, ...] = (3, 4, 6, 3),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        wss: tuple[int, ...] | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mlp_layer: str = "mlp",
        eps: float = 1e-6,
    ) -> None:
        lists: dict[str, Sequence] = dict(
            num_heads=num_heads, mlp_ratios=mlp_ratios, depths=depths, sr_ratios=sr_ratios, wss=wss or depths
        )
        super().__init__(img_size, in_chans, num_classes, global_pool, "blocks.{}", patch_size, embed_dims, **lists)
        # Blocks of windows alone reduce nothing.
        self.least = [sr if wss is None or depth > 1 else 1 for sr, depth in zip(sr_ratios, depths, strict=True)]
        rates, stages = iter(drop_path_rates(drop_path_rate, sum(depths))), len(depths)
        dropped: dict[str, Any] = dict(attn_drop=attn_drop_rate, proj_drop=proj_drop_rate)
        self.patch_embeds, self.blocks = nn.ModuleList(), nn.ModuleList()
        for index, dim in enumerate(embed_dims):
            patch = 2 if index else patch_size
            self.patch_embeds.append(ConvEmbed(embed_dims[index - 1] if index else in_chans, dim, patch, patch))
            blocks = nn.ModuleList()
            for number in range(depths[index]):
                attn: nn.Module
                if wss is None or number % 2:
                    attn = SpatialReductionAttention(dim, num_heads[index], sr_ratios[index], **dropped)
                else:
                    attn = LocallyGroupedAttention(dim, num_heads[index], wss[index], rel_pos=False, **dropped)
                mlp = build_mlp(mlp_layer, dim, int(dim * mlp_ratios[index]), drop=proj_drop_rate)
                blocks.append(Block(dim, attn, mlp, next(rates), eps))
            self.blocks.append(blocks)
        self.pos_drops = nn.ModuleList(nn.Dropout(pos_drop_rate) for _ in range(stages))
        self.pos_block = nn.ModuleList(PositionEncoder(dim) for dim in embed_dims)
        self.norm = LayerNorm(self.num_features, eps=eps)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(init_linear).apply(init_conv)

    @property
    def embeddings(self) -> list[ConvEmbed]:
        """Of each stage."""
        return cast(list[ConvEmbed], list(self.patch_embeds))

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last of ``indices``, and the norm and the head if asked; returns the indices."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        for parts in (self.patch_embeds, self.pos_drops, self.pos_block):
            del parts[taken[-1] + 1 :]
        return taken

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {name for name, _ in self.named_parameters() if name.startswith("pos_block.")}

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (tokens of the last stage before the norm (B, N, C), those of stages in ``taken``)."""
        x, results = self.check(x), Results(taken, stop_early)
        stages = zip(self.patch_embeds, self.pos_drops, self.blocks, self.pos_block, strict=True)
        for index, (embed, drop, blocks, encoder) in enumerate(stages):
            tokens = embed(x)
            size = tokens.shape[1], tokens.shape[2]
            tokens = drop(tokens.flatten(1, 2))
            for number, block in enumerate(cast(nn.ModuleList, blocks)):
                tokens = self.run(block, tokens, size)
                if number == 0:
                    tokens = encoder(tokens, size)
            if results.take(index, tokens):
                break
            x = as_image("Twins", tokens, size)
        return tokens, results.found


def _variants() -> Iterator[tuple[str, dict[str, Any]]]:
    shape: dict[str, Any] = dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4))
    for size, depths in dict(small=(3, 4, 6, 3), base=(3, 4, 18, 3), large=(3, 8, 27, 3)).items():
        yield f"twins_pcpvt_{size}", shape | dict(depths=depths)
    for size, dim, deep in (("small", 64, (2, 2, 10, 4)), ("base", 96, (2, 2, 18, 2)), ("large", 128, (2, 2, 18, 2))):
        heads = tuple(dim // 32 << index for index in range(4))  # 32 channels each
        yield (
            f"twins_svt_{size}",
            dict(embed_dims=tuple(32 * n for n in heads), num_heads=heads, depths=deep, wss=(7,) * 4),
        )


for _name, _arguments in _variants():
    register(_name, Twins, PAPER, **_arguments)
