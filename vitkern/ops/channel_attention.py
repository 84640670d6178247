"""Attention between channels (DaViT), of unit length too (XCiT): validation, dispatch, the registered operator, the
PyTorch path."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast, no_autocast
from vitkern.ops import checks
from vitkern.plans import plan_of
from vitkern.register import kernel_op

VALUES = ("q", "v")
MAX_HEAD_DIM = 64  # of the kernels: their registers hold some D x D tiles of float32
MIN_NORM = 1e-12


def channel_attention(qkv: Tensor, *, value: str = "q", scale: float | None = None) -> Tensor:
    """Attention between the D channels of each head, over all tokens (DaViT, Ding et al., arXiv 2204.03645, section
    3.2): each channel of the result is a mean of channels, by a D x D softmax. Linear in N.

    As in DaViT's code, q is what is mixed: softmax(scale * k^T v) q^T. Padded tokens count like others.

    Args:
        qkv: (B, N, 3, H, D) as a projection leaves it; float16, bfloat16 or float32 (float64 and D > 64 run in
            PyTorch); any strides.
        value: "q" for DaViT; "v" for its later variants, softmax(scale * q^T k) v^T (timm's ``ChannelAttentionV2``).
        scale: 1 / sqrt(D) by default; the later variants take 1 / sqrt(N).

    Returns:
        (B, N, H, D), contiguous, in the dtype of ``qkv`` (the autocast dtype under autocast). Differentiable;
        deterministic. The backward keeps ``qkv`` and the result, and of long images a few D x D sums in float32.

    Raises:
        TypeError: ``qkv`` is not a dense floating-point tensor, or an argument has another type.
        ValueError: shape, ``value`` or ``scale`` do not fit.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "channel_attention"
    call = plan_of(op, (qkv,), (value, scale))
    if not call.known:
        _check_qkv(op, qkv)
        if value not in VALUES:
            raise ValueError(f"{op}: value is unknown: got {value!r}; expected one of {', '.join(map(repr, VALUES))}.")
        checks.check_scale(op, scale)
    if call.casts:
        (qkv,) = autocast(qkv)
    scale = 1 / math.sqrt(qkv.shape[-1]) if scale is None else 1.0 * scale  # not float(), which fixes a symbol
    if call.known or call.runs_kernel((qkv,), _reasons(qkv)):
        return call.run(channel_attention_op, qkv, None, scale, value == "q")[0]
    return _in_pytorch(qkv, None, scale, value == "q")[0]


def cross_covariance_attention(qkv: Tensor, temperature: Tensor) -> Tensor:
    """softmax(temperature * (q / |q|)^T (k / |k|)) v^T, a D x D softmax for each head, the norms of channels over all
    tokens (XCiT, El-Nouby et al., arXiv 2106.09681, section 3.2, equation 3). Linear in N.

    Args:
        qkv: (B, N, 3, H, D) as a projection leaves it; float16, bfloat16 or float32 (float64 and D > 64 run in
            PyTorch); any strides. Norms below 1e-12 are taken as 1e-12.
        temperature: (H,), or (H, 1, 1) as timm keeps it; any floating dtype.

    Returns:
        (B, N, H, D), contiguous, in the dtype of ``qkv`` (the autocast dtype under autocast). Differentiable in both;
        deterministic. The backward keeps the arguments and the result, and of long images a few D x D sums in float32.

    Raises:
        TypeError: an argument is not a dense floating-point tensor.
        ValueError: shapes or devices do not fit.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "cross_covariance_attention"
    call = plan_of(op, (qkv, temperature), ())
    if not call.known:
        _check_qkv(op, qkv)
        checks.check_tensor(op, "temperature", temperature)
        heads = qkv.shape[3]
        if tuple(temperature.shape) not in ((heads,), (heads, 1, 1)):
            raise ValueError(
                f"{op}: temperature has the wrong shape: got {tuple(temperature.shape)}; expected (H,) or (H, 1, 1) "
                f"with H = {heads}."
            )
        if temperature.device != qkv.device:
            raise ValueError(
                f"{op}: devices differ: got qkv on {qkv.device}, temperature on {temperature.device}; expected one. "
                "Move them together."
            )
    if call.casts:
        (qkv,) = autocast(qkv)
    flat = temperature.reshape(-1)
    if call.known or call.runs_kernel((qkv, temperature), _reasons(qkv), "channel_attention"):
        return call.run(channel_attention_op, qkv, flat, 1.0, False)[0]
    return _in_pytorch(qkv, flat, 1.0, False)[0]


def _check_qkv(op: str, qkv: Tensor) -> None:
    """
    Raises:
        TypeError: no dense floating-point tensor.
        ValueError: not (B, N, 3, H, D), or D is 0.
    """
    checks.check_tensor(op, "qkv", qkv, ndim=5)
    checks.check_shape(op, "qkv", qkv, (None, None, 3, None, None), "(B, N, 3, H, D)")
    if qkv.shape[-1] == 0:
        raise ValueError(f"{op}: head dim is 0: got qkv {tuple(qkv.shape)}; expected at least 1.")


def _reasons(qkv: Tensor) -> list[str]:
    """Why the kernels cannot run, beside the tensors themselves."""
    head_dim = qkv.shape[-1]
    return [f"head dim {head_dim} is above {MAX_HEAD_DIM}"] * (head_dim > MAX_HEAD_DIM)


def _in_pytorch(qkv: Tensor, temperature: Tensor | None, scale: float, mixes_q: bool) -> tuple[Tensor, None]:
    """What the operator computes: (B, N, H, D), and no sums."""
    rows = qkv.float() if qkv.dtype == torch.float16 else qkv  # sums over all tokens may pass its range
    q, k, v = rows.permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
    left, right, carried = (k, v, q) if mixes_q else (q, k, v)
    with no_autocast(qkv):
        logits = left.transpose(-1, -2) @ right  # (B, H, D, D)
        if temperature is None:
            logits = logits * scale
        else:
            norms = torch.linalg.vector_norm(rows[:, :, :2], dim=1).clamp_min(MIN_NORM)  # (B, 2, H, D)
            factor = temperature.to(logits.dtype).view(-1, 1, 1) / (norms[:, 0, :, :, None] * norms[:, 1, :, None, :])
            logits = logits * factor
        out = carried @ logits.softmax(-1).transpose(-1, -2)
    return out.transpose(1, 2).to(qkv.dtype).contiguous(), None


if HAS_TRITON:
    from vitkern.kernels import channel_attention as kernels

    channel_attention_op = kernel_op(
        kernels.channel_attention_outputs, differentiable=("qkv", "temperature"), fallback=_in_pytorch
    )(kernels.channel_attention_forward)
    channel_attention_op.backward(kernels.channel_attention_gradients)(kernels.channel_attention_backward)

    @register_flop_formula(torch.ops.vitkern.channel_attention)
    def _forward_flops(qkv_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
        batch, tokens, _, heads, head_dim = qkv_shape
        return 4 * batch * tokens * heads * head_dim**2

    @register_flop_formula(torch.ops.vitkern.channel_attention_backward)
    def _backward_flops(grad: Any, out: Any, sums: Any, qkv_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
        return 2 * _forward_flops(qkv_shape)
