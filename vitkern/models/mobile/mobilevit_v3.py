"""MobileViT v3 (Wadekar and Chaurasia 2022, arXiv 2209.15159): the blocks of v1 and of v2 with another fusion. Named as
`timm.models.mobilevit` names theirs; `keys` has the authors' names."""

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.conv_norm import ConvNormAct
from vitkern.models.mobile.mobilevit import MobileViT, MobileVitBlock, whole_patches
from vitkern.models.mobile.mobilevit_v2 import MobileVitV2Block, sizes
from vitkern.models.registry import register

PAPER = "MobileViTv3: Mobile-Friendly Vision Transformer with Simple and Effective Fusion of Local, Global and Input "
PAPER += "Features, Wadekar and Chaurasia 2022, arXiv 2209.15159"


class MobileVitV3Block(MobileVitBlock):
    """`MobileVitBlock` whose fusion is a 1 x 1 convolution of local and global features, and a sum with the input
    (arXiv 2209.15159, section 3.1). Its first convolution is depthwise."""

    depthwise = True

    def fuse(self, dim: int, transformer_dim: int) -> nn.Module:
        """What mixes local features (``transformer_dim`` channels) and global ones (C)."""
        return ConvNormAct(transformer_dim + dim, dim, act="silu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        local = self.conv_1x1(self.conv_kxk(x))
        found = self.conv_proj(self.attend(local))
        return x + (found if self.conv_fusion is None else self.conv_fusion(torch.cat((local, found), 1)))


class MobileVitV3LinearBlock(MobileVitV2Block):
    """`MobileVitV2Block` whose last convolution reads global and local features, and a sum with the input."""

    sources = 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h', w'), in whole patches."""
        x = whole_patches(x, self.patch_size, align_corners=True)
        local = self.conv_1x1(self.conv_kxk(x))
        return x + self.conv_proj(torch.cat((self.norm(self.transformer(local)), local), 1))


class MobileViTV3(MobileViT):
    """`MobileViT` with the fusion of v3."""

    block = MobileVitV3Block


class MobileViTV3Linear(MobileViT):
    """`MobileViTV2` with the fusion of v3."""

    block = MobileVitV3LinearBlock


# Table 1: as table 4 of MobileViT, with wider stages.
SIZES = {
    "xxs": ((16, 24, 64, 80, 128), (64, 80, 96), 512, 2.0),
    "xs": ((32, 48, 96, 160, 160), (96, 120, 144), 640, 4.0),
    "s": ((32, 64, 128, 256, 320), (144, 192, 240), 960, 4.0),
}

for _size, (_channels, _dims, _final, _expand) in SIZES.items():
    _arguments = dict(channels=_channels, transformer_dims=_dims, final_chs=_final, expand=_expand)
    register(f"mobilevitv3_{_size}", MobileViTV3, PAPER, **_arguments)
for _percent in (50, 75, 100):
    register(f"mobilevitv3_{_percent:03d}", MobileViTV3Linear, PAPER, **sizes(_percent / 100))
