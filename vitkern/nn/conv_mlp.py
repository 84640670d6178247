"""PVTv2's perceptron, with a convolution between its layers, and a block's branch of it (arXiv 2106.13797)."""

from typing import TypeGuard

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.grid import as_image, as_tokens
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layers import DropPath
from vitkern.ops.branch import goes_in_place
from vitkern.ops.bypass import may_bypass

_CHUNK = 2048  # tokens for each thread, or one image, whose hidden layer stays in a CPU's cache


class ConvMlp(nn.Module):
    """``fc2(gelu(dwconv(fc1(x))))``, a depthwise 3 x 3 convolution between the layers (section 3.3); named as
    `timm.models.pvt_v2.MlpWithDepthwiseConv`.

    Args:
        dim: channels C. hidden_dim: between the layers. drop: dropout after GELU and after ``fc2``, in training.
        relu: one precedes the convolution, as in PVTv2-Li.
    """

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0, *, relu: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, N, C), tokens of an image of ``size`` -> the same shape."""
        return self.drop(self.fc2(self.drop(F.gelu(self.convolved(x, size)))))

    def convolved(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, hidden_dim), what GELU is of."""
        x = self.relu(self.fc1(x))
        return as_tokens(self.dwconv(as_image("ConvMlp", x, size)))


def conv_mlp_residual(
    x: Tensor, norm: nn.Module, mlp: nn.Module, drop_path: nn.Module, size: tuple[int, int]
) -> Tensor:
    """``x + drop_path(mlp(norm(x), size))``; on a CPU without gradients a few images at a time, GELU and sum in place.

    Args:
        x: (B, N, C), tokens of images of ``size`` = (H, W).
        norm: `LayerNorm`, or any module in its place.
        mlp: `ConvMlp`, or any module in its place. Modules that are adapted, hooked or drop activations are called.
        drop_path: `DropPath`, or any module in its place.

    Raises:
        ValueError: N is not H * W.
    """
    if not (
        may_bypass(norm, LayerNorm)
        and _is_silent(mlp, drop_path)
        and x.dim() == 3
        and goes_in_place(x, None, *norm.parameters(), *mlp.parameters())
    ):
        return x + drop_path(mlp(norm(x), size))
    images = max(1, torch.get_num_threads() * _CHUNK // max(1, x.shape[1]))
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for source, target in zip(*(t.tensor_split(max(1, len(x) // images)) for t in (x, out)), strict=True):
        hidden = torch.ops.aten.gelu_(mlp.convolved(norm(source), size))
        torch.add(source, mlp.fc2(hidden), out=target)
    return out


def _is_silent(mlp: nn.Module, drop_path: nn.Module) -> TypeGuard[ConvMlp]:
    """Whether nobody sees what is overwritten, nor drops any of it."""
    return (
        may_bypass(mlp, ConvMlp)
        and may_bypass(mlp.relu, nn.ReLU, nn.Identity)
        and may_bypass(mlp.dwconv, nn.Conv2d)
        and may_bypass(mlp.fc1, nn.Linear)
        and may_bypass(mlp.fc2, nn.Linear)
        and may_bypass(mlp.drop, nn.Dropout)
        and may_bypass(drop_path, DropPath)
        and not (mlp.drop.training and mlp.drop.p > 0.0)
        and not (drop_path.training and drop_path.drop_prob > 0.0)
    )
