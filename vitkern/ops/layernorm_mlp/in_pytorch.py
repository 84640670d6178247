"""The PyTorch path of `vitkern.ops.layernorm_mlp`; on a CPU without gradients, a chunk of rows at a time."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.dispatch import is_eager
from vitkern.ops.layernorm import normalise

_CHUNK = 2048  # rows for each thread, whose hidden layer stays in a CPU's cache


def run_in_pytorch(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    layer_scale: Tensor | None,
    row_scale: Tensor | None,
    eps: float,
    act: str,
    post_norm: bool,
) -> Tensor:
    """Arguments of `vitkern.ops.layernorm_mlp.layernorm_mlp`, checked."""
    tensors = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, layer_scale)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    norm = (norm_weight, norm_bias, eps)
    if (
        x.device.type == "cpu"
        and row_scale is None
        and is_eager(*tensors)
        and not (needs_grad or torch.is_autocast_enabled("cpu"))
    ):
        return _in_place(x, norm, fc1_weight, fc1_bias, fc2_weight, fc2_bias, layer_scale, act, post_norm)
    y = x if post_norm else normalise(x, *norm)
    y = F.linear(_activate(F.linear(y, fc1_weight, fc1_bias), act), fc2_weight, fc2_bias)
    if post_norm:
        y = normalise(y, *norm)
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
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    layer_scale: Tensor | None,
    row_scale: Tensor | None,
    eps: float,
    act: str,
    post_norm: bool,
    plan: str,
    keep: bool,
) -> Tensor:
    """The first output of `kernels.layernorm_mlp.layernorm_mlp_forward`, whose arguments these are. Where the residual
    stream is wider than the weights, autocast made them so."""
    tensors = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, layer_scale, row_scale)
    mixed = x.dtype != fc1_weight.dtype
    with torch.autocast(x.device.type, fc1_weight.dtype, enabled=True, cache_enabled=False) if mixed else nullcontext():
        return run_in_pytorch(*tensors, eps, act, post_norm)


def _activate(y: Tensor, act: str) -> Tensor:
    if act == "quick_gelu":
        return y * torch.sigmoid(1.702 * y)
    return F.gelu(y, approximate="tanh" if act == "gelu_tanh" else "none")


def _in_place(
    x: Tensor,
    norm: tuple[Tensor | None, Tensor | None, float],
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    layer_scale: Tensor | None,
    act: str,
    post_norm: bool,
) -> Tensor:
    """A few rows at a time through both layers, so that the hidden layer never leaves the cache."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x.reshape(-1, x.shape[-1])
    chunk = torch.get_num_threads() * _CHUNK
    for source, target in zip(rows.split(chunk), out.view(rows.shape).split(chunk), strict=True):
        y = source if post_norm else normalise(source, *norm)
        hidden = _linear_act(y, fc1_weight, fc1_bias, act)
        if fc2_bias is None:
            torch.mm(hidden, fc2_weight.t(), out=target)
        else:
            torch.addmm(fc2_bias, hidden, fc2_weight.t(), out=target)
        if post_norm:
            target.copy_(normalise(target, *norm))
        if layer_scale is not None:
            target.mul_(layer_scale)
        target.add_(source)
    return out


def _linear_act(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor:
    if act == "gelu" and bias is not None and x.dtype == torch.float32 and hasattr(torch, "_addmm_activation"):
        return torch._addmm_activation(
            bias, x, weight.t(), use_gelu=True
        )  # on a CPU this is the exact GELU; on a GPU the tanh one
    y = F.linear(x, weight, bias)
    if act == "quick_gelu":
        return y.mul_(torch.sigmoid(1.702 * y))
    return torch.ops.aten.gelu_(y, approximate="tanh" if act == "gelu_tanh" else "none")
