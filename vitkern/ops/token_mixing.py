"""LayerNorm, an MLP over the tokens of each channel, and the residual: validation, dispatch, the registered operator,
the PyTorch path."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast
from vitkern.ops import checks
from vitkern.ops.branch import activate, added, as_under_autocast, check_linears, check_scales, goes_in_place, is_graded
from vitkern.ops.layernorm import channel_reasons, check_norm, normalise, unit_stride
from vitkern.ops.layernorm_mlp import ACTIVATIONS
from vitkern.plans import plan_of
from vitkern.register import kernel_op


def _in_pytorch(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    row_scale: Tensor | None,
    eps: float,
    act: str,
) -> Tensor:
    """Arguments of the operator, checked. On a CPU without gradients image by image, whose hidden tokens stay in the
    cache, and nothing is transposed."""
    y = normalise(x, norm_weight, norm_bias, eps)
    if goes_in_place(x, row_scale, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
        for source, target in zip(x, y, strict=True):
            hidden = activate(_mixed(fc1_weight, target, fc1_bias), act)
            torch.add(_mixed(fc2_weight, hidden, fc2_bias), source, out=target)
        return y
    y = F.linear(activate(F.linear(y.transpose(1, 2), fc1_weight, fc1_bias), act), fc2_weight, fc2_bias)
    return added(x, y.transpose(1, 2), None, row_scale)


def _mixed(weight: Tensor, image: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(weight, image) if bias is None else torch.addmm(bias[:, None], weight, image)


def _kernel_in_pytorch(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    row_scale: Tensor | None,
    eps: float,
    act: str,
    keep: bool,
) -> Tensor:
    """The first output of `kernels.token_mixing.token_mixing_forward`, whose arguments these are."""
    with as_under_autocast(x, fc1_weight):
        return _in_pytorch(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, row_scale, eps, act)


if HAS_TRITON:
    from vitkern.kernels import token_mixing as kernels

    @kernel_op(kernels.token_mixing_outputs, differentiable=kernels.Inputs._fields, fallback=_kernel_in_pytorch)
    def token_mixing_forward(
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        fc1_weight: Tensor,
        fc1_bias: Tensor | None,
        fc2_weight: Tensor,
        fc2_bias: Tensor | None,
        row_scale: Tensor | None,
        eps: float,
        act: str,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights = (norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
        return kernels.token_mixing_forward(x, *weights, row_scale, eps, act, keep)

    @token_mixing_forward.backward(kernels.token_mixing_gradients)
    def token_mixing_backward(
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
        fc2_weight: Tensor,
        fc2_bias: Tensor | None,
        row_scale: Tensor | None,
        eps: float,
        act: str,
        keep: bool,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        kept, weights = (out, pre, mean, rstd), (norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
        return kernels.token_mixing_backward(grad, *kept, x, *weights, row_scale, eps, act, keep, needs)

    @register_flop_formula(torch.ops.vitkern.token_mixing)
    def _forward_flops(
        x_shape: Sequence[int], norm_weight: Any, norm_bias: Any, fc1_shape: Sequence[int], *args: Any, **kwargs: Any
    ) -> int:
        return 4 * math.prod(x_shape) * fc1_shape[0]

    @register_flop_formula(torch.ops.vitkern.token_mixing_backward)
    def _backward_flops(grad: Any, out: Any, pre: Any, mean: Any, rstd: Any, *inputs: Any, **_: Any) -> int:
        return 2 * _forward_flops(*inputs)


def token_mixing(
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
    row_scale: Tensor | None = None,
) -> Tensor:
    """The token-mixing half of a block of MLP-Mixer with its residual (Tolstikhin et al., arXiv 2105.01601,
    equation 1).

    ``x + row_scale * fc2(act(fc1(norm(x)^T)))^T``: the norm is over channels, and the MLP goes along the tokens of
    each channel.

    Args:
        x: (B, N, C), float16, bfloat16 or float32 (float64 runs in PyTorch); any strides.
        norm_weight, norm_bias: (C,), dtype of ``x`` or float32; None for ones and zeros.
        fc1_weight: (S, N), dtype of ``x``. fc1_bias: (S,) or None.
        fc2_weight: (N, S). fc2_bias: (N,) or None.
        eps: added to the variance.
        act: "gelu" (exact, by erf), "gelu_tanh" or "quick_gelu".
        row_scale: (B,), a factor per sample: stochastic depth, already divided by 1 - p. A constant.

    Returns:
        (B, N, C), contiguous. Under autocast the matrix products take the autocast dtype, and the residual sum keeps
        the dtype of ``x``.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or dtypes do not go together.
        ValueError: shapes, devices, ``eps`` or ``act`` do not fit, or ``row_scale`` requires a gradient.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "token_mixing"
    tensors = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, row_scale)
    call = plan_of(op, tensors, (eps, act))
    if not call.checked:
        checks.check_tensor(op, "x", x, ndim=3)
        check_norm(op, x, norm_weight, norm_bias, eps, "norm_")
        _check_linears(op, x, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
        check_scales(op, x, None, row_scale)
        if act not in ACTIVATIONS:
            raise ValueError(f"{op}: unknown act: got {act!r}; expected one of {', '.join(ACTIVATIONS)}.")
    if not (call.known or call.runs_kernel(tensors, channel_reasons(x.shape[-1]))):
        return _in_pytorch(*tensors, eps, act)
    fc1_weight, fc1_bias, fc2_weight, fc2_bias = autocast(fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    vectors = norm_weight, norm_bias, fc1_bias, fc2_bias, row_scale
    norm_weight, norm_bias, fc1_bias, fc2_bias, row_scale = map(unit_stride, vectors)
    given = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, row_scale)
    return call.run(token_mixing_forward, *given, eps, act, *call.chosen(lambda: (is_graded(given),)))[0]


def _check_linears(
    op: str, x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor | None, fc2_weight: Tensor, fc2_bias: Tensor | None
) -> None:
    tokens, of_x = x.shape[1], f"for x {tuple(x.shape)}"
    checks.check_tensor(op, "fc1_weight", fc1_weight, ndim=2)
    hidden = fc1_weight.shape[0]
    checks.check_shape(op, "fc1_weight", fc1_weight, (None, tokens), f"(S, {tokens}) {of_x}")
    if hidden == 0 or tokens == 0:
        raise ValueError(
            f"{op}: there are no tokens to mix: got fc1_weight {tuple(fc1_weight.shape)}; expected (S, N), both at "
            "least 1."
        )
    checks.check_tensor(op, "fc2_weight", fc2_weight, ndim=2)
    checks.check_shape(
        op, "fc2_weight", fc2_weight, (tokens, hidden),
        f"({tokens}, {hidden}) {of_x} and fc1_weight {tuple(fc1_weight.shape)}",
    )  # fmt: skip
    weights = {"fc1_weight": fc1_weight, "fc2_weight": fc2_weight}
    check_linears(op, x, weights, {"fc1_bias": (fc1_bias, hidden), "fc2_bias": (fc2_bias, tokens)})
