"""Policy attention (DynamicViT): validation, dispatch, the registered operator."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast
from vitkern.ops import checks
from vitkern.ops.policy_attention.chunks import in_chunks
from vitkern.plans import plan_of
from vitkern.register import kernel_op

MAX_HEAD_DIM = 256


def policy_attention(qkv: Tensor, policy: Tensor, *, scale: float | None = None, eps: float = 1e-6) -> Tensor:
    """Self-attention in which token j counts, as a key, for ``policy[:, j]``, and each token for 1 to itself: how
    DynamicViT trains what it prunes (Rao et al., arXiv 2106.02034, section 3.3, with the smoothing of its code):

        E_ij = exp(s_ij - max_j s_ij) G_ij    G_ij = policy_j, 1 where i = j    out = (E + eps / N) v / (sum_j E + eps)

    The maximum is that of all keys. A policy of ones is `vitkern.attention_qkvpacked`, to eps; one of zeros leaves each
    token itself, and with eps the mean of all.

    Args:
        qkv: (B, N, 3, H, D) as a projection leaves it; float16, bfloat16 or float32 (float64 and D > 256 run in
            PyTorch); any strides.
        policy: (B, N), or (B, N, 1) as DynamicViT keeps it; any floating dtype. 0 or more: kernels keep the logarithm
            of a row's sum. Its gradient is that of a factor: keys that count for 0 have one too, which a
            straight-through sample needs.
        scale: 1 / sqrt(D) by default.
        eps: of the smoothing, 0 or more. Where it is 0, a row that sums to less than 1e-37 has gradients that float32
            does not hold.

    Returns:
        (B, N, H, D), contiguous, in the dtype of ``qkv`` (the autocast dtype under autocast). Differentiable in both;
        deterministic. The backward keeps the arguments, the result and three numbers for each token and head. Where eps
        is 0 and no key counts for anything that float32 holds, the row is 0.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, or no number.
        ValueError: shapes or devices do not fit, or a number.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "policy_attention"
    call = plan_of(op, (qkv, policy), (scale, eps))
    if not call.known:
        _check(op, qkv, policy, eps)
        checks.check_scale(op, scale)
    if call.casts:
        (qkv,) = autocast(qkv)
    scale = 1 / math.sqrt(qkv.shape[-1]) if scale is None else 1.0 * scale  # not float(), which fixes a symbol
    flat = policy if policy.dim() == 2 else policy.squeeze(2)
    if call.known or call.runs_kernel((qkv, policy), _reasons(qkv)):
        return call.run(policy_attention_op, qkv, flat, scale, 1.0 * eps)[0]
    return in_chunks(qkv, flat, scale, eps)[0]


def _check(op: str, qkv: Tensor, policy: Tensor, eps: float) -> None:
    checks.check_tensor(op, "qkv", qkv, ndim=5)
    checks.check_shape(op, "qkv", qkv, (None, None, 3, None, None), "(B, N, 3, H, D)")
    if qkv.shape[-1] == 0:
        raise ValueError(f"{op}: head dim is 0: got qkv {tuple(qkv.shape)}; expected at least 1.")
    checks.check_tensor(op, "policy", policy)
    batch, tokens = qkv.shape[:2]
    if policy.dim() not in (2, 3) or policy.shape[:2] != (batch, tokens) or policy.shape[2:].numel() != 1:
        raise ValueError(
            f"{op}: policy has the wrong shape: got {tuple(policy.shape)} for {batch} x {tokens} tokens; expected (B, "
            f"N) = {(batch, tokens)}, or (B, N, 1). Give every token its own number, a class token 1."
        )
    if policy.device != qkv.device:
        raise ValueError(
            f"{op}: devices differ: got qkv on {qkv.device}, policy on {policy.device}; expected one. Move them "
            "together."
        )
    checks.check_number(op, "eps", eps, "a finite number, 0 or more")
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"{op}: eps is not usable: got {eps}; expected a finite number, 0 or more.")


def _reasons(qkv: Tensor) -> list[str]:
    """Why the kernels cannot run, beside the tensors themselves."""
    head_dim = qkv.shape[-1]
    return [f"head dim {head_dim} is above {MAX_HEAD_DIM}"] * (head_dim > MAX_HEAD_DIM)


def _launcher_in_pytorch(qkv: Tensor, policy: Tensor, scale: float, eps: float) -> tuple[Tensor | None, ...]:
    """What the launcher returns, without what kernels alone read; but no None, a NaN, stands for integers."""
    batch, tokens, _, heads, _ = qkv.shape
    first = qkv.new_zeros((batch, heads, tokens), dtype=torch.int32)
    return in_chunks(qkv, policy, scale, eps)[0], None, None, first, None


if HAS_TRITON:
    from vitkern.kernels import policy_attention as kernels

    policy_attention_op = kernel_op(
        kernels.policy_attention_outputs, differentiable=("qkv", "policy"), fallback=_launcher_in_pytorch
    )(kernels.policy_attention_forward)
    policy_attention_op.backward(kernels.policy_attention_gradients)(kernels.policy_attention_backward)

    @register_flop_formula(torch.ops.vitkern.policy_attention)
    def _forward_flops(qkv_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
        batch, tokens, _, heads, head_dim = qkv_shape
        return 4 * batch * tokens**2 * heads * head_dim

    @register_flop_formula(torch.ops.vitkern.policy_attention_backward)
    def _backward_flops(
        grad: Any, out: Any, lse: Any, share: Any, first: Any, means: Any, qkv_shape: Sequence[int],
        *args: Any, **kwargs: Any,
    ) -> int:  # fmt: skip
        return _forward_flops(qkv_shape) * 5 // 2
