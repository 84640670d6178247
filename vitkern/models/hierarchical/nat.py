"""NAT (Hassani et al. 2022, arXiv 2204.07143) and, with dilations, DiNAT (Hassani and Shi 2022, arXiv 2209.15001).
Parameters are named as in their authors' `nat.py`."""

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Backbone, Checkpointed, Results
from vitkern.models.head import init_linear
from vitkern.models.mlp import build_mlp
from vitkern.models.registry import register
from vitkern.nn.embed import check_images, check_pixels, pair
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.layers import DropPath, drop_path_rates
from vitkern.nn.neighborhood_attention import NeighborhoodAttention

NAT = "Neighborhood Attention Transformer, Hassani et al. 2022, arXiv 2204.07143"
DINAT = "Dilated Neighborhood Attention Transformer, Hassani and Shi 2022, arXiv 2209.15001"


def halving(in_chans: int, out_chans: int, bias: bool = True) -> nn.Conv2d:
    """(B, in_chans, height, width) -> (B, out_chans, ceil(height / 2), ceil(width / 2))."""
    return nn.Conv2d(in_chans, out_chans, kernel_size=3, stride=2, padding=1, bias=bias)


class Embedding(nn.Module):
    """Two convolutions that halve the image each, and a norm (arXiv 2204.07143, section 3.3)."""

    def __init__(self, in_chans: int, dim: int, img_size: tuple[int, int], eps: float) -> None:
        super().__init__()
        self.in_chans, self.img_size = in_chans, img_size
        self.proj = nn.Sequential(halving(in_chans, dim // 2), halving(dim // 2, dim))
        self.norm = LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, height, width) -> (B, ceil(height / 4), ceil(width / 4), C)."""
        check_images("NeighborhoodTransformer", x, self.in_chans)
        check_pixels("NeighborhoodTransformer", x)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Downsampling(nn.Module):
    """A convolution that halves the image and doubles the channels, and a norm."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.reduction = halving(dim, 2 * dim, bias=False)
        self.norm = LayerNorm(2 * dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> (B, ceil(img_h / 2), ceil(img_w / 2), 2 C)."""
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Block(nn.Module):
    """x + gamma1 attn(norm1(x)), then x + gamma2 mlp(norm2(x)); both factors only with ``layer_scale``, their start."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        dilation: int = 1,
        mlp_ratio: float = 4.0,
        *,
        layer_scale: float | None = None,
        drop: float = 0.0,
        drop_path: float = 0.0,
        mlp_layer: str = "mlp",
        eps: float = 1e-5,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn = NeighborhoodAttention(dim, num_heads, kernel_size, dilation, proj_drop=drop, **attention)
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.mlp = build_mlp(mlp_layer, dim, int(dim * mlp_ratio), drop=drop)
        for name in ("gamma1", "gamma2"):
            start = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.register_parameter(name, start)

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> the same shape."""
        branch = self.attn(self.norm1(x))
        x = x + self.drop_path(branch if self.gamma1 is None else branch * self.gamma1)
        return mlp_residual(x, self.norm2, self.mlp, self.drop_path, self.gamma2)


class Level(Checkpointed):
    """Blocks, one for each of ``dilations``; between levels a downsampling follows. ``drop_path``: a rate for each."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dilations: Sequence[int],
        drop_path: Sequence[float],
        *,
        downsample: bool,
        eps: float,
        **block: Any,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, dilation=dilation, drop_path=rate, eps=eps, **block)
            for dilation, rate in zip(dilations, drop_path, strict=True)
        )
        self.downsample = Downsampling(dim, eps) if downsample else None

    def attend(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> the same shape: the blocks."""
        for block in self.blocks:
            x = self.run(block, x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> the same shape, or as `Downsampling`."""
        x = self.attend(x)
        return x if self.downsample is None else self.downsample(x)


class NeighborhoodTransformer(Backbone):
    """Levels on grids of 1/4, 1/8, 1/16, 1/32 of the image, then a norm, mean pooling and a head.

    Images of any size are taken. Where one is smaller than kernel_size * dilation, attention pads it.

    Args:
        img_size: pixels, one number or (height, width), which `describe` names. in_chans: channels of the image.
        num_classes: logits; 0 gives the pooled features.
        embed_dim: channels of the first level; each level doubles them.
        depths, num_heads: blocks and heads of each level.
        kernel_size: tokens, odd. dilations: for each level one number for each block; 1 by default.
        mlp_ratio: hidden channels of an MLP over C. qkv_bias, qk_scale: as in `vitkern.nn.NeighborhoodAttention`.
        layer_scale: start of a factor for each channel of a branch; None: there is none.
        drop_rate: dropout of embedded tokens, projections and MLPs. drop_path_rate: DropPath of the last block; it
            grows linearly from 0.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`.
        eps: of every LayerNorm.

    Raises:
        ValueError: arguments that do not fit each other.
    """

    POOLS = ("avg",)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 64,
        depths: tuple[int, ...] = (3, 4, 6, 5),
        num_heads: tuple[int, ...] = (2, 4, 8, 16),
        kernel_size: int = 7,
        dilations: tuple[tuple[int, ...], ...] | None = None,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        layer_scale: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        mlp_layer: str = "mlp",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        dilations = tuple((1,) * depth for depth in depths) if dilations is None else dilations
        if len(num_heads) != len(depths) or [len(level) for level in dilations] != list(depths):
            raise ValueError(
                f"NeighborhoodTransformer: levels do not fit each other: got depths={tuple(depths)}, num_heads="
                f"{tuple(num_heads)}, dilations={dilations}; expected heads for each level, a dilation for each block."
            )
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.patch_embed = Embedding(in_chans, embed_dim, pair(img_size), eps)
        self.pos_drop = nn.Dropout(drop_rate)
        block: dict[str, Any] = dict(
            kernel_size=kernel_size, mlp_ratio=mlp_ratio, layer_scale=layer_scale, drop=drop_rate
        )
        block |= dict(qkv_bias=qkv_bias, qk_scale=qk_scale, mlp_layer=mlp_layer)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.levels = nn.ModuleList()
        for number, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            shape = embed_dim * 2**number, heads, dilations[number], [next(rates) for _ in range(depth)]
            self.levels.append(Level(*shape, downsample=number + 1 < len(depths), eps=eps, **block))
        self.feature_info = [
            dict(num_chs=embed_dim * 2**index, reduction=4 * 2**index, module=f"levels.{index}")
            for index in range(len(depths))
        ]
        self.norm = LayerNorm(self.num_features, eps=eps)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(init_linear)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {name for name, _ in self.named_parameters() if name.endswith("rpb")}

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As of every backbone; nothing follows the downsampling of the last level that is left."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_norm:
            cast(Level, self.levels[-1]).downsample = None
        return taken

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (tokens of the last level before the norm (B, img_h, img_w, C), those of levels in ``taken``)."""
        x = self.pos_drop(self.patch_embed(x))
        results = Results(taken, stop_early)
        for index, level in enumerate(cast(list[Level], self.levels)):
            x = level.attend(x)
            if results.take(index, x):
                break
            x = x if level.downsample is None else level.downsample(x)
        return x, results.found

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        x = x.mean((1, 2))
        return x if pre_logits else self.head(x)


MINI: dict[str, Any] = dict(
    embed_dim=64, depths=(3, 4, 6, 5), num_heads=(2, 4, 8, 16), mlp_ratio=3.0, drop_path_rate=0.2
)
TINY = MINI | dict(depths=(3, 4, 18, 5))
SMALL = TINY | dict(embed_dim=96, num_heads=(3, 6, 12, 24), mlp_ratio=2.0, drop_path_rate=0.3)
BASE = SMALL | dict(embed_dim=128, num_heads=(4, 8, 16, 32), drop_path_rate=0.5, layer_scale=1e-5)
LARGE = SMALL | dict(embed_dim=192, num_heads=(6, 12, 24, 48), drop_path_rate=0.35)


def _by_turns(depths: tuple[int, ...], dilations: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Of each level, blocks without and with its dilation by turns."""
    return tuple((1, d) * (n // 2) + (1,) * (n % 2) for n, d in zip(depths, dilations, strict=True))


for _size, _arguments in dict(mini=MINI, tiny=TINY, small=SMALL | dict(layer_scale=1e-5), base=BASE).items():
    register(f"nat_{_size}", NeighborhoodTransformer, NAT, **_arguments)

# Dilations as large as the image of a level permits: 56, 28, 14 and 7 tokens, or 96, 48, 24 and 12.
for _size, _arguments in dict(mini=MINI, tiny=TINY, small=SMALL, base=BASE, large=LARGE).items():
    _dilations = _by_turns(_arguments["depths"], (8, 4, 2, 1))
    register(f"dinat_{_size}", NeighborhoodTransformer, DINAT, dilations=_dilations, **_arguments)
_large = LARGE | dict(img_size=384)
_wide = _by_turns(LARGE["depths"], (13, 6, 3, 1))
register("dinat_large_384", NeighborhoodTransformer, DINAT, dilations=_wide, **_large)
_wide = _by_turns(LARGE["depths"], (8, 4, 2, 1))
register("dinat_large_384_11x11", NeighborhoodTransformer, DINAT, kernel_size=11, dilations=_wide, **_large)
