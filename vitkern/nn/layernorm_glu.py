"""The gated perceptron as a module, and a block's branch of it, norm and residual included, in one call."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layers import DropPath
from vitkern.nn.rmsnorm import RMSNorm
from vitkern.ops.branch import activate
from vitkern.ops.bypass import may_bypass
from vitkern.ops.layernorm_glu import ACTIVATIONS, layernorm_glu


class GluMlp(nn.Module):
    """``fc2(act(gate) * value)`` (Shazeer, arXiv 2002.05202); parameters named as in `timm.layers.GluMlp`, or those of
    `timm.layers.SwiGLU`, ``fc1_g`` and ``fc1_x``, where they are not ``packed``.

    It has no norm and no residual: `vitkern.nn.layernorm_mlp.mlp_residual` does all at once.

    Args:
        dim: C of x (..., C).
        hidden_dim: F, the width of gate and of value. timm's GluMlp is given 2 F.
        act: "sigmoid" (GLU), "identity" (bilinear), "relu" (ReGLU), "gelu" or "gelu_tanh" (GEGLU), "silu" (SwiGLU).
        gate_last: of a packed fc1 the gate is the second half, as in GluMlp, not the first, as in SwiGLUPacked.
        packed: one linear layer, fc1, gives gate and value.
        drop: dropout after each layer, in training.
        bias: all layers have one.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        act: str = "sigmoid",
        gate_last: bool = True,
        packed: bool = True,
        drop: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(f"GluMlp: unknown act: got {act!r}; expected one of {', '.join(ACTIVATIONS)}.")
        if not 0.0 <= drop < 1.0:
            raise ValueError(f"GluMlp: drop is no probability: got {drop}; expected 0 <= drop < 1.")
        if packed:
            self.fc1 = nn.Linear(dim, 2 * hidden_dim, bias=bias)
        else:
            self.fc1_g = nn.Linear(dim, hidden_dim, bias=bias)
            self.fc1_x = nn.Linear(dim, hidden_dim, bias=bias)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=bias)
        self.act, self.gate_last, self.packed, self.drop = act, gate_last and packed, packed, drop

    def linears(self) -> list[nn.Linear]:
        return [*((self.fc1,) if self.packed else (self.fc1_g, self.fc1_x)), self.fc2]

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, -1) if self.packed else (self.fc1_g(x), self.fc1_x(x))
        if self.gate_last:
            gate, value = value, gate
        x = self.fc2(F.dropout(activate(gate, self.act) * value, self.drop, self.training))
        return F.dropout(x, self.drop, self.training)

    def extra_repr(self) -> str:
        return f"act={self.act}, gate_last={self.gate_last}, drop={self.drop:g}"


def glu_residual(
    x: Tensor, norm: nn.Module, mlp: nn.Module, drop_path: DropPath, layer_scale: Tensor | None
) -> Tensor | None:
    """``x + drop_path(layer_scale * mlp(norm(x)))`` of x (B, ..., C), in one call; None where a module is another, or
    may not be read instead of called."""
    if (
        not (may_bypass(norm, LayerNorm) or may_bypass(norm, RMSNorm))
        or not may_bypass(mlp, GluMlp)
        or not all(may_bypass(linear, nn.Linear) for linear in mlp.linears())
        or (mlp.training and mlp.drop > 0.0)
    ):
        return None
    first, value = (mlp.fc1, None) if mlp.packed else (mlp.fc1_g, mlp.fc1_x)
    eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps  # RMSNorm's own
    return layernorm_glu(
        x,
        norm.weight,
        getattr(norm, "bias", None),
        first.weight,
        first.bias,
        mlp.fc2.weight,
        mlp.fc2.bias,
        eps=eps,
        act=mlp.act,
        norm="layer" if isinstance(norm, LayerNorm) else "rms",
        gate_last=mlp.gate_last,
        value_weight=None if value is None else value.weight,
        value_bias=None if value is None else value.bias,
        layer_scale=layer_scale,
        row_scale=drop_path.row_scale(x),
    )
