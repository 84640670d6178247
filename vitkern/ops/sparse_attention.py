"""Sampled cross-attention (STRec): validation, dispatch and the PyTorch path."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast, is_eager
from vitkern.ops import checks
from vitkern.plans import plan_of
from vitkern.reference import sparse_attention as reference
from vitkern.register import kernel_op


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    index: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    query_gate: Tensor | None = None,
    key_gate: Tensor | None = None,
    strength: float = 1e8,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention of sampled queries over the keys of a short sequence; with gates, a soft mask that can be learned.

    STRec (Li et al., Sparse Transformer for Sequential Recommendation, CIKM 2023), sections 3.2.1 and 3.2.2. The gates
    add (query_gate_i * key_gate_j - 1) * strength to the logits.

    Args:
        q: (B, H, N, D); k, v: (B, H, M, D). float16, bfloat16, float32 (float64 in PyTorch), any strides.
        index: (B, K) int64 in [0, N): which queries attend; None: all, K = N. One that is listed twice gives two equal
            rows, and gets the sum of their gradients, added in the order of the list.
        key_padding_mask: (B, M) bool, True attends.
        query_gate: (B, K) and key_gate: (B, M), both or neither, in [0, 1] by convention, any floating dtype. The
            softmax does not see a shift, so the logit is computed against the largest gate: strength may be 1e8.
        strength: finite, not negative.
        scale: factor of q k^T; 1 / sqrt(D) by default.
        dropout_p: probability of dropping an attention weight, 0 <= p < 1; the others are divided by 1 - p. Above 0 the
            PyTorch path runs, which holds the (B, H, K, M) weights.

    Returns:
        (B, H, K, D) in the dtype of ``q`` (the autocast dtype under autocast), laid out as contiguous (B, K, H, D). A
        row whose keys are all padding is 0, its gradients too. Differentiable in q, k, v and both gates. Indices are
        not checked on a GPU, where that would wait for the device.

    Raises:
        TypeError: dtypes differ or are unsupported, or an argument is not a dense tensor.
        ValueError: shapes, devices, indices, ``scale``, ``strength`` or ``dropout_p`` do not fit, or only one gate was
            given.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "sparse_attention"
    given = (q, k, v, index, key_padding_mask, query_gate, key_gate)
    call = plan_of(op, given, (strength, scale, dropout_p))
    if not call.known:
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            checks.check_tensor(op, name, tensor, ndim=4)
    if call.casts:
        q, k, v = autocast(q, k, v)
    if not call.known:
        checks.check_same(op, q=q, k=k, v=v)
        _check(op, q, k, v, index, key_padding_mask, query_gate, key_gate, strength, scale)
        checks.check_probability(op, "dropout_p", dropout_p)
    _check_rows(op, index, q.shape[2])
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    tensors = (q, k, v, query_gate, key_gate)
    if call.known or call.runs_kernel((*tensors, index, key_padding_mask), _reasons(q, k, dropout_p)):
        out = call.run(
            sparse_attention_op, q, k, v, index, key_padding_mask, query_gate, key_gate, scale, float(strength)
        )
        return out.transpose(1, 2)
    return _in_pytorch(q, k, v, index, key_padding_mask, query_gate, key_gate, strength, scale, dropout_p)


def _reasons(q: Tensor, k: Tensor, dropout_p: float) -> list[str]:
    """Why the kernel cannot run, beside the tensors themselves: it holds a row of scores in one tile."""
    reasons = ["the kernel does not drop attention weights"] * (dropout_p > 0.0)
    if HAS_TRITON and not kernels.fits(q, k):
        reasons.append(f"{k.shape[2]} keys of head dim {q.shape[3]} in {q.dtype} do not fit one tile")
    return reasons


def _check(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    key_padding_mask: Tensor | None,
    query_gate: Tensor | None,
    key_gate: Tensor | None,
    strength: float,
    scale: float | None,
) -> None:
    batch, heads, queries, head_dim = q.shape
    if head_dim == 0:
        raise ValueError(f"{op}: head dim is 0: got q {tuple(q.shape)}; expected at least 1.")
    expected = (batch, heads, None, head_dim)
    checks.check_shape(op, "k", k, expected, lambda: f"(B, H, M, D) with q's B, H, D = {batch}, {heads}, {head_dim}")
    checks.check_shape(op, "v", v, tuple(k.shape), f"the shape of k, {tuple(k.shape)}")
    checks.check_scale(op, scale)
    if not 0.0 <= strength < math.inf:
        raise ValueError(f"{op}: strength is not usable: got {strength}; expected a finite number, not negative.")
    keys = k.shape[2]
    if index is not None:
        if not isinstance(index, Tensor) or index.dtype != torch.int64:
            got = getattr(index, "dtype", type(index).__name__)
            raise TypeError(f"{op}: index is no int64 tensor: got {got}; expected the rows of q that attend.")
        checks.check_shape(op, "index", index, (batch, None), lambda: f"(B, K) with B = {batch}")
        queries = index.shape[1]
    if key_padding_mask is not None:
        checks.check_dense(op, "key_padding_mask", key_padding_mask)
        if key_padding_mask.dtype != torch.bool:
            raise TypeError(
                f"{op}: key_padding_mask is not a bool tensor: got {key_padding_mask.dtype}; expected True where a key "
                "is attended to."
            )
        checks.check_shape(op, "key_padding_mask", key_padding_mask, (batch, keys), "(B, M), one for each key")
    if (query_gate is None) != (key_gate is None):
        given = "query_gate" if key_gate is None else "key_gate"
        raise ValueError(f"{op}: one gate alone: got only {given}; expected query_gate and key_gate, or neither.")
    for name, gate, length, meaning in (
        ("query_gate", query_gate, queries, "(B, K), one for each query that attends"),
        ("key_gate", key_gate, keys, "(B, M), one for each key"),
    ):
        if gate is not None:
            checks.check_tensor(op, name, gate)
            checks.check_shape(op, name, gate, (batch, length), meaning)
    devices = {t.device for t in (q, index, key_padding_mask, query_gate, key_gate) if t is not None}
    if len(devices) > 1:
        raise ValueError(f"{op}: devices differ: got {sorted(map(str, devices))}; expected one. Move them together.")


def _check_rows(op: str, index: Tensor | None, queries: int) -> None:
    """The values of ``index``, where looking at them waits for nothing."""
    if index is None or index.device.type != "cpu" or not index.numel() or not is_eager():
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= queries:
        raise ValueError(f"{op}: index is out of range: got {low} .. {high}; expected 0 .. {queries - 1}.")


def _kernel_in_pytorch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    key_padding_mask: Tensor | None,
    query_gate: Tensor | None,
    key_gate: Tensor | None,
    scale: float,
    strength: float,
) -> Tensor:
    """What the kernel computes, from its arguments: (B, K, H, D)."""
    return _in_pytorch(q, k, v, index, key_padding_mask, query_gate, key_gate, strength, scale).transpose(1, 2)


def _in_pytorch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    key_padding_mask: Tensor | None,
    query_gate: Tensor | None,
    key_gate: Tensor | None,
    strength: float,
    scale: float,
    dropout_p: float = 0.0,
) -> Tensor:
    if query_gate is not None or key_padding_mask is not None:
        out = reference.sparse_attention(
            q, k, v, index=index, key_padding_mask=key_padding_mask,
            query_gate=query_gate, key_gate=key_gate, strength=strength, scale=scale, dropout_p=dropout_p,
        )  # fmt: skip
    else:
        if index is not None:
            q = q.gather(2, index[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=scale)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


if HAS_TRITON:
    from vitkern.kernels import sparse_attention as kernels

    sparse_attention_op = kernel_op(
        kernels.sparse_attention_outputs,
        differentiable=("q", "k", "v", "query_gate", "key_gate"),
        fallback=_kernel_in_pytorch,
    )(kernels.sparse_attention_forward)
    sparse_attention_op.backward(kernels.sparse_attention_gradients)(kernels.sparse_attention_backward)

    @register_flop_formula(torch.ops.vitkern.sparse_attention)
    def _forward_flops(
        q_shape: Sequence[int],
        k_shape: Sequence[int],
        v_shape: Sequence[int],
        index_shape: Sequence[int] | None,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        batch, heads, queries, head_dim = q_shape
        return 4 * batch * heads * head_dim * k_shape[2] * (queries if index_shape is None else index_shape[1])

    @register_flop_formula(torch.ops.vitkern.sparse_attention_backward)
    def _backward_flops(grad: Any, out: Any, *inputs: Any, **kwargs: Any) -> int:
        return _forward_flops(*inputs) * 5 // 2
