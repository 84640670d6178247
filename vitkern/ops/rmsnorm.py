"""RMSNorm, of a residual sum where there is one: validation, dispatch, the registered operator, the PyTorch path."""

from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON
from vitkern.ops import checks
from vitkern.ops.layernorm import channel_reasons, check_norm, check_residual, output_dtype, unit_stride
from vitkern.plans import plan_of
from vitkern.register import kernel_op


def rmsnorm_in_pytorch(
    x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The normalised rows and the sum, empty without a residual; in the wider dtype of the sum and the weight."""
    total = x if residual is None else x + residual
    wide = total.dtype if weight is None else torch.promote_types(total.dtype, weight.dtype)
    y = _normalised(total.to(wide), None if weight is None else weight.to(wide), eps)
    return y.to(dtype), x.new_empty(0) if residual is None else total


def _normalised(rows: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if not torch.jit.is_tracing():
        return F.rms_norm(rows, rows.shape[-1:], weight, eps)
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))  # the older ONNX exporter has no rms_norm
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight).to(rows.dtype)


if HAS_TRITON:
    from vitkern.kernels import rmsnorm as kernels

    @kernel_op(
        kernels.rmsnorm_outputs, differentiable=("x", "weight", "residual"), graded=2, fallback=rmsnorm_in_pytorch
    )
    def rmsnorm_forward(
        x: Tensor, weight: Tensor | None, residual: Tensor | None, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        return kernels.rmsnorm_forward(x, weight, residual, eps, dtype)

    @rmsnorm_forward.backward(kernels.rmsnorm_gradients)
    def rmsnorm_backward(
        grad: Tensor | None,
        grad_total: Tensor | None,
        y: Tensor,
        total: Tensor,
        rstd: Tensor,
        x: Tensor,
        weight: Tensor | None,
        residual: Tensor | None,
        eps: float,
        dtype: torch.dtype,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        return kernels.rmsnorm_backward(grad, grad_total, y, total, rstd, x, weight, residual, eps, dtype, needs)

    @register_flop_formula([torch.ops.vitkern.rmsnorm, torch.ops.vitkern.rmsnorm_backward])
    def _flops(*args: Any, **kwargs: Any) -> int:
        return 0  # as PyTorch counts its own: matrix products only


@overload
def rmsnorm(x: Tensor, weight: Tensor | None, eps: float | None = None, residual: None = None) -> Tensor: ...
@overload
def rmsnorm(x: Tensor, weight: Tensor | None, eps: float | None, residual: Tensor) -> tuple[Tensor, Tensor]: ...
@overload
def rmsnorm(
    x: Tensor, weight: Tensor | None, eps: float | None = None, *, residual: Tensor
) -> tuple[Tensor, Tensor]: ...
def rmsnorm(
    x: Tensor, weight: Tensor | None, eps: float | None = None, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Divides the last dimension of ``x``, or of ``x + residual``, by its root mean square (Zhang and Sennrich,
    arXiv 1910.07467): ``s / sqrt(mean(s^2) + eps) * weight``.

    As torch.nn.functional.rms_norm, and timm's and Gemma's, the weight is applied in float32 and the result rounded
    once. Llama's rounds before the weight too, so that half precisions differ in the last bit.

    Args:
        x: (..., C), float16, bfloat16 or float32 (float64 and C > 8192 run in PyTorch); any strides.
        weight: (C,), dtype of ``x`` or float32; None for ones.
        eps: added to the mean square, in float32. None, as in PyTorch: the eps of the dtype that computes, which is
            1.2e-7, and 2.2e-16 for float64.
        residual: as ``x``; its dtype may differ.

    Returns:
        y (..., C), contiguous; with a residual (y, x + residual). y has the dtype of ``x``; under autocast it has
        the autocast dtype, which the matrix product that follows would cast to. The sum has the dtype that
        ``x + residual`` has. Statistics are float32; float32 ``x`` and weight under autocast are read as they are,
        not cast first.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or dtypes do not go together.
        ValueError: shapes, devices or ``eps`` do not fit.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op, tensors = "rmsnorm", (x, weight, residual)
    call = plan_of(op, tensors, (eps,))
    if not call.checked:
        checks.check_tensor(op, "x", x)
    if eps is None:
        eps = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    if not call.checked:
        check_norm(op, x, weight, None, eps)
        check_residual(op, x, residual)
    dtype = output_dtype(x) if call.casts else x.dtype
    if call.known or call.runs_kernel(tensors, channel_reasons(x.shape[-1])):
        y, total, *_ = call.run(rmsnorm_forward, x, unit_stride(weight), residual, eps, dtype)
    else:
        y, total = rmsnorm_in_pytorch(x, weight, residual, eps, dtype)
    return y if residual is None else (y, total)
