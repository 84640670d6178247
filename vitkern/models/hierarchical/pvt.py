"""Pyramid Vision Transformer (Wang et al. 2021, arXiv 2102.12122). Named as in its authors' `pvt.py`."""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.backbone import Results
from vitkern.models.head import init_linear
from vitkern.models.hierarchical.pyramid import Block, Pyramid
from vitkern.models.mlp import build_mlp
from vitkern.models.registry import register
from vitkern.models.tables import add_family
from vitkern.nn.embed import ConvEmbed
from vitkern.nn.grid import as_image
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layers import drop_path_rates
from vitkern.nn.spatial_reduction_attention import SpatialReductionAttention

PAPER = "Pyramid Vision Transformer: A Versatile Backbone for Dense Prediction, Wang et al. 2021, arXiv 2102.12122"


class PyramidVisionTransformer(Pyramid):
    """Stages with learnt positions and attention to reduced keys; a class token joins in the last one (section 3).

    A tuple has one entry for each stage. Images of other sizes than ``img_size`` are taken: positions are resampled
    (bilinear).

    Args:
        img_size: pixels, one number or (height, width). patch_size: of the first stage; 2 in the others.
        in_chans: channels of the image. num_classes: logits; 0 gives the pooled features.
        global_pool: "token" (class token), "avg" over the tokens of the last stage, or "" for all tokens.
        embed_dims, depths, num_heads, mlp_ratios: channels, blocks, heads, hidden channels of an MLP over C.
        sr_ratios: pixels that become one key, each way; 1 in the last stage.
        qkv_bias: biases of the q, k, v projections.
        drop_rate: dropout of embedded tokens, projections and MLPs. attn_drop_rate: of attention weights.
        drop_path_rate: DropPath of the last block; it grows linearly from 0.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`.
        eps: of the LayerNorms of blocks and the last one. embed_eps: of those after embeddings and reductions; both
            are 1e-6 in transformers.

    Raises:
        ValueError: arguments that do not fit each other, or an image that is too small.
    """

    POOLS = ("token", "avg", "")
    num_prefix_tokens = 1

    hub_ids: ClassVar = {f"pvt_{size}": f"Zetatech/pvt-{size}-224" for size in ("tiny", "small", "medium", "large")}

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        depths: tuple[int, ...] = (3, 4, 6, 3),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        mlp_layer: str = "mlp",
        eps: float = 1e-6,
        embed_eps: float = 1e-5,
    ) -> None:
        lists = dict(depths=depths, num_heads=num_heads, mlp_ratios=mlp_ratios, sr_ratios=sr_ratios)
        super().__init__(img_size, in_chans, num_classes, global_pool, "block{}", patch_size, embed_dims, **lists)
        for index, row in enumerate(self.feature_info, 1):
            row["module"] = f"block{index}"  # they count from 1
        if sr_ratios[-1] != 1:
            raise ValueError(
                f"PyramidVisionTransformer: a class token is not reduced: got sr_ratios={tuple(sr_ratios)}; expected 1 "
                "in the last stage."
            )
        self.least, self.num_stages = sr_ratios, len(depths)
        rates, size = iter(drop_path_rates(drop_path_rate, sum(depths))), self.img_size
        self.grids: list[tuple[int, int]] = []
        for index, dim in enumerate(embed_dims):
            patch = 2 if index else patch_size
            embed = ConvEmbed(embed_dims[index - 1] if index else in_chans, dim, patch, patch, eps=embed_eps)
            size = embed.grid(size)
            self.grids.append(size)
            if min(size) < sr_ratios[index]:
                raise ValueError(
                    f"PyramidVisionTransformer: the image is too small: got img_size={self.img_size}; expected "
                    f"{sr_ratios[index]} tokens or more each way in stage {index + 1}. Take larger images."
                )
            tokens = size[0] * size[1] + (index + 1 == len(depths))
            attention: dict[str, Any] = dict(qkv_bias=qkv_bias, attn_drop=attn_drop_rate, proj_drop=drop_rate)
            blocks = nn.ModuleList()
            for _ in range(depths[index]):
                attn = SpatialReductionAttention(
                    dim, num_heads[index], sr_ratios[index], norm_eps=embed_eps, **attention
                )
                mlp = build_mlp(mlp_layer, dim, int(dim * mlp_ratios[index]), drop=drop_rate)
                blocks.append(Block(dim, attn, mlp, next(rates), eps))
            parts = dict(patch_embed=embed, pos_embed=_start(tokens, dim), pos_drop=nn.Dropout(drop_rate), block=blocks)
            for name, part in parts.items():
                setattr(self, f"{name}{index + 1}", part)
        self.norm = LayerNorm(self.num_features, eps=eps)
        self.cls_token = _start(1, self.num_features)
        self.head_drop = nn.Identity()
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(init_linear)

    @property
    def embeddings(self) -> list[ConvEmbed]:
        """Of each stage."""
        return [getattr(self, f"patch_embed{index + 1}") for index in range(self.num_stages)]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last of ``indices``, and the norm and the head if asked; returns the indices."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        for index in range(taken[-1] + 1, self.num_stages):
            for name in ("patch_embed", "pos_embed", "pos_drop", "block"):
                delattr(self, f"{name}{index + 1}")
        if taken[-1] + 1 < self.num_stages:
            self.num_stages = taken[-1] + 1
            del self.cls_token
        return taken

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {"cls_token"}

    def position(self, index: int, size: tuple[int, int]) -> Tensor:
        """Position embeddings of stage ``index`` for tokens of an image of ``size``: (1, prefix + N, C)."""
        position, grid = getattr(self, f"pos_embed{index + 1}"), self.grids[index]
        if tuple(size) == grid:
            return position
        prefix = position.shape[1] - grid[0] * grid[1]
        resampled = F.interpolate(
            as_image("PyramidVisionTransformer", position[:, prefix:], grid), size=size, mode="bilinear"
        )
        return torch.cat([position[:, :prefix], resampled.flatten(2).transpose(1, 2)], 1)

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (tokens of the last stage before the norm (B, 1 + N, C), those of stages in ``taken``)."""
        x, results = self.check(x), Results(taken, stop_early)
        for index, embed in enumerate(self.embeddings):
            tokens = embed(x)
            size = tokens.shape[1], tokens.shape[2]
            tokens = tokens.flatten(1, 2)
            if index + 1 == len(self.grids):
                tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], 1)
            tokens = getattr(self, f"pos_drop{index + 1}")(tokens + self.position(index, size))
            for block in getattr(self, f"block{index + 1}"):
                tokens = self.run(block, tokens, size)
            if results.take(index, tokens) or index + 1 == self.num_stages:
                break
            x = as_image("PyramidVisionTransformer", tokens, size)
        return tokens, results.found


def _start(tokens: int, dim: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, dim), std=0.02))


DEPTHS = {"tiny": (2, 2, 2, 2), "small": (3, 4, 6, 3), "medium": (3, 4, 18, 3), "large": (3, 8, 27, 3)}
for _size, _depths in DEPTHS.items():
    register(f"pvt_{_size}", PyramidVisionTransformer, PAPER, depths=_depths)

add_family(
    "transformers_pvt",
    "encoder.patch_embeddings.0.projection.weight",
    r"pvt\.",
    [
        (r"encoder\.patch_embeddings\.\d+\.cls_token", "cls_token"),
        (r"encoder\.patch_embeddings\.(\d+)\.position_embeddings", lambda m: f"pos_embed{int(m[1]) + 1}"),
        (r"encoder\.patch_embeddings\.(\d+)\.projection\.(\w+)", lambda m: f"patch_embed{int(m[1]) + 1}.proj.{m[2]}"),
        (r"encoder\.patch_embeddings\.(\d+)\.layer_norm\.(\w+)", lambda m: f"patch_embed{int(m[1]) + 1}.norm.{m[2]}"),
        (r"encoder\.layer_norm\.(\w+)", r"norm.\1"),
        (r"classifier\.(\w+)", r"head.\1"),
    ],
    (r"encoder\.block\.(\d+)\.(\d+)\.", lambda m: f"block{int(m[1]) + 1}.{m[2]}."),
    [
        (r"layer_norm_([12])\.(\w+)", r"norm\1.\2"),
        (r"attention\.self\.query\.(\w+)", r"attn.q.\1"),
        (r"attention\.self\.key\.(\w+)", r"attn.k.\1"),
        (r"attention\.self\.value\.(\w+)", r"attn.v.\1"),
        (r"attention\.self\.sequence_reduction\.(\w+)", r"attn.sr.\1"),
        (r"attention\.self\.layer_norm\.(\w+)", r"attn.norm.\1"),
        (r"attention\.output\.dense\.(\w+)", r"attn.proj.\1"),
        (r"mlp\.dense([12])\.(\w+)", r"mlp.fc\1.\2"),
    ],
    joined="kv",
)
