"""LayerNorm, of a residual sum where there is one: validation, dispatch, the registered operator, the PyTorch path."""

from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast_dtype
from vitkern.ops import checks
from vitkern.ops.sizes import fixed
from vitkern.plans import plan_of
from vitkern.register import kernel_op

MAX_CHANNELS = 8192


def _in_pytorch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The normalised rows and the sum, empty without a residual."""
    total = x if residual is None else x + residual
    return normalise(total, weight, bias, eps).to(dtype), x.new_empty(0) if residual is None else total


if HAS_TRITON:
    from vitkern.kernels import layernorm as kernels

    @kernel_op(
        kernels.layernorm_outputs,
        differentiable=("x", "weight", "bias", "residual"),
        graded=2,
        fallback=_in_pytorch,
    )
    def layernorm_forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return kernels.layernorm_forward(x, weight, bias, residual, eps, dtype)

    @layernorm_forward.backward(kernels.layernorm_gradients)
    def layernorm_backward(
        grad: Tensor | None,
        grad_total: Tensor | None,
        y: Tensor,
        total: Tensor,
        mean: Tensor,
        rstd: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        eps: float,
        dtype: torch.dtype,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return kernels.layernorm_backward(
            grad, grad_total, y, total, mean, rstd, x, weight, bias, residual, eps, dtype, needs
        )

    @register_flop_formula([torch.ops.vitkern.layernorm, torch.ops.vitkern.layernorm_backward])
    def _flops(*args: Any, **kwargs: Any) -> int:
        return 0  # as PyTorch counts its own: matrix products only


@overload
def layernorm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: None = None) -> Tensor: ...
@overload
def layernorm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor
) -> tuple[Tensor, Tensor]: ...
def layernorm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalises the last dimension of ``x``, or of ``x + residual`` (Ba et al., arXiv 1607.06450).

    Args:
        x: (..., C), float16, bfloat16 or float32 (float64 and C > 8192 run in PyTorch); any strides.
        weight, bias: (C,), dtype of ``x`` or float32; None for ones and zeros.
        eps: added to the variance, in float32, so that 1e-12 counts in every dtype.
        residual: as ``x``; its dtype may differ.

    Returns:
        y (..., C), contiguous; with a residual (y, x + residual). y has the dtype of ``x``; under autocast it has
        the autocast dtype, which the matrix product that follows would cast to. The sum has the dtype that
        ``x + residual`` has. Statistics are float32, two-pass; float32 ``x`` and parameters under autocast are
        read as they are, not cast first.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or dtypes do not go together.
        ValueError: shapes, devices or ``eps`` do not fit.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op, tensors = "layernorm", (x, weight, bias, residual)
    call = plan_of(op, tensors, (eps,))
    if not call.checked:
        checks.check_tensor(op, "x", x)
        check_norm(op, x, weight, bias, eps)
        check_residual(op, x, residual)
    dtype = output_dtype(x) if call.casts else x.dtype
    if call.known or call.runs_kernel(tensors, channel_reasons(x.shape[-1])):
        y, total, *_ = call.run(
            layernorm_forward, x, unit_stride(weight), unit_stride(bias), residual, eps, output_dtype(x)
        )
        return y if residual is None else (y, total)
    y, total = _in_pytorch(x, weight, bias, residual, eps, dtype)
    return y if residual is None else (y, total)


def unit_stride(vector: Tensor | None) -> Tensor | None:
    """One value per channel as kernels read them: side by side."""
    return None if vector is None else vector.contiguous()


def output_dtype(x: Tensor) -> torch.dtype:
    """Dtype of the normalised rows: that of x, or autocast's where autocast is on."""
    dtype = autocast_dtype(x)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """PyTorch's layer norm, for parameters of another dtype as well: in the wider of the two."""
    wide = x.dtype
    for parameter in (weight, bias):
        wide = wide if parameter is None else torch.promote_types(wide, parameter.dtype)
    weight, bias = (None if parameter is None else parameter.to(wide) for parameter in (weight, bias))
    return F.layer_norm(x.to(wide), (fixed(x.shape[-1]),), weight, bias, eps).to(x.dtype)


def check_norm(op: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, prefix: str = "") -> None:
    """The parameters of a norm over x's last dimension."""
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{op}: x has no channels: got shape {tuple(x.shape)}; expected (..., C) with C at least 1.")
    channels = x.shape[-1]
    autocast = autocast_dtype(x) is not None
    for name, value in ((prefix + "weight", weight), (prefix + "bias", bias)):
        if value is None:
            continue
        checks.check_tensor(op, name, value)
        checks.check_shape(op, name, value, (channels,), f"({channels},), one per channel of x {tuple(x.shape)}")
        check_devices(op, **{"x": x, name: value})
        if (not autocast and value.dtype not in (x.dtype, torch.float32)) or (
            torch.float64 in (x.dtype, value.dtype) and x.dtype != value.dtype
        ):
            raise TypeError(
                f"{op}: dtypes differ: got x {x.dtype}, {name} {value.dtype}; expected {name} in x's dtype or float32. "
                "Cast explicitly or use autocast."
            )
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        raise TypeError(
            f"{op}: dtypes differ: got {prefix}weight {weight.dtype}, {prefix}bias {bias.dtype}; expected one dtype "
            f"for both. Cast one."
        )
    meaning = "a finite number of at least 0"
    checks.check_number(op, "eps", eps, meaning)
    if not 0.0 <= eps < float("inf"):
        raise ValueError(f"{op}: eps is not usable: got {eps}; expected {meaning}.")


def check_residual(op: str, x: Tensor, residual: Tensor | None) -> None:
    """What is added to x before the norm."""
    if residual is not None:
        checks.check_tensor(op, "residual", residual)
        checks.check_shape(op, "residual", residual, tuple(x.shape), f"x's shape {tuple(x.shape)}")
        check_devices(op, x=x, residual=residual)


def check_devices(op: str, **tensors: Tensor) -> None:
    if len({t.device for t in tensors.values()}) > 1:
        got = ", ".join(f"{name} on {t.device}" for name, t in tensors.items())
        raise ValueError(f"{op}: devices differ: got {got}; expected one device. Move them together.")


def channel_reasons(channels: int) -> list[str]:
    """Why a kernel that holds whole rows cannot take them."""
    return [f"{channels} channels; a row of at most {MAX_CHANNELS} stays on chip"] if channels > MAX_CHANNELS else []
