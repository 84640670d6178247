"""Positions from a convolution: the positional encoding generator of CPVT, Twins and DaViT."""

import torch.nn as nn
from torch import Tensor


class PositionalConv(nn.Module):
    """x + conv(x), a depthwise convolution whose zero padding tells a token where the border is (CPVT, Chu et al.,
    arXiv 2102.10882, section 3.2). Named as `timm.models.davit.ConvPosEnc`.

    Args:
        dim: channels C. kernel_size: pixels, odd.
    """

    proj: nn.Module

    def __init__(self, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> the same shape."""
        return x + self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
