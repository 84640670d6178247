"""Pyramids of maps from a plain ViT, for detectors: the simple one of ViTDet (Li et al. 2022, arXiv 2203.16527, section
3), named as in detectron2, and that of its predecessor, which reads four blocks (Li et al. 2021, arXiv 2111.11429)."""

from collections.abc import Collection
from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.backbone import Backbone
from vitkern.models.plain.vitdet import PAPER, SIZES, ViTDet, quarters
from vitkern.models.registry import register
from vitkern.nn.layernorm import LayerNorm

TRANSFER = "Benchmarking Detection Transfer Learning with Vision Transformers, Li et al. 2021, arXiv 2111.11429"
SCALES = 4.0, 2.0, 1.0, 0.5  # of the maps to that of the ViT


class ChannelNorm(LayerNorm):
    """LayerNorm over the channels of (B, C, height, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NormedConv2d(nn.Conv2d):
    """A convolution without bias and a norm of its channels; named as in detectron2."""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int) -> None:
        super().__init__(in_chans, out_chans, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = ChannelNorm(out_chans)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class Pyramid(Backbone):
    """A ViT and what makes maps of 1/4, 1/8, 1/16 and 1/32 of the image from it, then a fifth, of 1/64.

    ``forward`` gives the five maps (B, out_channels, height / stride, width / stride), finest first;
    `forward_intermediates` any of the first four.
    """

    def __init__(self, net: ViTDet, out_channels: int, modules: list[str]) -> None:
        super().__init__()
        self.net, self.patch_embed, self.norm = net, net.patch_embed, nn.Identity()
        self.num_classes, self.num_features = 0, out_channels
        stride = max(net.patch_embed.patch_size)
        self.feature_info = [
            dict(num_chs=out_channels, reduction=int(stride / scale), module=module)
            for scale, module in zip(SCALES, modules, strict=True)
        ]

    def maps(self, x: Tensor) -> list[Tensor]:
        """Image -> its first four maps."""
        raise NotImplementedError

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (its coarsest map of the four, those of ``taken``)."""
        maps = self.maps(x)
        return maps[-1], [maps[index] for index in taken]

    def as_map(self, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor | None]:
        """It is one."""
        return x, None

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The coarsest map -> its mean (B, out_channels)."""
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override] # maps
        """Image -> five maps."""
        maps = self.maps(x)
        return [*maps, F.max_pool2d(maps[-1], 1, 2)]


def _upsampling(scale: float, dim: int, norm: type[nn.Module], keep: bool) -> tuple[list[nn.Module], int]:
    """(layers that bring a map of ``dim`` channels to ``scale``, its channels then: as many if ``keep``)."""
    half, quarter = (dim, dim) if keep else (dim // 2, dim // 4)
    if scale == 4.0:
        first, second = nn.ConvTranspose2d(dim, half, 2, 2), nn.ConvTranspose2d(half, quarter, 2, 2)
        return [first, norm(half), nn.GELU(), second], quarter
    if scale == 2.0:
        return [nn.ConvTranspose2d(dim, half, 2, 2)], half
    return ([] if scale == 1.0 else [nn.MaxPool2d(2, 2)]), dim


class SimpleFeaturePyramid(Pyramid):
    """Every map is made from the last of the ViT (arXiv 2203.16527, section 3).

    Args:
        out_channels: of each map. Others as of `ViTDet`.
    """

    def __init__(self, out_channels: int = 256, **vit: Any) -> None:
        super().__init__(ViTDet(**vit), out_channels, [f"simfp_{level}" for level in (2, 3, 4, 5)])
        for scale, row in zip(SCALES, self.feature_info, strict=True):
            layers, width = _upsampling(scale, self.net.num_features, ChannelNorm, keep=False)
            layers += [NormedConv2d(width, out_channels, 1), NormedConv2d(out_channels, out_channels, 3)]
            setattr(self, row["module"], nn.Sequential(*layers))

    def maps(self, x: Tensor) -> list[Tensor]:
        last = self.net(x)
        return [self.get_submodule(row["module"])(last) for row in self.feature_info]


class GroupNorm(nn.GroupNorm):
    def __init__(self, channels: int) -> None:
        super().__init__(32, channels)


class FeaturePyramid(Pyramid):
    """Each map is made from the last block of a quarter of the ViT, then of the coarser ones too (arXiv 2111.11429,
    section 2.1; FPN, Lin et al. 2017, arXiv 1612.03144), whose convolutions are named as in torchvision's
    `FeaturePyramidNetwork`.

    Args:
        out_channels: of each map. Others as of `ViTDet`.
    """

    def __init__(self, out_channels: int = 256, **vit: Any) -> None:
        super().__init__(ViTDet(**vit), out_channels, [f"layer_blocks.{level}" for level in range(4)])
        dim = self.net.num_features
        self.scaling = nn.ModuleList(
            nn.Sequential(*_upsampling(scale, dim, GroupNorm, keep=True)[0]) for scale in SCALES
        )
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(dim, out_channels, 1)) for _ in SCALES)
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(out_channels, out_channels, 3, padding=1)) for _ in SCALES
        )

    def maps(self, x: Tensor) -> list[Tensor]:
        blocks = quarters(len(self.net.blocks))
        found = self.net.forward_intermediates(x, blocks, intermediates_only=True)
        found = [inner(scale(one)) for inner, scale, one in zip(self.inner_blocks, self.scaling, found, strict=True)]
        for finer in (2, 1, 0):
            found[finer] = found[finer] + F.interpolate(found[finer + 1], size=found[finer].shape[-2:], mode="nearest")
        return [layer(one) for layer, one in zip(self.layer_blocks, found, strict=False)]


for _size, _arguments in SIZES.items():
    register(f"vitdet_{_size}_simple_pyramid", SimpleFeaturePyramid, PAPER, **_arguments)
    if _size != "huge":
        register(f"vitdet_{_size}_fpn", FeaturePyramid, TRANSFER, **_arguments)
