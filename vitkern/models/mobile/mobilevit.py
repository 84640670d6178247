"""MobileViT (Mehta and Rastegari 2021, arXiv 2110.02178). Named as in `timm.models.mobilevit`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.conv_norm import ConvNormAct
from vitkern.models.head import init_conv, init_linear
from vitkern.models.mobile import keys
from vitkern.models.plain.vit import Block
from vitkern.models.registry import register
from vitkern.models.residual import inverted_residual
from vitkern.models.staged import Stage, StagedNet
from vitkern.models.tables import add_family
from vitkern.nn.embed import pair
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layers import drop_path_rates

PAPER = "MobileViT: Light-weight, General-purpose, and Mobile-friendly Vision Transformer, Mehta and Rastegari 2021, "
PAPER += "arXiv 2110.02178"


def whole_patches(x: Tensor, patch_size: tuple[int, int], align_corners: bool) -> Tensor:
    """An image that patches do not divide is made larger, bilinearly, until they do."""
    size = tuple(-(-side // patch) * patch for side, patch in zip(x.shape[2:], patch_size, strict=True))
    if size == tuple(x.shape[2:]):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


class MobileVitBlock(nn.Module):
    """Convolutions, attention between the pixels of one place in all patches, and the input beside what they give
    (arXiv 2110.02178, section 3.1).

    Args:
        dim: channels C of x. transformer_dim: channels of a token. depth: transformer blocks.
        num_heads, mlp_ratio: of those.
        patch_size: pixels.
        fusion: a convolution mixes the result with the input; without, the result alone is given.
        proj_drop, attn_drop, drop_path: dropout of projections and attention weights, DropPath of each block.
    """

    depthwise = False  # the first convolution

    def __init__(
        self,
        dim: int,
        transformer_dim: int,
        depth: int,
        *,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        patch_size: int | tuple[int, int] = 2,
        fusion: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_size = pair(patch_size)
        self.conv_kxk = ConvNormAct(dim, dim, 3, groups=dim if self.depthwise else 1, act="silu")
        self.conv_1x1 = nn.Conv2d(dim, transformer_dim, 1, bias=False)
        init_conv(self.conv_1x1)
        drops: Any = dict(proj_drop=proj_drop, attn_drop=attn_drop, drop_path=drop_path)
        self.transformer = nn.Sequential(
            *(Block(transformer_dim, num_heads, mlp_ratio, act="silu", eps=1e-5, **drops) for _ in range(depth))
        )
        self.transformer.apply(init_linear)
        self.norm = LayerNorm(transformer_dim, eps=1e-5)
        self.conv_proj = ConvNormAct(transformer_dim, dim, act="silu")
        self.conv_fusion = self.fuse(dim, transformer_dim) if fusion else None

    def fuse(self, dim: int, transformer_dim: int) -> nn.Module:
        """What mixes the input (C channels) and the result (C)."""
        return ConvNormAct(2 * dim, dim, 3, act="silu")

    def attend(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape: each pixel sees those of its place in the other patches."""
        size, (patch_h, patch_w) = x.shape[2:], self.patch_size
        x = whole_patches(x, self.patch_size, align_corners=False)
        batch, channels, height, width = x.shape
        grid = height // patch_h, width // patch_w
        x = x.permute(0, 2, 3, 1).reshape(batch, grid[0], patch_h, grid[1], patch_w, channels)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, grid[0] * grid[1], channels)  # (B * patch_h * patch_w, N, C)
        x = self.norm(self.transformer(x))
        x = x.view(batch, patch_h, patch_w, *grid, channels).permute(0, 3, 1, 4, 2, 5)
        x = x.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        found = self.conv_proj(self.attend(self.conv_1x1(self.conv_kxk(x))))
        return found if self.conv_fusion is None else self.conv_fusion(torch.cat((x, found), 1))


class MobileViT(StagedNet):
    """Five stages on grids of 1/2 to 1/32 of the image: two of inverted residuals, three that end in a `block`.

    Args:
        img_size: pixels, one number or (height, width); it takes any.
        in_chans: channels of the image.
        num_classes: logits; 0 gives the pooled features.
        global_pool: "avg", "max", "avgmax", or "" for logits of every pixel of the map.
        stem_chs: channels of the first convolution. channels: of each stage.
        depths: inverted residuals of each stage.
        transformer_dims, transformer_depths: channels and blocks of the transformers of the last three.
        expand: channels within an inverted residual to those before it.
        final_chs: channels of a 1 x 1 convolution before the pooling; None: there is none.
        drop_rate, proj_drop_rate, attn_drop_rate: dropout before the head, of projections and MLPs, of attention
            weights. drop_path_rate: DropPath of the last block; it grows linearly from 0.

    Raises:
        ValueError: channels that do not split into heads, or stages that do not fit each other.
    """

    block: Callable[..., nn.Module] = MobileVitBlock

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        stem_chs: int = 16,
        channels: Sequence[int] = (32, 64, 96, 128, 160),
        depths: Sequence[int] = (1, 3, 1, 1, 1),
        transformer_dims: Sequence[int] = (144, 192, 240),
        transformer_depths: Sequence[int] = (2, 4, 3),
        expand: float = 4.0,
        final_chs: int | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if not len(channels) == len(depths) == len(transformer_dims) + 2 == len(transformer_depths) + 2:
            raise ValueError(
                f"{type(self).__name__}: stages do not fit each other: got channels={tuple(channels)}, depths="
                f"{tuple(depths)}, transformer_dims={tuple(transformer_dims)}, transformer_depths="
                f"{tuple(transformer_depths)}; expected one entry per stage, of the transformers per stage after two."
            )
        drops = dict(proj_drop=proj_drop_rate, attn_drop=attn_drop_rate)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths) + len(transformer_dims)))
        transformers: list[tuple[int, int] | None] = [None, None]
        transformers += zip(transformer_dims, transformer_depths, strict=True)
        stages, before = [], stem_chs
        for index, (after, depth, transformer) in enumerate(zip(channels, depths, transformers, strict=True)):
            stage = Stage(*self.residuals(before, after, 2 if index else 1, depth, expand, rates))
            if transformer is not None:
                stage.append(self.block(after, *transformer, drop_path=next(rates), **drops))
            stages.append((stage, after, 2 ** (index + 1)))
            before = after
        super().__init__(
            ConvNormAct(in_chans, stem_chs, 3, 2, act="silu"), stages,
            img_size=img_size, in_chans=in_chans, num_classes=num_classes, global_pool=global_pool,
            drop_rate=drop_rate, final_chs=final_chs, act="silu",
        )  # fmt: skip

    @staticmethod
    def residuals(
        before: int, after: int, stride: int, depth: int, expand: float, rates: Iterator[float]
    ) -> Iterator[nn.Module]:
        """``depth`` inverted residuals, of which the first changes channels and resolution."""
        for number in range(depth):
            if number:
                before, stride = after, 1
            yield inverted_residual(before, after, stride, expand, drop_path=next(rates))


# Table 4: channels of the stages and of the transformers, of the last convolution, and how inverted residuals widen.
SIZES = {
    "xxs": ((16, 24, 48, 64, 80), (64, 80, 96), 320, 2.0),
    "xs": ((32, 48, 64, 80, 96), (96, 120, 144), 384, 4.0),
    "s": ((32, 64, 96, 128, 160), (144, 192, 240), 640, 4.0),
}

for _size, (_channels, _dims, _final, _expand) in SIZES.items():
    _arguments = dict(channels=_channels, transformer_dims=_dims, final_chs=_final, expand=_expand)
    register(f"mobilevit_{_size}", MobileViT, PAPER, **_arguments)
add_family("cvnets_mobilevit", "conv_1.block.conv.weight", "", keys.STEM, keys.BLOCK, keys.ROWS)
