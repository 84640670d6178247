"""Hybrid vision transformers (Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1): tokens are pixels of a ResNet's
map. Its convolutions have standardised weights, its norms are GroupNorm (BiT, Kolesnikov et al. 2019, arXiv
1912.11370). Named as in `timm.models.vision_transformer_hybrid`; the smaller ones are AugReg's (arXiv 2106.10270)."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.backbone import Checkpointed
from vitkern.models.plain.vit import PAPER, SIZES, VisionTransformer
from vitkern.models.registry import register
from vitkern.nn.embed import Stem, pair

AUGREG = "How to train your ViT?, Steiner et al. 2021, arXiv 2106.10270"
CHANNELS = 256, 512, 1024, 2048  # of the stages


def pad_same(x: Tensor, kernel_size: int, stride: int, value: float = 0.0) -> Tensor:
    """Pads (B, C, height, width) so that ceil(size / stride) positions are left; an odd pixel at the end, as TensorFlow
    does."""
    around: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        missing = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
        around += [missing // 2, missing - missing // 2]
    return F.pad(x, around, value=value)


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose filters are normalised to mean 0 and variance 1 (arXiv 1903.10520, equation 5)."""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int, stride: int = 1, eps: float = 1e-8) -> None:
        padding = kernel_size // 2 if stride == 1 else 0
        super().__init__(in_chans, out_chans, kernel_size, stride, padding, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, height, width) -> (B, out_chans, ceil(height / stride), ceil(width / stride))."""
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=self.eps).reshape_as(self.weight)
        if self.stride[0] > 1:
            x = pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, weight, None, self.stride, self.padding)


class Norm(nn.GroupNorm):
    """GroupNorm of 32 groups, and a ReLU where ``act``."""

    def __init__(self, channels: int, act: bool = True) -> None:
        super().__init__(32, channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.relu(x, inplace=True) if self.act else x


class Pool(nn.Module):
    """The largest of each 3 x 3 pixels, in steps of 2."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(pad_same(x, 3, 2, value=-float("inf")), 3, 2)


class Bottleneck(nn.Module):
    """relu(x + norm3(conv3(norm2(conv2(norm1(conv1(x))))))), whose second convolution may halve the image."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, first: bool) -> None:
        super().__init__()
        inner = out_chans // 4
        self.downsample = None
        if first:
            parts = dict(conv=StandardisedConv2d(in_chans, out_chans, 1, stride), norm=Norm(out_chans, act=False))
            self.downsample = nn.Sequential(OrderedDict(parts))
        self.conv1, self.norm1 = StandardisedConv2d(in_chans, inner, 1), Norm(inner)
        self.conv2, self.norm2 = StandardisedConv2d(inner, inner, 3, stride), Norm(inner)
        self.conv3, self.norm3 = StandardisedConv2d(inner, out_chans, 1), Norm(out_chans, act=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return F.relu(self.norm3(self.conv3(x)) + shortcut)


class Stage(Checkpointed):
    """``depth`` bottlenecks."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                Bottleneck(out_chans if index else in_chans, out_chans, 1 if index else stride, first=not index)
                for index in range(depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.run(block, x)
        return x


class HybridEmbed(Stem):
    """A ResNet's map, projected: tokens of 4 * 2 ** (stages - 1) pixels, or of patches of the stem alone.

    Args:
        patch_size: pixels of the map for a token.
        layers: bottlenecks of each stage; none: patches are cut from what the stem gives, a quarter of the image.
        Others as of `vitkern.nn.PatchEmbed`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 1,
        in_chans: int = 3,
        embed_dim: int = 768,
        *,
        layers: Sequence[int] = (3, 4, 9),
        bias: bool = True,
        strict_img_size: bool = True,
    ) -> None:
        reduction = 4 * 2 ** max(len(layers) - 1, 0)
        patch = pair(patch_size)
        super().__init__(img_size, (patch[0] * reduction, patch[1] * reduction), strict_img_size, reduction)
        stem = nn.Sequential(
            OrderedDict(conv=StandardisedConv2d(in_chans, 64, 7, 2), norm=Norm(64), pool=Pool())  # a quarter
        )
        widths = 64, *CHANNELS[: len(layers)]
        if layers:
            stages = (
                Stage(widths[index], widths[index + 1], 2 if index else 1, depth) for index, depth in enumerate(layers)
            )
            self.backbone = nn.Sequential(OrderedDict(stem=stem, stages=nn.Sequential(*stages)))
        else:
            self.backbone = stem
        self.in_chans = in_chans
        self.proj = nn.Conv2d(widths[-1], embed_dim, kernel_size=patch, stride=patch, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, in_chans, height, width) -> tokens (B, img_h, img_w, C); errors as of `PatchEmbed`."""
        self.check(x, self.in_chans)
        return self.proj(self.backbone(x)).permute(0, 2, 3, 1)


class HybridVisionTransformer(VisionTransformer):
    """A ViT behind a ResNet.

    Args:
        layers: bottlenecks of each stage of the ResNet; none: its stem alone.
        patch_size: pixels of the ResNet's map for a token.
        Others as of `VisionTransformer`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        *,
        layers: Sequence[int] = (3, 4, 9),
        patch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(img_size, patch_size, embed_layer=partial(HybridEmbed, layers=layers), **kwargs)


# Name without pixels: layers of the ResNet, pixels of its map for a token, paper.
VARIANTS: dict[str, tuple[tuple[int, ...], int, str]] = {
    "tiny_r_s16_p8": ((), 8, AUGREG),
    "small_r26_s32": ((2, 2, 2, 2), 1, AUGREG),
    "base_r26_s32": ((2, 2, 2, 2), 1, AUGREG),
    "base_r50_s16": ((3, 4, 9), 1, PAPER),
    "large_r50_s32": ((3, 4, 6, 3), 1, AUGREG),
}
for _name, (_layers, _patch, _paper) in VARIANTS.items():
    for _pixels in (224, 384) if _name != "base_r26_s32" else (224,):
        _arguments = dict(img_size=_pixels, layers=_layers, patch_size=_patch, **SIZES[_name.split("_")[0]])
        _head = {"num_classes": 0} if (_name, _pixels) == ("base_r50_s16", 224) else {}  # as the published one
        register(f"vit_{_name}_{_pixels}", HybridVisionTransformer, _paper, **_arguments, **_head)
