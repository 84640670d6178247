"""The PyTorch path of `vitkern.ops.layernorm_glu`; on a CPU without gradients, a chunk of rows at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.ops.branch import activate, added, as_under_autocast, goes_in_place, in_chunks
from vitkern.ops.layernorm import normalise
from vitkern.ops.rmsnorm import rmsnorm_in_pytorch


def run_in_pytorch(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    value_weight: Tensor | None,
    value_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    layer_scale: Tensor | None,
    row_scale: Tensor | None,
    eps: float,
    act: str,
    norm: str,
    gate_last: bool,
) -> Tensor:
    """Arguments of the operator, checked."""
    first = (fc1_weight, fc1_bias, value_weight, value_bias)
    norm_of = (norm_weight, norm_bias, eps, norm)
    if goes_in_place(x, row_scale, norm_weight, norm_bias, *first, fc2_weight, fc2_bias, layer_scale):

        def hidden_of(rows: Tensor) -> Tensor:
            return _gate_in_place(*_gate_and_value(_normalised(rows, *norm_of), *first, gate_last), act)

        return in_chunks(x, hidden_of, fc2_weight, fc2_bias, layer_scale)
    gate, value = _gate_and_value(_normalised(x, *norm_of), *first, gate_last)
    return added(x, F.linear(activate(gate, act) * value, fc2_weight, fc2_bias), layer_scale, row_scale)


def kernel_in_pytorch(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    value_weight: Tensor | None,
    value_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    layer_scale: Tensor | None,
    row_scale: Tensor | None,
    eps: float,
    act: str,
    norm: str,
    gate_last: bool,
    plan: str,
    keep: bool,
) -> Tensor:
    """The first output of `kernels.layernorm_glu.layernorm_glu_forward`, whose arguments these are."""
    weights = (norm_weight, norm_bias, fc1_weight, fc1_bias, value_weight, value_bias, fc2_weight, fc2_bias)
    with as_under_autocast(x, fc1_weight):
        return run_in_pytorch(x, *weights, layer_scale, row_scale, eps, act, norm, gate_last)


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, norm: str) -> Tensor:
    if norm == "layer":
        return normalise(x, weight, bias, eps)
    return x if norm == "none" else rmsnorm_in_pytorch(x, weight, None, eps, x.dtype)[0]


def _gate_and_value(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    value_weight: Tensor | None,
    value_bias: Tensor | None,
    gate_last: bool,
) -> tuple[Tensor, Tensor]:
    y = F.linear(x, weight, bias)
    if value_weight is not None:
        return y, F.linear(x, value_weight, value_bias)
    first, last = y.chunk(2, -1)
    return (last, first) if gate_last else (first, last)


def _gate_in_place(gate: Tensor, value: Tensor, act: str) -> Tensor:
    if act == "relu":
        gate.relu_()
    elif act == "sigmoid":
        gate.sigmoid_()
    elif act == "silu":
        F.silu(gate, inplace=True)
    elif act != "identity":
        torch.ops.aten.gelu_(gate, approximate="tanh" if act == "gelu_tanh" else "none")
    return gate.mul_(value)
