"""A network of convolutions and attentions in stages, as timm's `ByobNet`: stem, stages, a last convolution, a head."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Checkpointed, PooledBackbone, Results
from vitkern.models.conv_norm import ConvNormAct
from vitkern.models.head import ClassifierHead, init_linear
from vitkern.nn.embed import check_images, check_pixels, pair


class Stem(nn.Module):
    """Convolutions, of which the first halves the image, and a pooling that halves it again; named as in timm."""

    def __init__(self, in_chans: int, channels: Sequence[int], kernel_size: int = 3, act: str = "relu") -> None:
        super().__init__()
        self.depth = len(channels)
        for number, (before, after) in enumerate(zip((in_chans, *channels), channels, strict=False), 1):
            stride = 2 if number == 1 else 1
            self.add_module(f"conv{number}", ConvNormAct(before, after, kernel_size, stride, act=act))
        self.pool = nn.MaxPool2d(3, 2, 1)

    def convolve(self, x: Tensor) -> Tensor:
        """(B, in_chans, height, width) -> (B, C, ceil(height / 2), ceil(width / 2))."""
        for number in range(self.depth):
            x = self.get_submodule(f"conv{number + 1}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.convolve(x))


class Stage(Checkpointed, nn.Sequential):
    """Blocks, one after another."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = self.run(block, x)
        return x


class StagedNet(PooledBackbone):
    """Maps (B, C, h, w) all through. A family gives the stem and the stages, and says what sizes of images they take.

    Args:
        stem: (B, in_chans, height, width) -> (B, C, h, w). A `Stem` is a feature itself, before its pooling.
        stages: with their channels and the pixels of the image that a pixel of their maps is wide.
        img_size: pixels, one number or (height, width); `multiple` says which others the network takes.
        final_chs: channels of a 1 x 1 convolution after the last stage; None: there is none.
        act: of that convolution.
        in_chans, num_classes, global_pool, drop_rate: as in every model.
    """

    multiple = 1  # of the height and the width of images

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[tuple[Stage, int, int]],
        *,
        img_size: int | tuple[int, int],
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        final_chs: int | None = None,
        act: str = "relu",
    ) -> None:
        super().__init__()
        self.img_size, self.in_chans = pair(img_size), in_chans
        self.num_classes, self.global_pool = num_classes, global_pool
        self.stem = stem
        self.stages = nn.Sequential(*(stage for stage, _, _ in stages))
        last = stages[-1][1]
        self.num_features = final_chs or last
        self.final_conv = ConvNormAct(last, final_chs, act=act) if final_chs else nn.Identity()
        self.norm = nn.Identity()
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        init_linear(self.head.fc)
        self.feature_info = [
            dict(num_chs=channels, reduction=reduction, module=f"stages.{index}")
            for index, (_, channels, reduction) in enumerate(stages[:-1])
        ]
        self.feature_info.append(dict(num_chs=self.num_features, reduction=stages[-1][2], module="final_conv"))
        if isinstance(stem, Stem):
            convolved: Any = stem.get_submodule(f"conv{stem.depth}.conv")
            first = dict(num_chs=convolved.out_channels, reduction=2, module=f"stem.conv{stem.depth}")
            self.feature_info.insert(0, first)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the image it was built for."""
        return (self.in_chans, *self.img_size)

    @property
    def input_rule(self) -> str:
        """What the model takes, on one line."""
        sizes = "any size" if self.multiple == 1 else f"multiples of {self.multiple}"
        return f"image {' x '.join(map(str, self.input_size))}, or {sizes}"

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (map after the last convolution (B, C, h, w), those of the features in ``taken``)."""
        self._check(x)
        x = x.contiguous(memory_format=torch.channels_last)
        results, first = Results(taken, stop_early), 0
        if isinstance(self.stem, Stem):
            x, first = self.stem.convolve(x), 1
            if results.take(0, x):
                return x, results.found
            x = self.stem.pool(x)
        else:
            x = self.stem(x)
        for number, stage in enumerate(self.stages, 1):
            x = stage(x)
            if number == len(self.stages):
                x = self.final_conv(x)
            if results.take(first + number - 1, x):
                break
        return x, results.found

    def _check(self, x: Tensor) -> None:
        name = type(self).__name__
        check_images(name, x, self.in_chans)
        check_pixels(name, x)
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(
                f"{name}: blocks of tokens do not divide the image: got {tuple(x.shape[2:])}; expected multiples of "
                f"{self.multiple}. Resize or pad the image."
            )

    def as_map(self, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor | None]:
        """(B, C, h, w), as it is."""
        return x, None

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        return self.head(x.permute(0, 2, 3, 1), pre_logits=pre_logits)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last of ``indices``, and the head if asked; returns the indices."""
        taken = self.take_indices(indices)
        kept = taken[-1] + (0 if isinstance(self.stem, Stem) else 1)
        if kept < len(self.stages):
            self.stages, self.final_conv = self.stages[:kept], nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken
