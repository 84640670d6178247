"""A norm and a gated linear unit of a transformer block as the plain formula (Shazeer, arXiv 2002.05202, equations 5
and 6)."""

import torch
from torch import Tensor

from vitkern.reference.layernorm import normalised
from vitkern.reference.layernorm_mlp import _linear, activation
from vitkern.reference.rounding import rounded, with_value


def gate_of(x: Tensor, act: str) -> Tensor:
    """``"sigmoid"`` (GLU), ``"identity"`` (bilinear), ``"relu"`` (ReGLU), ``"silu"`` (SwiGLU), or an activation of
    `vitkern.reference.layernorm_mlp` (GEGLU)."""
    if act == "identity":
        return x
    if act == "relu":
        return x.relu()
    if act == "sigmoid":
        return x.sigmoid()
    if act == "silu":
        return x * x.sigmoid()
    return activation(x, act)


def layernorm_glu(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    eps: float,
    act: str = "silu",
    norm: str = "layer",
    gate_last: bool = False,
    value_weight: Tensor | None = None,
    value_bias: Tensor | None = None,
    layer_scale: Tensor | None = None,
    row_scale: Tensor | None = None,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """``x + row_scale * layer_scale * fc2(act(gate) * value)`` with gate and value of ``fc1(norm(x))``.

    Args:
        x: (B, ..., C). float64 is computed in float64, everything else in float32.
        norm_weight, norm_bias: (C,) or None.
        fc1_weight, fc1_bias: (2 F, C) and (2 F,), or with ``value_weight`` (F, C) those of the gate alone.
        fc2_weight, fc2_bias: (C, F) and (C,). Biases may be None.
        norm: "layer", "rms" or "none".
        gate_last: the gate is the second half of fc1.
        layer_scale: (C,). row_scale: (B,), the factor of a whole sample.
        low_precision: dtype of the operands of matrix products, in forward and backward, and of what the backward
            reads of fc1. The sums stay float32 and the result is rounded once.

    Returns:
        as x; float64 or float32.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = x.to(dtype)
    normed = wide
    if norm == "layer":
        normed = normalised(wide, norm_weight, norm_bias, eps)
    elif norm == "rms":
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        normed = normed if norm_weight is None else normed * norm_weight.to(dtype)
    gate = _linear(normed, fc1_weight, fc1_bias, low_precision)
    if value_weight is not None:
        value = _linear(normed, value_weight, value_bias, low_precision)
    else:
        gate, value = gate.chunk(2, -1)
        if gate_last:
            gate, value = value, gate

    def finish(gate: Tensor, value: Tensor) -> Tensor:
        y = _linear(gate_of(gate, act) * value, fc2_weight, fc2_bias, low_precision)
        if layer_scale is not None:
            y = y * layer_scale.to(dtype)
        if row_scale is not None:
            y = y * row_scale.to(dtype).view(-1, *[1] * (x.dim() - 1))
        return rounded(wide + y, low_precision)

    out = finish(gate, value)
    if low_precision is None or not out.requires_grad:
        return out
    stored = [with_value(half, half.to(low_precision).to(dtype)) for half in (gate, value)]
    return with_value(finish(*stored), out)
