"""A norm, a gated linear unit, a linear layer and the residual: validation, dispatch, the registered operator, the
PyTorch path.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast
from vitkern.ops import checks
from vitkern.ops.branch import check_linears, check_scales, is_graded
from vitkern.ops.layernorm import channel_reasons, check_norm, unit_stride
from vitkern.ops.layernorm_glu.in_pytorch import kernel_in_pytorch, run_in_pytorch
from vitkern.plans import Plan, plan_of
from vitkern.register import kernel_op

ACTIVATIONS = ("sigmoid", "identity", "relu", "gelu", "gelu_tanh", "silu")
NORMS = ("layer", "rms", "none")

if HAS_TRITON:
    from vitkern.kernels import layernorm_glu as kernels
    from vitkern.kernels.layernorm_mlp import mlp_plan
    from vitkern.kernels.machine.architecture import arch_of

    @kernel_op(kernels.layernorm_glu_outputs, differentiable=kernels.Inputs._fields, fallback=kernel_in_pytorch)
    def layernorm_glu_forward(
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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights = (norm_weight, norm_bias, fc1_weight, fc1_bias, value_weight, value_bias, fc2_weight, fc2_bias)
        options = (eps, act, norm, gate_last, plan, keep)
        return kernels.layernorm_glu_forward(x, *weights, layer_scale, row_scale, *options)

    @layernorm_glu_forward.backward(kernels.layernorm_glu_gradients)
    def layernorm_glu_backward(
        grad: Tensor,
        out: Tensor,
        pre: Tensor,
        mean: Tensor,
        rstd: Tensor,
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
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        weights = (norm_weight, norm_bias, fc1_weight, fc1_bias, value_weight, value_bias, fc2_weight, fc2_bias)
        options = (eps, act, norm, gate_last, plan, keep, needs)
        return kernels.layernorm_glu_backward(
            grad, out, pre, mean, rstd, x, *weights, layer_scale, row_scale, *options
        )  # fmt: skip

    @register_flop_formula(torch.ops.vitkern.layernorm_glu)
    def _forward_flops(x_shape: Sequence[int], *inputs: Any, **_: Any) -> int:
        return 6 * math.prod(x_shape) * inputs[6][1]  # fc2_weight (C, F)

    @register_flop_formula(torch.ops.vitkern.layernorm_glu_backward)
    def _backward_flops(grad: Any, out: Any, pre: Any, mean: Any, rstd: Any, *inputs: Any, **_: Any) -> int:
        return 2 * _forward_flops(*inputs)


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
) -> Tensor:
    """The gated MLP branch of a transformer block with its residual (Shazeer, arXiv 2002.05202, equations 5 and 6).

    ``x + row_scale * layer_scale * fc2(act(gate) * value)``, where gate and value are the halves of
    ``fc1(norm(x))``, or two linear layers of ``norm(x)``.

    Args:
        x: (B, ..., C), float16, bfloat16 or float32 (float64 runs in PyTorch); any strides.
        norm_weight, norm_bias: (C,), dtype of ``x`` or float32; None for ones and zeros.
        fc1_weight: (2 F, C), dtype of ``x``, or with ``value_weight`` (F, C), of the gate alone.
        fc1_bias: (2 F,), or (F,), or None.
        fc2_weight: (C, F). fc2_bias: (C,) or None.
        eps: of the norm.
        act: "sigmoid" (GLU), "identity" (bilinear), "relu" (ReGLU), "gelu" (GEGLU), "gelu_tanh" (T5 1.1) or "silu"
            (SwiGLU).
        norm: "layer"; "rms" (arXiv 1910.07467), which has no bias; or "none", which has no weight either.
        gate_last: the gate is the second half of fc1, as in timm's GluMlp, not the first.
        value_weight: (F, C). value_bias: (F,) or None.
        layer_scale: (C,) (CaiT, arXiv 2103.17239).
        row_scale: (B,), a factor per sample: stochastic depth, already divided by 1 - p. A constant.

    Returns:
        as x, contiguous. Under autocast the matrix products take the autocast dtype, and the residual sum keeps the
        dtype of ``x``.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or dtypes do not go together.
        ValueError: shapes, devices, ``eps``, ``act`` or ``norm`` do not fit, or ``row_scale`` requires a gradient.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op, options = "layernorm_glu", (eps, act, norm, gate_last)
    weights = (norm_weight, norm_bias, fc1_weight, fc1_bias, value_weight, value_bias, fc2_weight, fc2_bias)
    tensors = (x, *weights, layer_scale, row_scale)
    call = plan_of(op, tensors, options)
    if not call.checked:
        checks.check_tensor(op, "x", x)
        check_norm(op, x, norm_weight, norm_bias, eps, "norm_")
        _check_options(op, act, norm, norm_weight, norm_bias)
        checks.check_flag(op, "gate_last", gate_last)
        _check_linears(op, x, fc1_weight, fc1_bias, value_weight, value_bias, fc2_weight, fc2_bias, gate_last)
        check_scales(op, x, layer_scale, row_scale)
    if call.known or call.runs_kernel(tensors, channel_reasons(x.shape[-1])):
        return _run_kernel(call, *tensors, options)
    return run_in_pytorch(*tensors, *options)


def _check_options(op: str, act: str, norm: str, norm_weight: Tensor | None, norm_bias: Tensor | None) -> None:
    for name, value, known in (("act", act, ACTIVATIONS), ("norm", norm, NORMS)):
        if value not in known:
            raise ValueError(f"{op}: unknown {name}: got {value!r}; expected one of {', '.join(known)}.")
    given = {"norm_weight": norm_weight, "norm_bias": norm_bias}
    for name in {"layer": (), "rms": ("norm_bias",), "none": ("norm_weight", "norm_bias")}[norm]:
        if given[name] is not None:
            raise ValueError(f"{op}: {name} is not used: got a tensor; expected None where norm is {norm!r}. Drop it.")


def _check_linears(
    op: str,
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    value_weight: Tensor | None,
    value_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    gate_last: bool,
) -> None:
    channels, packed = x.shape[-1], value_weight is None
    checks.check_tensor(op, "fc2_weight", fc2_weight, ndim=2)
    hidden = fc2_weight.shape[1]
    checks.check_shape(op, "fc2_weight", fc2_weight, (channels, None), f"({channels}, F) for x {tuple(x.shape)}")
    if hidden == 0:
        raise ValueError(
            f"{op}: there are no hidden channels: got fc2_weight {tuple(fc2_weight.shape)}; expected at least 1."
        )
    pair = "" if packed else " and a value_weight"
    after = f" with fc2_weight {tuple(fc2_weight.shape)}{pair}"
    width = 2 * hidden if packed else hidden
    checks.check_tensor(op, "fc1_weight", fc1_weight, ndim=2)
    checks.check_shape(op, "fc1_weight", fc1_weight, (width, channels), f"({width}, {channels}){after}")
    if value_weight is not None:
        checks.check_tensor(op, "value_weight", value_weight, ndim=2)
        checks.check_shape(op, "value_weight", value_weight, (hidden, channels), f"({hidden}, {channels}){after}")
    if packed and value_bias is not None:
        raise ValueError(
            f"{op}: value_bias has no weight: got value_weight None; expected ({hidden}, {channels}). "
            "A packed fc1 has one bias (2 F,)."
        )
    if not packed and gate_last:
        raise ValueError(
            f"{op}: gate_last says nothing of two weights: got True and a value_weight; expected False. "
            "fc1_weight is the gate's."
        )
    if not packed and (fc1_bias is None) != (value_bias is None):
        missing = "fc1_bias" if fc1_bias is None else "value_bias"
        raise ValueError(
            f"{op}: one of two biases is missing: got {missing} None; expected both or neither. Pass zeros for it."
        )
    weights = {"fc1_weight": fc1_weight, "fc2_weight": fc2_weight, "value_weight": value_weight}
    biases = {"fc1_bias": (fc1_bias, width), "value_bias": (value_bias, hidden), "fc2_bias": (fc2_bias, channels)}
    check_linears(op, x, weights, biases)


def _run_kernel(
    call: Plan,
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
    options: tuple[float, str, str, bool],
) -> Tensor:
    first = autocast(fc1_weight, fc1_bias, value_weight, value_bias)
    second = autocast(fc2_weight, fc2_bias)
    norm_weight, norm_bias, layer_scale, row_scale = map(unit_stride, (norm_weight, norm_bias, layer_scale, row_scale))
    linears = (first[0], unit_stride(first[1]), first[2], unit_stride(first[3]), second[0], unit_stride(second[1]))
    tensors = (x, norm_weight, norm_bias, *linears, layer_scale, row_scale)

    def choose() -> tuple[str, bool]:
        plan = mlp_plan(x.shape[-1], fc2_weight.shape[1], first[0].dtype, arch_of(x), True)
        return plan, is_graded(tensors)

    return call.run(layernorm_glu_forward, *tensors, *options, *call.chosen(choose))[0]
