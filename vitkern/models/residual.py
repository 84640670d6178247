"""Residual blocks of convolutions, with an attention in place of one where a model has it."""

import torch.nn as nn
from torch import Tensor

from vitkern.models.conv_norm import BatchNormAct, ConvNormAct, activation
from vitkern.nn.layers import DropPath


def shortcut(in_chs: int, out_chs: int, stride: int) -> nn.Module:
    """What passes a block by: the identity, or a 1 x 1 convolution where the block changes the shape."""
    if in_chs == out_chs and stride == 1:
        return nn.Identity()
    return ConvNormAct(in_chs, out_chs, stride=stride, act=None)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions (He et al., arXiv 1512.03385, figure 5, left). Named as in timm."""

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.shortcut = shortcut(in_chs, out_chs, stride)
        self.conv1_kxk = ConvNormAct(in_chs, out_chs, 3, stride)
        self.conv2_kxk = ConvNormAct(out_chs, out_chs, 3, act=None)
        self.drop_path = DropPath(drop_path)
        self.act = activation("relu")
        nn.init.zeros_(self.conv2_kxk.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop_path(self.conv2_kxk(self.conv1_kxk(x))) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions (He et al., arXiv 1512.03385, figure 5, right), or an attention for the
    second. Named as in timm's `BottleneckBlock` and `SelfAttnBlock`.

    Args:
        in_chs, mid_chs, out_chs: channels of x, of what the first convolution gives, of the result.
        stride: of the second.
        self_attn: takes its place, (B, mid_chs, h, w) -> (B, attn_chs, h / stride, w / stride). attn_chs: mid_chs by
            default.
        groups: of the 3 x 3 convolution.
        act: after each but the last. linear_out: none follows the sum.
        match: where the block changes the shape, a convolution passes x by; without, nothing does.
        drop_path: rate.
    """

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        stride: int = 1,
        *,
        self_attn: nn.Module | None = None,
        attn_chs: int | None = None,
        groups: int = 1,
        act: str = "relu",
        linear_out: bool = False,
        match: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        same = in_chs == out_chs and stride == 1
        self.shortcut = shortcut(in_chs, out_chs, stride) if match or same else None
        self.conv1_1x1 = ConvNormAct(in_chs, mid_chs, act=act)
        if self_attn is None:
            self.conv2_kxk = ConvNormAct(mid_chs, mid_chs, 3, stride, groups=groups, act=act)
        else:
            self.self_attn = self_attn
            self.post_attn = BatchNormAct(attn_chs or mid_chs, act)
        self.attends = self_attn is not None
        self.conv3_1x1 = ConvNormAct(attn_chs or mid_chs, out_chs, act=None)
        self.drop_path = DropPath(drop_path)
        self.act = activation(None if linear_out else act)
        if self.shortcut is not None:
            nn.init.zeros_(self.conv3_1x1.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1_1x1(x)
        branch = self.post_attn(self.self_attn(branch)) if self.attends else self.conv2_kxk(branch)
        branch = self.drop_path(self.conv3_1x1(branch))
        return self.act(branch if self.shortcut is None else branch + self.shortcut(x))


def inverted_residual(
    in_chs: int, out_chs: int, stride: int, expand: float, *, act: str = "silu", drop_path: float = 0.0
) -> Bottleneck:
    """MobileNetV2's block (Sandler et al., arXiv 1801.04381, figure 4): wide and depthwise within, narrow and linear
    at its ends."""
    wide = int(in_chs * expand)
    return Bottleneck(
        in_chs, wide, out_chs, stride, groups=wide, act=act, linear_out=True, match=False, drop_path=drop_path
    )
