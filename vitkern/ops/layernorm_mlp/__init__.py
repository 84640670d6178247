"""LayerNorm, two linear layers with an activation between, and the residual: validation, dispatch, the registered
operator, the PyTorch path.
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
from vitkern.ops.layernorm_mlp.in_pytorch import kernel_in_pytorch, run_in_pytorch
from vitkern.plans import Plan, plan_of
from vitkern.register import kernel_op

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")

if HAS_TRITON:
    from vitkern.kernels import layernorm_mlp as kernels
    from vitkern.kernels.machine.architecture import arch_of

    _PARAMETERS = ("norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "layer_scale")

    @kernel_op(kernels.layernorm_mlp_outputs, differentiable=("x", *_PARAMETERS), fallback=kernel_in_pytorch)
    def layernorm_mlp_forward(
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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        weights = (norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
        return kernels.layernorm_mlp_forward(x, *weights, layer_scale, row_scale, eps, act, post_norm, plan, keep)

    @layernorm_mlp_forward.backward(kernels.layernorm_mlp_gradients)
    def layernorm_mlp_backward(
        grad: Tensor,
        out: Tensor,
        pre: Tensor,
        mean: Tensor,
        rstd: Tensor,
        branch: Tensor,
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
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        kept, weights = (
            (out, pre, mean, rstd, branch),
            (norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias),
        )
        return kernels.layernorm_mlp_backward(
            grad, *kept, x, *weights, layer_scale, row_scale, eps, act, post_norm, plan, keep, needs
        )

    @register_flop_formula(torch.ops.vitkern.layernorm_mlp)
    def _forward_flops(
        x_shape: Sequence[int], norm_weight: Any, norm_bias: Any, fc1_shape: Sequence[int], *args: Any, **kwargs: Any
    ) -> int:
        return 4 * math.prod(x_shape) * fc1_shape[0]

    @register_flop_formula(torch.ops.vitkern.layernorm_mlp_backward)
    def _backward_flops(
        grad: Any, out: Any, pre: Any, mean: Any, rstd: Any, branch: Any, *inputs: Any, **_: Any
    ) -> int:
        return 2 * _forward_flops(*inputs)


def layernorm_mlp(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    eps: float,
    act: str = "gelu",
    layer_scale: Tensor | None = None,
    row_scale: Tensor | None = None,
    post_norm: bool = False,
) -> Tensor:
    """The MLP branch of a transformer block with its residual (Dosovitskiy et al., arXiv 2010.11929, equation 3).

    ``x + row_scale * layer_scale * fc2(act(fc1(norm(x))))``; with ``post_norm`` (Swin V2, arXiv 2111.09883, section
    3.2) the norm is taken of
    fc2's result: ``x + row_scale * layer_scale * norm(fc2(act(fc1(x))))``.

    Args:
        x: (B, ..., C), float16, bfloat16 or float32 (float64 runs in PyTorch); any strides.
        norm_weight, norm_bias: (C,), dtype of ``x`` or float32; None for ones and zeros.
        fc1_weight: (F, C), dtype of ``x``. fc1_bias: (F,) or None.
        fc2_weight: (C, F). fc2_bias: (C,) or None.
        eps: added to the variance.
        act: "gelu" (exact, by erf), "gelu_tanh" or "quick_gelu" (x * sigmoid(1.702 x)).
        layer_scale: (C,) (CaiT, arXiv 2103.17239).
        row_scale: (B,), a factor per sample: stochastic depth, already divided by 1 - p. A constant.

    Returns:
        as x, contiguous. Under autocast the matrix products take the autocast dtype, and the residual sum keeps the
        dtype of ``x``: a float32
        residual stream stays float32, as it does in the block that this replaces.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or dtypes do not go together.
        ValueError: shapes, devices, ``eps`` or ``act`` do not fit, or ``row_scale`` requires a gradient.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "layernorm_mlp"
    tensors = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, layer_scale, row_scale)
    call = plan_of(op, tensors, (eps, act, post_norm))
    if not call.checked:
        checks.check_tensor(op, "x", x)
        check_norm(op, x, norm_weight, norm_bias, eps, "norm_")
        _check_linears(op, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
        check_scales(op, x, layer_scale, row_scale)
        checks.check_flag(op, "post_norm", post_norm)
        if act not in ACTIVATIONS:
            raise ValueError(f"{op}: unknown act: got {act!r}; expected one of {', '.join(ACTIVATIONS)}.")
    if call.known or call.runs_kernel(tensors, channel_reasons(x.shape[-1])):
        return _run_kernel(call, *tensors, eps, act, post_norm)
    return run_in_pytorch(*tensors, eps, act, post_norm)


def _check_linears(
    op: str, x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor | None, fc2_weight: Tensor, fc2_bias: Tensor | None
) -> None:
    channels = x.shape[-1]
    checks.check_tensor(op, "fc1_weight", fc1_weight, ndim=2)
    hidden = fc1_weight.shape[0]
    checks.check_shape(op, "fc1_weight", fc1_weight, (None, channels), f"(F, {channels}) for x {tuple(x.shape)}")
    if hidden == 0:
        raise ValueError(
            f"{op}: there are no hidden channels: got fc1_weight {tuple(fc1_weight.shape)}; expected at least 1."
        )
    checks.check_tensor(op, "fc2_weight", fc2_weight, ndim=2)
    checks.check_shape(
        op,
        "fc2_weight",
        fc2_weight,
        (channels, hidden),
        f"({channels}, {hidden}) after fc1_weight {tuple(fc1_weight.shape)}",
    )
    weights = {"fc1_weight": fc1_weight, "fc2_weight": fc2_weight}
    check_linears(op, x, weights, {"fc1_bias": (fc1_bias, hidden), "fc2_bias": (fc2_bias, channels)})


def _run_kernel(
    call: Plan,
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
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = autocast(fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    norm_weight, norm_bias, fc1_bias, fc2_bias, layer_scale, row_scale = (
        unit_stride(vector) for vector in (norm_weight, norm_bias, fc1_bias, fc2_bias, layer_scale, row_scale)
    )
    tensors = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, layer_scale, row_scale)

    def choose() -> tuple[str, bool]:
        keep = is_graded(tensors)
        return kernels.mlp_plan(x.shape[-1], fc1_weight.shape[0], fc1_weight.dtype, arch_of(x), keep), keep

    return call.run(layernorm_mlp_forward, *tensors, eps, act, post_norm, *call.chosen(choose))[0]
