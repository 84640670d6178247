"""MobileViT v2 (Mehta and Rastegari 2022, arXiv 2206.02680). Named as in `timm.models.mobilevit`."""

from typing import Any

import torch.nn as nn
from torch import Tensor

from vitkern.models.conv_norm import ConvNormAct, activation
from vitkern.models.head import init_conv
from vitkern.models.mobile.mobilevit import MobileViT, whole_patches
from vitkern.models.registry import register
from vitkern.nn.embed import pair
from vitkern.nn.layers import DropPath
from vitkern.nn.separable_attention import SeparableSelfAttention

PAPER = "Separable Self-attention for Mobile Vision Transformers, Mehta and Rastegari 2022, arXiv 2206.02680"


class ConvMlp(nn.Module):
    """`vitkern.nn.Mlp` for the channels of an image: two 1 x 1 convolutions."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.act = activation("silu")
        self.drop = nn.Dropout(drop)
        self.fc2 = nn.Conv2d(hidden_dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.drop(self.act(self.fc1(x))))


class LinearTransformerBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)) on an image (B, C, h, w); a norm is over all of its numbers."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: float = 2.0,
        *,
        patch_size: tuple[int, int] = (2, 2),
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.attn = SeparableSelfAttention(dim, attn_drop, proj_drop, patch_size=patch_size)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), proj_drop)
        self.drop_path2 = DropPath(drop_path)
        self.apply(init_conv)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class MobileVitV2Block(nn.Module):
    """Convolutions, and separable attention between the pixels of one place in all patches, of which none is moved
    (arXiv 2206.02680, section 3.2).

    Args:
        dim: channels C of x. transformer_dim: channels of a token. depth: transformer blocks.
        mlp_ratio, proj_drop, attn_drop, drop_path: of those.
        patch_size: pixels. An image that patches do not divide is made larger, and stays so.
    """

    sources = 1  # of what the last convolution reads

    def __init__(
        self,
        dim: int,
        transformer_dim: int,
        depth: int,
        *,
        mlp_ratio: float = 2.0,
        patch_size: int | tuple[int, int] = 2,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_size = pair(patch_size)
        self.conv_kxk = ConvNormAct(dim, dim, 3, groups=dim, act="silu")
        self.conv_1x1 = nn.Conv2d(dim, transformer_dim, 1, bias=False)
        init_conv(self.conv_1x1)
        options: Any = dict(patch_size=self.patch_size, proj_drop=proj_drop, attn_drop=attn_drop, drop_path=drop_path)
        self.transformer = nn.Sequential(
            *(LinearTransformerBlock(transformer_dim, mlp_ratio, **options) for _ in range(depth))
        )
        self.norm = nn.GroupNorm(1, transformer_dim)
        self.conv_proj = ConvNormAct(self.sources * transformer_dim, dim, act=None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h', w'), in whole patches."""
        x = whole_patches(x, self.patch_size, align_corners=True)
        return self.conv_proj(self.norm(self.transformer(self.conv_1x1(self.conv_kxk(x)))))


class MobileViTV2(MobileViT):
    """`MobileViT` with separable attention. ``attn_drop_rate`` is that of the weights of the context."""

    block = MobileVitV2Block


def sizes(width: float) -> dict:
    """Arguments for channels that are ``width`` times those of table 6."""
    channels = tuple(int(width * base) for base in (64, 128, 256, 384, 512))
    return dict(
        stem_chs=int(32 * width), channels=channels, depths=(1, 2, 1, 1, 1), expand=2.0,
        transformer_dims=tuple(channel // 2 for channel in channels[2:]),
    )  # fmt: skip


for _percent in (50, 75, 100, 125, 150, 175, 200):
    register(f"mobilevitv2_{_percent:03d}", MobileViTV2, PAPER, **sizes(_percent / 100))
