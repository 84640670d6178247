"""Talking-heads attention (Shazeer et al.; CaiT): validation, dispatch, the registered operator."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast
from vitkern.ops import checks
from vitkern.ops.talking_heads_attention.chunks import formula, in_chunks
from vitkern.plans import plan_of
from vitkern.register import kernel_op


def talking_heads_attention(
    qkv: Tensor,
    before: Tensor,
    after: Tensor,
    before_bias: Tensor | None = None,
    after_bias: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention whose heads are mixed, for each pair of tokens, before and after the softmax (Shazeer et al., arXiv
    2003.02436, section 3; CaiT, Touvron et al., arXiv 2103.17239):

        S_h = scale q_h k_h^T    A = softmax(before S + before_bias)    out_g = (after A + after_bias)_g v_g

    Args:
        qkv: (B, N, 3, H, D) as a projection leaves it; float16, bfloat16 or float32 (float64 runs in PyTorch); any
            strides.
        before: (H, H), what mixes the logits: row g makes the logits of head g. Any floating dtype.
        after: (H, H), what mixes the weights.
        before_bias: (H,). It shifts whole rows of logits, which no softmax sees: its gradient is 0.
        after_bias: (H,), added to each weight of a head.
        scale: 1 / sqrt(D) by default.
        dropout_p: probability of dropping a mixed weight, 0 <= p < 1; the others are divided by 1 - p. Above 0 the
            PyTorch path runs and holds all scores.

    Returns:
        (B, N, H, D), contiguous, in the dtype of ``qkv`` (the autocast dtype under autocast). Differentiable in all
        tensors; deterministic. The backward keeps the arguments, the result and a number for each token and head: no
        N x N tensor. The kernels take up to 16 heads, which are mixed in one tile, of up to 64 channels (sm_80: 48;
        float32 on NVIDIA: 32; with 99 KiB of shared memory: 16); others run in PyTorch, a few queries at a time. What
        is not finite in one query may reach others of its image.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or no number.
        ValueError: shapes or devices do not fit, as where the heads do not match the mixing matrices.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "talking_heads_attention"
    mixing = before, after, before_bias, after_bias
    call = plan_of(op, (qkv, *mixing), (scale, dropout_p))
    if not call.known:
        _check(op, qkv, before, after, before_bias, after_bias)
        checks.check_scale(op, scale)
        checks.check_probability(op, "dropout_p", dropout_p)
    if call.casts:
        (qkv,) = autocast(qkv)
    scale = 1 / math.sqrt(qkv.shape[-1]) if scale is None else 1.0 * scale  # not float(), which fixes a symbol
    if call.known or call.runs_kernel((qkv, *mixing), _reasons(qkv, dropout_p)):
        return call.run(talking_heads_attention_op, qkv, *mixing, scale)[0]
    if dropout_p > 0.0:
        return formula(qkv, *mixing, scale, dropout_p)[0]
    return in_chunks(qkv, *mixing, scale)[0]


def _check(
    op: str, qkv: Tensor, before: Tensor, after: Tensor, before_bias: Tensor | None, after_bias: Tensor | None
) -> None:
    checks.check_tensor(op, "qkv", qkv, ndim=5)
    checks.check_shape(op, "qkv", qkv, (None, None, 3, None, None), "(B, N, 3, H, D)")
    if qkv.shape[-1] == 0:
        raise ValueError(f"{op}: head dim is 0: got qkv {tuple(qkv.shape)}; expected at least 1.")
    heads = qkv.shape[3]
    matrices, biases = {"before": before, "after": after}, {"before_bias": before_bias, "after_bias": after_bias}
    given = matrices | {name: bias for name, bias in biases.items() if bias is not None}
    for name, tensor in given.items():
        checks.check_tensor(op, name, tensor)
        expected = (heads, heads) if name in matrices else (heads,)
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{op}: {name} does not match the heads: got {tuple(tensor.shape)} for qkv {tuple(qkv.shape)} of "
                f"{heads} heads; expected {expected}. Split the channels into as many heads as are mixed."
            )
    devices = {name: tensor.device for name, tensor in given.items() if tensor.device != qkv.device}
    if devices:
        got = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{op}: devices differ: got qkv on {qkv.device}, {got}; expected one. Move them together.")


def _reasons(qkv: Tensor, dropout_p: float) -> list[str]:
    """Why the kernels cannot run, beside the tensors themselves."""
    found = ["the kernels do not drop weights"] * (dropout_p > 0.0)
    if HAS_TRITON and not kernels.fits(qkv):
        found.append(
            f"{qkv.shape[3]} heads of {qkv.shape[4]} channels in {qkv.dtype} do not fit the tile that mixes them"
        )
    return found


if HAS_TRITON:
    from vitkern.kernels import talking_heads_attention as kernels

    talking_heads_attention_op = kernel_op(
        kernels.talking_heads_attention_outputs,
        differentiable=("qkv", "before", "after", "before_bias", "after_bias"),
        fallback=in_chunks,
    )(kernels.talking_heads_attention_forward)
    talking_heads_attention_op.backward(kernels.talking_heads_attention_gradients)(
        kernels.talking_heads_attention_backward
    )

    @register_flop_formula(torch.ops.vitkern.talking_heads_attention)
    def _forward_flops(qkv_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
        batch, tokens, _, heads, head_dim = qkv_shape
        return 4 * batch * tokens**2 * heads * (head_dim + heads)

    @register_flop_formula(torch.ops.vitkern.talking_heads_attention_backward)
    def _backward_flops(grad: Any, out: Any, lse: Any, qkv_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
        batch, tokens, _, heads, head_dim = qkv_shape
        return 2 * batch * tokens**2 * heads * (5 * head_dim + 6 * heads)
