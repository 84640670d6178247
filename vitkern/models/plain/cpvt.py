"""CPVT (Chu et al. 2021, arXiv 2102.10882): a ViT without position embeddings; a convolution after the first block
tells tokens where they are, so that images of any size are taken."""

from collections.abc import Collection
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Results
from vitkern.models.plain.vit import SIZES, VisionTransformer
from vitkern.models.positional_conv import PositionalConv
from vitkern.models.registry import register

PAPER = "Conditional Positional Encodings for Vision Transformers, Chu et al. 2021, arXiv 2102.10882"


class ConditionalVisionTransformer(VisionTransformer):
    """A ViT whose positions are conditioned on the tokens (arXiv 2102.10882, section 3).

    Args:
        pos_depth: so many of the first blocks are followed by `PositionalConv`, which the class token skips.
        dynamic_img_size: take images of any whole number of patches.
        Others as of `VisionTransformer`.
    """

    def __init__(
        self, img_size: int | tuple[int, int] = 224, *, pos_depth: int = 1, dynamic_img_size: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(img_size, pos_embed="none", dynamic_img_size=dynamic_img_size, **kwargs)
        self.pos_block = nn.ModuleList(PositionalConv(self.embed_dim) for _ in range(pos_depth))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {*super().no_weight_decay(), *(f"pos_block.{i}.proj.weight" for i in range(len(self.pos_block)))}

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """As `VisionTransformer`; results of the first blocks are those after the convolution."""
        size, prefix = x.shape[-2:], self.num_prefix_tokens
        results = Results(taken, stop_early)
        x = self.embed(x)
        grid = self.patch_embed.grid_of((size[0], size[1]))
        for index, block in enumerate(self.blocks):
            x = self.run(block, x)
            if index < len(self.pos_block):
                patches = self.pos_block[index](x[:, prefix:].unflatten(1, grid)).flatten(1, 2)
                x = torch.cat([x[:, :prefix], patches], 1) if prefix else patches
            if results.take(index, x):
                break
        return x, results.found


for _size in ("tiny", "small", "base"):
    register(f"cpvt_{_size}_patch16_224", ConditionalVisionTransformer, PAPER, **SIZES[_size])
    _gap = dict(global_pool="avg", class_token=False, fc_norm=False)
    register(f"cpvt_{_size}_patch16_gap_224", ConditionalVisionTransformer, PAPER, **_gap, **SIZES[_size])
