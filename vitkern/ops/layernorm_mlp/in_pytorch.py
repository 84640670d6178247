"""The PyTorch path of `vitkern.ops.layernorm_mlp`; on a CPU without gradients, a chunk of rows at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.ops.branch import activate, added, as_under_autocast, goes_in_place, in_chunks
from vitkern.ops.layernorm import normalise


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
    norm = (norm_weight, norm_bias, eps)
    if goes_in_place(x, row_scale, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, layer_scale):

        def hidden_of(rows: Tensor) -> Tensor:
            return _linear_act(rows if post_norm else normalise(rows, *norm), fc1_weight, fc1_bias, act)

        last = (lambda rows: normalise(rows, *norm)) if post_norm else None
        return in_chunks(x, hidden_of, fc2_weight, fc2_bias, layer_scale, last)
    y = x if post_norm else normalise(x, *norm)
    y = F.linear(activate(F.linear(y, fc1_weight, fc1_bias), act), fc2_weight, fc2_bias)
    return added(x, normalise(y, *norm) if post_norm else y, layer_scale, row_scale)


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
    """The first output of `kernels.layernorm_mlp.layernorm_mlp_forward`, whose arguments these are."""
    tensors = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, layer_scale, row_scale)
    with as_under_autocast(x, fc1_weight):
        return run_in_pytorch(*tensors, eps, act, post_norm)


def _linear_act(x: Tensor, weight: Tensor, bias: Tensor | None, act: str) -> Tensor:
    if act == "gelu" and bias is not None and x.dtype == torch.float32 and hasattr(torch, "_addmm_activation"):
        return torch._addmm_activation(
            bias, x, weight.t(), use_gelu=True
        )  # on a CPU this is the exact GELU; on a GPU the tanh one
    y = F.linear(x, weight, bias)
    if act == "quick_gelu":
        return y.mul_(torch.sigmoid(1.702 * y))
    return torch.ops.aten.gelu_(y, approximate="tanh" if act == "gelu_tanh" else "none")
