"""ResNet (He et al. 2015, arXiv 1512.03385) as a detector's pyramid of maps. Named as in `timm.models.resnet`."""

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.backbone import Checkpointed


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with statistics, factors and offsets that stay as they are loaded."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in dict(weight=1.0, bias=0.0, running_mean=0.0, running_var=1.0).items():
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, img_h, img_w) -> the same."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)  # type: ignore[arg-type]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut (section 4.1, figure 5); the 3 x 3 one has the stride."""

    expansion = 4

    def __init__(
        self,
        in_chans: int,
        width: int,
        stride: int = 1,
        dilation: int = 1,
        norm: Callable[[int], nn.Module] = FrozenBatchNorm2d,
    ) -> None:
        super().__init__()
        out_chans = width * self.expansion
        self.conv1 = nn.Conv2d(in_chans, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_chans, 1, bias=False)
        self.bn3 = norm(out_chans)
        self.downsample: nn.Module | None = None
        if stride > 1 or in_chans != out_chans:
            self.downsample = nn.Sequential(nn.Conv2d(in_chans, out_chans, 1, stride, bias=False), norm(out_chans))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, img_h, img_w) -> (B, 4 width, img_h / stride, img_w / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


class ResNet(Checkpointed):
    """Images in, maps of the last stages out.

    Args:
        depths: blocks of each stage; (3, 4, 6, 3) is ResNet-50.
        width: channels between the blocks' 1 x 1 convolutions in the first stage; they double with each.
        in_chans: channels of the image.
        maps: so many of the last stages are given.
        dilated: the last stage has its map as large as the one before, and looks as far (DC5 of arXiv 2005.12872).
        norm: makes a norm of a number of channels.
    """

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        in_chans: int = 3,
        *,
        maps: int = 4,
        dilated: bool = False,
        norm: Callable[[int], nn.Module] = FrozenBatchNorm2d,
    ) -> None:
        super().__init__()
        self.maps = maps
        self.conv1 = nn.Conv2d(in_chans, width, 7, 2, padding=3, bias=False)
        self.bn1 = norm(width)
        channels, self.channels = width, [width * 2**stage * Bottleneck.expansion for stage in range(len(depths))]
        for stage, depth in enumerate(depths):
            last = dilated and stage == len(depths) - 1
            blocks = []
            for index in range(depth):
                stride = 2 if index == 0 and stage > 0 and not last else 1
                dilation = 2 if last and index > 0 else 1
                blocks.append(Bottleneck(channels, width * 2**stage, stride, dilation, norm))
                channels = self.channels[stage]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> list[nn.Sequential]:
        """Each a list of blocks."""
        return [getattr(self, f"layer{stage + 1}") for stage in range(len(self.channels))]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, height, width) -> maps (B, C_i, height / r_i, width / r_i), r of the last 32, or 16."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, padding=1)
        found = []
        for stage in self.stages:
            for block in stage:
                x = self.run(block, x)
            found.append(x)
        return found[-self.maps :]
