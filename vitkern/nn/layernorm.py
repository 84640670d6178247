"""LayerNorm as a module."""

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.ops.bypass import may_bypass
from vitkern.ops.layernorm import layernorm


class LayerNorm(nn.Module):
    """Normalises the last dimension of (..., dim) with `vitkern.ops.layernorm.layernorm`; parameters ``weight`` and
    ``bias``.

    Under autocast the result has the autocast dtype, where torch.nn.LayerNorm gives float32.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return layernorm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps:g}"


def add_norm(x: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
    """``norm(x + branch)`` of (..., C), in one call where ``norm`` is a LayerNorm that may be read."""
    if may_bypass(norm, LayerNorm):
        return layernorm(branch, norm.weight, norm.bias, norm.eps, x)[0]
    return norm(x + branch)
