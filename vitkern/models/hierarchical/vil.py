"""ViL, the multi-scale Vision Longformer (Zhang et al. 2021, arXiv 2103.15358). Named as in its authors' `msvit.py`."""

import itertools
import operator
from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Backbone, Checkpointed, Results
from vitkern.models.head import check_pool, init_linear
from vitkern.models.mlp import build_mlp
from vitkern.models.registry import register
from vitkern.nn.embed import check_images, pair
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.layers import DropPath, drop_path_rates
from vitkern.nn.vil_attention import ViLAttention
from vitkern.nn.vil_dense_attention import ViLDenseAttention

PAPER = "Multi-Scale Vision Longformer, Zhang et al. 2021, arXiv 2103.15358"


class Embedding(nn.Module):
    """Cuts an image, or the tokens of a stage, into patches and projects each; global tokens come first.

    Args:
        in_chans, dim: channels before and after.
        img_size: (height, width) of the input. patch_size: its side of a patch.
        num_global: global tokens.
        ape: learn a position embedding, half of it for the row and half for the column (section 3.1).
        norm: a LayerNorm follows the projection. eps: of it. drop: dropout of the result, in training.
    """

    cls_token: nn.Parameter
    cls_pos_embed: nn.Parameter
    x_pos_embed: nn.Parameter
    y_pos_embed: nn.Parameter

    def __init__(
        self,
        in_chans: int,
        dim: int,
        img_size: tuple[int, int],
        patch_size: int,
        *,
        num_global: int,
        ape: bool,
        norm: bool,
        eps: float,
        drop: float,
    ) -> None:
        super().__init__()
        self.img_size, self.num_global = img_size, num_global
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        if min(self.grid_size) < 1:
            raise ValueError(
                f"VisionLongformer: the image is smaller than a patch: got {img_size}, patch size {patch_size}; "
                "expected at least one patch in each stage. Take a larger image."
            )
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.norm_embed = LayerNorm(dim, eps=eps) if norm else None
        shapes = dict(cls_token=(num_global, dim)) if num_global else {}
        if ape:
            halves = [(side, dim // 2) for side in self.grid_size]
            shapes |= dict(cls_pos_embed=(num_global, dim), x_pos_embed=halves[0], y_pos_embed=halves[1])
        self.ape = ape
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(nn.init.trunc_normal_(torch.empty(1, *shape), std=0.02)))
        self.pos_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, height, width) -> (B, num_global + patches, dim)."""
        check_images("VisionLongformer", x, self.proj.in_channels)
        if tuple(x.shape[-2:]) != tuple(self.img_size):
            raise ValueError(
                f"VisionLongformer: the image has another size: got {tuple(x.shape[-2:])}; expected "
                f"{tuple(self.img_size)}. Resize it, or build the model with img_size."
            )
        x = self.proj(x).flatten(2).transpose(1, 2)
        if self.norm_embed is not None:
            x = self.norm_embed(x)
        if self.num_global:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        if self.ape:
            rows, cols = self.grid_size
            axes = [self.x_pos_embed.unsqueeze(2).expand(-1, -1, cols, -1)]
            axes += [self.y_pos_embed.unsqueeze(1).expand(-1, rows, -1, -1)]
            x = x + torch.cat([self.cls_pos_embed, torch.cat(axes, -1).flatten(1, 2)], 1)
        return self.pos_drop(x)


class AttentionBlock(nn.Module):
    """x + attn(norm(x))."""

    def __init__(self, dim: int, attn: nn.Module, drop_path: float, eps: float) -> None:
        super().__init__()
        self.norm, self.attn, self.drop_path = LayerNorm(dim, eps=eps), attn, DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return x + self.drop_path(self.attn(self.norm(x), size))


class MlpBlock(nn.Module):
    """x + mlp(norm(x))."""

    def __init__(self, dim: int, mlp: nn.Module, drop_path: float, eps: float) -> None:
        super().__init__()
        self.norm, self.mlp = LayerNorm(dim, eps=eps), mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return mlp_residual(x, self.norm, self.mlp, self.drop_path)


class Stage(nn.ModuleList, Checkpointed):
    """An embedding, then attention and MLP blocks by turns."""

    @property
    def embedding(self) -> Embedding:
        return cast(Embedding, self[0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, height, width) -> (B, num_global + patches, dim)."""
        embed, *blocks = self
        x = embed(x)
        for block in blocks:
            x = self.run(block, x, self.embedding.grid_size)
        return x

    def image(self, x: Tensor) -> Tensor:
        """The result without its global tokens: (B, dim, img_h, img_w)."""
        return x[:, self.embedding.num_global :].transpose(1, 2).unflatten(2, self.embedding.grid_size)


class VisionLongformer(Backbone):
    """Three or four stages, each with an embedding of 4 x 4 or 2 x 2 patches, then a norm, pooling and a head.

    A tuple has one entry for each stage.

    Args:
        img_size: pixels, one number or (height, width). in_chans: channels of the image.
        num_classes: logits; 0 gives the pooled features.
        global_pool: "avg" over all tokens of the last stage, or "token", its first global one.
        embed_dims, depths, num_heads, patch_sizes: channels, pairs of blocks, heads, side of a patch.
        windows: side of a chunk; 0: attention of all tokens to all.
        num_global: global tokens.
        ape: learn position embeddings; without them, biases of relative positions.
        norm_embed: a LayerNorm follows each embedding.
        mode, neighbors, share_weights, only_global, qkv_bias: as in `vitkern.nn.ViLAttention`.
        mlp_ratio: hidden channels of an MLP over C.
        drop_rate: dropout of embeddings, projections and MLPs. drop_path_rate: DropPath of the last pair of blocks; it
            grows linearly from 0.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`.
        eps: of every LayerNorm.

    Raises:
        ValueError: arguments that do not fit each other, or an image of another size.
    """

    POOLS = ("token", "avg")
    layer1: Stage

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: tuple[int, ...] = (48, 96, 192, 384),
        depths: tuple[int, ...] = (1, 1, 9, 1),
        num_heads: tuple[int, ...] = (1, 3, 3, 6),
        patch_sizes: tuple[int, ...] = (4, 2, 2, 2),
        windows: tuple[int, ...] = (7, 7, 0, 0),
        num_global: tuple[int, ...] = (1, 1, 1, 0),
        ape: bool = True,
        norm_embed: bool = False,
        mode: str = "zero",
        neighbors: str = "all",
        share_weights: bool = True,
        only_global: bool = False,
        qkv_bias: bool = True,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        mlp_layer: str = "mlp",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        lists = (embed_dims, depths, num_heads, patch_sizes, windows, num_global)
        if len({len(entries) for entries in lists}) != 1 or not 1 <= len(depths) <= 4:
            raise ValueError(
                f"VisionLongformer: stages do not fit each other: got lengths {[len(entries) for entries in lists]}; "
                "expected one entry for each of up to four stages."
            )
        self.num_classes, self.num_features, self.num_global = num_classes, embed_dims[-1], tuple(num_global)
        self.set_pool(global_pool)
        shared: dict[str, Any] = dict(rel_pos=not ape, qkv_bias=qkv_bias, proj_drop=drop_rate)
        chunked: dict[str, Any] = dict(
            mode=mode, neighbors=neighbors, share_weights=share_weights, only_global=only_global
        )
        rates, size = iter(drop_path_rates(drop_path_rate, sum(depths))), pair(img_size)
        for number, (dim, depth, heads, patch, window, tokens) in enumerate(zip(*lists, strict=True), 1):
            embedding: dict[str, Any] = dict(num_global=tokens, ape=ape, norm=norm_embed, eps=eps, drop=drop_rate)
            stage = Stage([Embedding(in_chans, dim, size, patch, **embedding)])
            in_chans, size = dim, stage.embedding.grid_size
            for rate in [next(rates) for _ in range(depth)]:
                attn: nn.Module
                if window:
                    attn = ViLAttention(dim, heads, window, num_global=tokens, **shared, **chunked)
                else:
                    attn = ViLDenseAttention(dim, heads, size, num_global=tokens, **shared)
                stage.append(AttentionBlock(dim, attn, rate, eps))
                mlp = build_mlp(mlp_layer, dim, int(dim * mlp_ratio), drop=drop_rate)
                stage.append(MlpBlock(dim, mlp, rate, eps))
            setattr(self, f"layer{number}", stage)
        self.num_stages = len(depths)
        sides = list(itertools.accumulate(patch_sizes, operator.mul))
        self.feature_info = [
            dict(num_chs=dim, reduction=side, module=f"layer{number}")
            for number, (dim, side) in enumerate(zip(embed_dims, sides, strict=True), 1)
        ]
        self.norm = LayerNorm(self.num_features, eps=eps)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(init_linear)

    @property
    def stages(self) -> list[Stage]:
        return [getattr(self, f"layer{number + 1}") for number in range(self.num_stages)]

    @property
    def patch_embed(self) -> Embedding:
        """The embedding of the image."""
        return self.layer1.embedding

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last of ``indices``, and the norm and the head if asked; returns the indices."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self.num_stages = taken[-1] + 1
        return taken

    def set_pool(self, global_pool: str) -> None:
        """Another pooling."""
        check_pool("VisionLongformer", global_pool, self.POOLS)
        if global_pool == "token" and not self.num_global[-1]:
            raise ValueError(
                f"VisionLongformer: no token to pool: got global_pool='token', num_global={self.num_global}; "
                "expected a global token in the last stage, or global_pool='avg'."
            )
        self.global_pool = global_pool

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        parts = ("pos_embed", "cls_token", "relative_position", "norm_embed")
        return {name for name, _ in self.named_parameters() if any(part in name for part in parts)}

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (all tokens of the last stage before the norm (B, N, C), those of stages in ``taken``)."""
        results = Results(taken, stop_early)
        for index, stage in enumerate(self.stages):
            x = stage(self.stages[index - 1].image(x) if index else x)
            if results.take(index, x):
                break
        return x, results.found

    def as_map(self, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor | None]:
        """(B, num_global + patches, C) -> ((B, C, img_h, img_w), global tokens)."""
        stage = self.stages[index]
        tokens = stage.embedding.num_global
        return stage.image(x), x[:, :tokens] if tokens else None

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        x = x[:, 0] if self.global_pool == "token" else x.mean(1)
        return x if pre_logits else self.head(x)


# Table 1: channels, pairs of blocks and heads of each stage.
SIZES = {
    "tiny": ((48, 96, 192, 384), (1, 1, 9, 1), (1, 3, 3, 6)),
    "small": ((96, 192, 384, 768), (1, 2, 8, 1), (3, 3, 6, 12)),
    "medium_deep": ((96, 192, 384, 768), (1, 4, 16, 1), (3, 3, 6, 12)),
    "medium_wide": ((192, 384, 512, 768), (1, 2, 8, 1), (3, 6, 8, 12)),
    "base_deep": ((96, 192, 384, 768), (1, 8, 24, 1), (3, 3, 6, 12)),
    "base_wide": ((192, 384, 768, 1024), (1, 2, 8, 1), (3, 6, 12, 16)),
}

for _size, (_dims, _depths, _heads) in SIZES.items():
    _arguments = dict(embed_dims=_dims, depths=_depths, num_heads=_heads)
    register(f"vil_{_size}_window7_224", VisionLongformer, PAPER, img_size=224, **_arguments)
