"""The PyTorch path of `vitkern.ops.layernorm_glu`; on a CPU without gradients, a chunk of rows at a time."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.dispatch import is_eager
from vitkern.ops.layernorm import normalise
from vitkern.ops.layernorm_mlp.in_pytorch import _CHUNK
from vitkern.ops.rmsnorm import _in_pytorch as rms_normalise


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
    tensors = (x, norm_weight, norm_bias, *first, fc2_weight, fc2_bias, layer_scale)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if (
        x.device.type == "cpu"
        and row_scale is None
        and is_eager(*tensors)
        and not (needs_grad or torch.is_autocast_enabled("cpu"))
    ):
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rows, chunk = x.reshape(-1, x.shape[-1]), torch.get_num_threads() * _CHUNK
        for source, target in zip(rows.split(chunk), out.view(rows.shape).split(chunk), strict=True):
            y = _normalised(source, norm_weight, norm_bias, eps, norm)
            hidden = _gate_in_place(*_gate_and_value(y, *first, gate_last), act)
            if fc2_bias is None:
                torch.mm(hidden, fc2_weight.t(), out=target)
            else:
                torch.addmm(fc2_bias, hidden, fc2_weight.t(), out=target)
            if layer_scale is not None:
                target.mul_(layer_scale)
            target.add_(source)
        return out
    gate, value = _gate_and_value(_normalised(x, norm_weight, norm_bias, eps, norm), *first, gate_last)
    y = F.linear(activate(gate, act) * value, fc2_weight, fc2_bias)
    if layer_scale is not None:
        y = y * layer_scale
    if row_scale is not None:
        y = y * row_scale.view(-1, *[1] * (x.dim() - 1))
    return (x + y).to(x.dtype).contiguous()


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
    """The first output of `kernels.layernorm_glu.layernorm_glu_forward`, whose arguments these are. Where the residual
    stream is wider than the weights, autocast made them so."""
    weights = (norm_weight, norm_bias, fc1_weight, fc1_bias, value_weight, value_bias, fc2_weight, fc2_bias)
    mixed = x.dtype != fc1_weight.dtype
    with torch.autocast(x.device.type, fc1_weight.dtype, enabled=True, cache_enabled=False) if mixed else nullcontext():
        return run_in_pytorch(x, *weights, layer_scale, row_scale, eps, act, norm, gate_last)


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, norm: str) -> Tensor:
    if norm == "layer":
        return normalise(x, weight, bias, eps)
    return x if norm == "none" else rms_normalise(x, weight, None, eps, x.dtype)[0]


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


def activate(gate: Tensor, act: str) -> Tensor:
    """``act``: of `vitkern.ops.layernorm_glu.ACTIVATIONS`."""
    if act == "identity":
        return gate
    if act == "relu":
        return gate.relu()
    if act == "sigmoid":
        return gate.sigmoid()
    if act == "silu":
        return F.silu(gate)
    return F.gelu(gate, approximate="tanh" if act == "gelu_tanh" else "none")


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
