"""RMSNorm as a module."""

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.ops.rmsnorm import rmsnorm


class RMSNorm(nn.Module):
    """Divides the last dimension of (..., dim) by its root mean square with `vitkern.ops.rmsnorm.rmsnorm`; parameter
    ``weight``, None without ``elementwise_affine``.

    Arguments and names are those of torch.nn.RMSNorm, for one dimension. Under autocast the result has the autocast
    dtype, where torch.nn.RMSNorm gives float32.
    """

    weight: nn.Parameter | None

    def __init__(self, dim: int, eps: float | None = None, elementwise_affine: bool = True) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.register_parameter("weight", nn.Parameter(torch.ones(dim)) if elementwise_affine else None)

    def forward(self, x: Tensor) -> Tensor:
        return rmsnorm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, elementwise_affine={self.weight is not None}"
