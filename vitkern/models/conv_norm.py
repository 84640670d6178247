"""A convolution, a BatchNorm, an activation: what networks of convolutions are made of. Named as in timm."""

import torch.nn as nn
from torch import Tensor

from vitkern.models.head import init_conv

ACTIVATIONS: dict[str | None, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, None: nn.Identity}


def activation(act: str | None) -> nn.Module:
    """The activation of that name; None: the identity."""
    return nn.Identity() if act is None else ACTIVATIONS[act](inplace=True)


class BatchNormAct(nn.BatchNorm2d):
    """``act(batch_norm(x))``; parameters as in `timm.layers.BatchNormAct2d`."""

    def __init__(self, channels: int, act: str | None = "relu") -> None:
        super().__init__(channels)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class ConvNormAct(nn.Module):
    """Convolution without a bias, BatchNorm, activation: (B, in_chs, h, w) -> (B, out_chs, ceil(h / s), ceil(w / s)).

    Args:
        in_chs, out_chs: channels.
        kernel_size: odd; the image is padded with zeros by half of it. stride: s.
        groups: of channels; as many as channels: a depthwise convolution.
        act: "relu", "silu" or None.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        act: str | None = "relu",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.bn = BatchNormAct(out_chs, act)
        init_conv(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))
