"""LayerNorm and the two-layer perceptron, as modules."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.ops.layernorm import layernorm
from vitkern.ops.layernorm_mlp import ACTIVATIONS


class LayerNorm(nn.Module):
    """Normalises the last dimension of (..., dim) with `vitkern.ops.layernorm.layernorm`; parameters ``weight`` and
    ``bias``.

    Under autocast the result has the autocast dtype, where torch.nn.LayerNorm gives float32.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return layernorm(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps:g}"


class Mlp(nn.Module):
    """``fc2(act(fc1(x)))``; parameters named as in `timm.layers.Mlp`.

    It has no norm and no residual: a block gives the parameters of this module to
    `vitkern.ops.layernorm_mlp`, which does all at once.

    Args:
        dim: C of x (..., C).
        hidden_dim: width between the layers.
        act: "gelu", "gelu_tanh" or "quick_gelu".
        drop: dropout after each layer, in training.
        bias: both layers have one.
    """

    def __init__(self, dim: int, hidden_dim: int, act: str = "gelu", drop: float = 0.0, bias: bool = True):
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"Mlp: unknown act: got {act!r}; expected one of {', '.join(ACTIVATIONS)}.")
        if not 0.0 <= drop < 1.0:
            raise ValueError(f"Mlp: drop is no probability: got {drop}; expected 0 <= drop < 1.")
        self.fc1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=bias)
        self.act = act
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.act == "quick_gelu":
            x = x * torch.sigmoid(1.702 * x)
        else:
            x = F.gelu(x, approximate="tanh" if self.act == "gelu_tanh" else "none")
        x = self.fc2(F.dropout(x, self.drop, self.training))
        return F.dropout(x, self.drop, self.training)

    def extra_repr(self) -> str:
        return f"act={self.act}, drop={self.drop:g}"
