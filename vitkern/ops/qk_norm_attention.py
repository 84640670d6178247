"""Attention of normalised queries and keys: validation, dispatch, the registered operator, the PyTorch path."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast
from vitkern.ops import checks
from vitkern.ops.attention import attention
from vitkern.ops.attention.softmax import attention_in_pytorch
from vitkern.ops.layernorm import check_norm, layernorm, normalise
from vitkern.ops.rmsnorm import rmsnorm, rmsnorm_in_pytorch
from vitkern.plans import plan_of
from vitkern.register import kernel_op

NORMS = ("layernorm", "rmsnorm")


def qk_norm_attention(
    qkv: Tensor,
    q_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    k_weight: Tensor | None = None,
    k_bias: Tensor | None = None,
    *,
    norm: str = "layernorm",
    eps: float = 1e-6,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale * norm(q) norm(k)^T) v, the norm over the D channels of a head (Henry et al., arXiv 2010.04245;
    ViT-22B, Dehghani et al., arXiv 2302.05442, section 2). Kernels normalise what they load, and q and k stay raw in
    memory; where more than 1023 tokens would be normalised again and again, or heads are wider than 80 channels, a
    kernel for the norm runs before.

    Args:
        qkv: (B, N, 3, H, D) as a projection leaves it; float16, bfloat16 or float32 (float64 and D > 256 run in
            PyTorch); any strides.
        q_weight: (D,), dtype of ``qkv`` or float32; None for ones. So k_weight.
        q_bias: (D,), or None for zeros. So k_bias. LayerNorm's alone.
        norm: "layernorm" or "rmsnorm".
        eps: of both norms.
        scale: 1 / sqrt(D) by default.

    Returns:
        (B, N, H, D), contiguous, in the dtype of ``qkv`` (the autocast dtype under autocast). Differentiable in all
        tensors; deterministic. The backward keeps the arguments, the result and a number for each token and head.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or no number; or dtypes do not go together.
        ValueError: shapes, devices or numbers do not fit, ``norm`` is unknown, or RMSNorm is given a bias.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op, parameters = "qk_norm_attention", (q_weight, q_bias, k_weight, k_bias)
    call = plan_of(op, (qkv, *parameters), (norm, eps, scale))
    if not call.checked:
        checks.check_tensor(op, "qkv", qkv, ndim=5)
        checks.check_shape(op, "qkv", qkv, (None, None, 3, None, None), "(B, N, 3, H, D)")
        if qkv.shape[-1] == 0:
            raise ValueError(f"{op}: head dim is 0: got qkv {tuple(qkv.shape)}; expected at least 1.")
        if norm not in NORMS:
            raise ValueError(f"{op}: norm is unknown: got {norm!r}; expected one of {', '.join(map(repr, NORMS))}.")
        for prefix, weight, bias in (("q_", q_weight, q_bias), ("k_", k_weight, k_bias)):
            if norm == "rmsnorm" and bias is not None:
                raise ValueError(f"{op}: RMSNorm has no bias: got a {prefix}bias; expected None. Leave it out.")
            check_norm(op, qkv, weight, bias, eps, prefix)
        checks.check_scale(op, scale)
    if call.casts:
        (qkv,) = autocast(qkv)
    scale = 1 / math.sqrt(qkv.shape[-1]) if scale is None else 1.0 * scale  # not float(), which fixes a symbol
    centred = norm == "layernorm"
    if call.known or (_in_tile(qkv) and call.runs_kernel((qkv, *parameters))):
        return call.run(qk_norm_attention_op, qkv, *parameters, scale, eps, centred)[0]
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
    if centred:
        q, k = layernorm(q, q_weight, q_bias, eps), layernorm(k, k_weight, k_bias, eps)
    else:
        q, k = rmsnorm(q, q_weight, eps), rmsnorm(k, k_weight, eps)
    return attention(q, k, v, scale=scale).transpose(1, 2)


def _in_tile(qkv: Tensor) -> bool:
    """Whether one kernel does both; otherwise each of the two has its own reasons to run where it does."""
    return HAS_TRITON and kernels.takes(qkv)


def _in_pytorch(
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    scale: float,
    eps: float,
    centred: bool,
) -> tuple[Tensor, None]:
    """(B, N, H, D), and no lse."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
    if centred:
        q, k = normalise(q, q_weight, q_bias, eps), normalise(k, k_weight, k_bias, eps)
    else:
        q, k = (rmsnorm_in_pytorch(x, w, None, eps, qkv.dtype)[0] for x, w in ((q, q_weight), (k, k_weight)))
    out, _ = attention_in_pytorch(q, k, v, None, None, None, None, scale, False, 0.0, 0.0, False)
    return out.transpose(1, 2), None


if HAS_TRITON:
    from vitkern.kernels import qk_norm_attention as kernels

    qk_norm_attention_op = kernel_op(
        kernels.qk_norm_attention_outputs,
        differentiable=("qkv", "q_weight", "q_bias", "k_weight", "k_bias"),
        fallback=_in_pytorch,
    )(kernels.qk_norm_attention_forward)
    qk_norm_attention_op.backward(kernels.qk_norm_attention_gradients)(kernels.qk_norm_attention_backward)

    @register_flop_formula(torch.ops.vitkern.qk_norm_attention)
    def _forward_flops(qkv_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
        batch, tokens, _, heads, head_dim = qkv_shape
        return 4 * batch * tokens**2 * heads * head_dim

    @register_flop_formula(torch.ops.vitkern.qk_norm_attention_backward)
    def _backward_flops(grad: Any, out: Any, lse: Any, qkv_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
        return _forward_flops(qkv_shape) * 5 // 2
