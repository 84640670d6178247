"""Additive attention: validation, dispatch, the registered operator, the PyTorch path."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast, is_eager, no_autocast
from vitkern.ops import checks
from vitkern.ops.sizes import fixed
from vitkern.plans import plan_of
from vitkern.register import kernel_op

MAX_BYTES = 512  # of a row of values, in the kernels
CHUNK = 2**18  # hidden features that the PyTorch path holds at a time: they stay in a core's cache
HELD = 2**26  # hidden features that it keeps for a backward, 256 MiB; of more it computes them again, for up to 1.5x


def additive_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax_j(sum_f weight_f tanh(q_if + k_jf)) v: scores of a perceptron with one hidden layer (Bahdanau et al.,
    arXiv 1409.0473, appendix A.1.2). No tensor of N x M, nor of N x M x F, is held, forward or backward.

    Args:
        q: (B, H, N, F), projected queries; k: (B, H, M, F), projected keys; v: (B, H, M, D). float16, bfloat16, float32
            (float64, and D above 256, 128 in float32, run in PyTorch), any strides.
        weight: (H, F), of any floating dtype.
        key_padding_mask: (B, M) bool, True attends.
        dropout_p: probability of dropping an attention weight, 0 <= p < 1; above 0 the PyTorch path runs.

    Returns:
        (B, H, N, D) in the dtype of ``q`` (the autocast dtype under autocast), laid out as contiguous (B, N, H, D). A
        row that may attend to nothing is 0, its gradients too. Differentiable in q, k, v and weight; deterministic. The
        backward keeps the arguments, the result, and a number for each query and head.

    Raises:
        TypeError: dtypes differ or are unsupported, or an argument is not a dense tensor.
        ValueError: shapes, devices or ``dropout_p`` do not fit.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "additive_attention"
    call = plan_of(op, (q, k, v, weight, key_padding_mask), (dropout_p,))
    if not call.known:
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            checks.check_tensor(op, name, tensor, ndim=4)
        checks.check_tensor(op, "weight", weight, ndim=2)
    if call.casts:
        q, k, v = autocast(q, k, v)
    if not call.known:
        checks.check_same(op, q=q, k=k, v=v)
        _check(op, q, k, v, weight, key_padding_mask)
        checks.check_probability(op, "dropout_p", dropout_p)
    if call.known or call.runs_kernel((q, k, v, weight, key_padding_mask), _reasons(v, dropout_p)):
        return call.run(additive_attention_op, q, k, v, weight, key_padding_mask)[0].transpose(1, 2)
    return _in_pytorch(q, k, v, weight, key_padding_mask, dropout_p)


def _reasons(v: Tensor, dropout_p: float) -> list[str]:
    """Why the kernels cannot run, beside the tensors themselves."""
    reasons = ["the kernels do not drop attention weights"] * (dropout_p > 0.0)
    most = MAX_BYTES // v.element_size()
    return reasons + [f"{v.shape[-1]} channels of v are above {most} in {v.dtype}"] * (v.shape[-1] > most)


def _check(op: str, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, key_padding_mask: Tensor | None) -> None:
    batch, heads, _, features = q.shape
    keys = k.shape[2]
    if features == 0 or v.shape[-1] == 0:
        raise ValueError(
            f"{op}: there are no features or no channels: got q {tuple(q.shape)}, v {tuple(v.shape)}; expected at "
            "least 1 of each."
        )
    expected = (batch, heads, None, features)
    checks.check_shape(op, "k", k, expected, lambda: f"(B, H, M, F) with q's B, H, F = {batch}, {heads}, {features}")
    checks.check_shape(op, "v", v, (*k.shape[:3], None), lambda: f"(B, H, M, D) beside k {tuple(k.shape)}")
    checks.check_shape(op, "weight", weight, (heads, features), lambda: f"(H, F) with q's H, F = {heads}, {features}")
    if key_padding_mask is not None:
        checks.check_dense(op, "key_padding_mask", key_padding_mask)
        if key_padding_mask.dtype != torch.bool:
            raise TypeError(
                f"{op}: key_padding_mask is not a bool tensor: got {key_padding_mask.dtype}; expected True where a key "
                "is attended to."
            )
        checks.check_shape(op, "key_padding_mask", key_padding_mask, (batch, keys), "(B, M), one for each key")
    devices = {t.device for t in (q, weight, key_padding_mask) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"{op}: devices differ: got {sorted(map(str, devices))}; expected one. Move them together.")


def _in_pytorch(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, key_padding_mask: Tensor | None, dropout_p: float = 0.0
) -> Tensor:
    """By blocks of queries where sizes may be looked at. (B, H, N, D), laid out as (B, N, H, D)."""
    terms = (k, v, weight, key_padding_mask, dropout_p)
    with no_autocast(q):
        if not is_eager() or q.is_cuda:
            out = _rows(q, *terms)
        else:
            batch, heads, queries, features = map(fixed, q.shape)
            of_row = max(1, batch * heads * fixed(k.shape[2]) * features)
            again = torch.is_grad_enabled() and of_row * queries > HELD
            blocks = q.split(max(1, CHUNK // of_row), 2)
            if again:
                found = [checkpoint(_rows, block, *terms, use_reentrant=False) for block in blocks]
            else:
                found = [_rows(block, *terms) for block in blocks]
            out = found[0] if len(found) == 1 else torch.cat(found, 2)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _rows(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, key_padding_mask: Tensor | None, dropout_p: float) -> Tensor:
    """(B, H, N, D), of all these queries at once; scores in float32 at least."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    hidden = (q.to(wide)[:, :, :, None] + k.to(wide)[:, :, None]).tanh_()  # (B, H, N, M, F)
    if weight.shape[0] == 1:
        scores = F.linear(hidden, weight.to(wide)).squeeze(-1)
    else:
        scores = (hidden.flatten(2, 3) @ weight.to(wide)[..., None]).view(hidden.shape[:-1])
    if key_padding_mask is not None:
        seen = key_padding_mask[:, None, None, :]
        scores = scores.masked_fill(~seen, -math.inf)
        weights = scores.softmax(-1).masked_fill(~seen, 0.0)  # NaN where there is no key
    else:
        weights = scores.softmax(-1)
    if dropout_p > 0.0:
        weights = F.dropout(weights, dropout_p)
    return weights.to(v.dtype) @ v


def _kernel_in_pytorch(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor | None) -> tuple[Tensor, None]:
    """What the kernel computes, from its arguments: (B, N, H, D), and no logarithms."""
    return _rows(q, k, v, weight, mask, 0.0).transpose(1, 2), None


if HAS_TRITON:
    from vitkern.kernels import additive_attention as kernels

    additive_attention_op = kernel_op(
        kernels.additive_attention_outputs, differentiable=("q", "k", "v", "weight"), fallback=_kernel_in_pytorch
    )(kernels.additive_attention_forward)
    additive_attention_op.backward(kernels.additive_attention_gradients)(kernels.additive_attention_backward)

    @register_flop_formula(torch.ops.vitkern.additive_attention)
    def _forward_flops(
        q_shape: Sequence[int], k_shape: Sequence[int], v_shape: Sequence[int], *args: Any, **kwargs: Any
    ) -> int:
        batch, heads, queries, features = q_shape
        return 2 * batch * heads * queries * k_shape[2] * (features + v_shape[3])

    @register_flop_formula(torch.ops.vitkern.additive_attention_backward)
    def _backward_flops(grad: Any, out: Any, lse: Any, *inputs: Any, **kwargs: Any) -> int:
        return 2 * _forward_flops(*inputs)
