"""Streaming attention, backward (FlashAttention-2, arXiv 2307.08691, algorithm 2): probabilities are recomputed,
nothing is atomic.

    P = exp(logit - lse), dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(dO * O)), dQ = scale dS K, dK = scale dS^T Q

Two kernels: dQ (one program per query block; it also writes delta = rowsum(dO * O), which the others read), and dK with
dV (one per key block; it holds the transposed tile, so that P^T and dS^T feed the matrix unit from registers).
stream_bias.py has the gradient of a bias. Legend: see stream.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..machine.architecture import arch_of
from ..machine.launch import launch
from ..machine.tiles import (
    LOG2E,
    keep_mask,
    key_range,
    load_pivot,
    load_scalars,
    normalize,
    normalize_backward,
    probabilities,
    store_scalars,
)
from .blocks import ragged_config, stream_dkdv_config, stream_dq_config
from .constants import constants, hooked
from .heads import add_products, inner_products, load_head, products, scaled, store_head, store_sums, zeros
from .problem import Problem, Rows, aligned


@triton.jit
def _stream_bwd_dq(
    q, k, v, out, grad, lse, lse_grad, delta, dq, cosine_grad,
    q_strides, k_strides, v_strides, out_strides, grad_strides, lse_strides, dq_strides,
    q_args, k_args, score_args, padding, cosine, seed, heads, N, M, scale, dropout_p,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, SCORE: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    COSINE: tl.constexpr = cosine is not None
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_M)
    block, row = pid % blocks, pid // blocks
    group, head = row // heads, row % heads
    kv_head = head // LOOP.KV_SHARE
    qi = block * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)

    rows = load_head(
        q, q_strides, q_args, padding, head, group, head, qi, N,
        Q_TOKENS, LOOP.ALIGN, not LOOP.EVEN_N, LOOP,
    )  # fmt: skip
    grads = load_head(
        grad, grad_strides, q_args, None, 0, group, head, qi, N,
        Q_TOKENS, LOOP.OUT_ALIGN, not LOOP.EVEN_N, LOOP,
    )  # fmt: skip
    outs = load_head(
        out, out_strides, q_args, None, 0, group, head, qi, N,
        Q_TOKENS, LOOP.OUT_ALIGN, not LOOP.EVEN_N, LOOP,
    )  # fmt: skip
    deltas = inner_products(grads, outs)  # [BLOCK_M]
    if lse_grad is not None:
        deltas -= load_scalars(lse_grad, lse_strides, q_args, group, head, qi, N, 0.0, Q_TOKENS, LOOP.PADDED)
    store_scalars(delta, lse_strides, q_args, deltas, group, head, qi, N, Q_TOKENS, LOOP.PADDED)
    pivot = load_pivot(lse, lse_strides, q_args, group, head, qi, N, Q_TOKENS, LOOP.PADDED)
    factor = scale * LOG2E
    queries = rows
    if COSINE:
        scale = tl.load(cosine + head)
        factor = scale * LOG2E
        unit, inverse = normalize(rows[0])
        queries = (unit.to(q.dtype.element_ty),)

    acc = zeros(LOOP.BLOCK_M, LOOP)
    whole, end = key_range(block, N, M, LOOP.BLOCK_M, LOOP.BLOCK_N, LOOP.CAUSAL)
    for MASKED in tl.static_range(1 if LOOP.EVEN_M and not LOOP.CAUSAL else 2):
        for start in tl.range(whole if MASKED else 0, end if MASKED else whole, LOOP.BLOCK_N):
            ki = start + tl.arange(0, LOOP.BLOCK_N)
            keys = load_head(
                k, k_strides, k_args, padding, heads + head, group, kv_head, ki, M,
                K_TOKENS, LOOP.ALIGN, MASKED and not LOOP.EVEN_M, LOOP,
            )  # fmt: skip
            if COSINE:
                keys = (normalize(keys[0])[0].to(k.dtype.element_ty),)
            values = load_head(
                v, v_strides, k_args, padding, 2 * heads + head, group, kv_head, ki, M,
                K_TOKENS, LOOP.ALIGN, MASKED and not LOOP.EVEN_M, LOOP,
            )  # fmt: skip
            product = products(queries, keys, LOOP.PRECISION)  # [BLOCK_M, BLOCK_N]
            weights = probabilities(
                product, factor, pivot[:, None], group, head, qi[:, None], ki[None, :], score_args, N, M,
                SCORE, LOOP.PLAIN, LOOP.CAUSAL and MASKED, MASKED and not LOOP.EVEN_M,
            )  # fmt: skip
            slope = products(grads, values, LOOP.PRECISION)
            if seed is not None:
                keep = keep_mask(tl.load(seed), row, qi[:, None], ki[None, :], dropout_p)
                slope = tl.where(keep, slope * (1.0 / (1.0 - dropout_p)), 0.0)
            slope = weights * (slope - deltas[:, None])
            acc = add_products(acc, slope.to(k.dtype.element_ty), keys, LOOP.PRECISION)

    if COSINE:
        tl.store(cosine_grad + pid, tl.sum(tl.sum(acc[0] * unit, 1), 0))
        acc = (normalize_backward(acc[0] * scale, unit, inverse),)
    else:
        acc = scaled(acc, scale)
    store_head(dq, dq_strides, q_args, acc, group, head, qi, N, Q_TOKENS, LOOP)


@triton.jit
def _stream_bwd_dkdv(
    q, k, v, grad, lse, delta, dk, dv, padding_grad,
    q_strides, k_strides, v_strides, grad_strides, lse_strides, dk_strides, dv_strides,
    q_args, k_args, score_args, padding, cosine, seed, heads, N, M, scale, dropout_p,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, SCORE: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    COSINE: tl.constexpr = cosine is not None
    pid = tl.program_id(0)
    kv_heads = heads // LOOP.KV_SHARE
    key_blocks = tl.cdiv(M, LOOP.BLOCK_N)
    block, kv_head = pid % key_blocks, pid // key_blocks % kv_heads
    group = pid // (key_blocks * kv_heads)
    ki = block * LOOP.BLOCK_N + tl.arange(0, LOOP.BLOCK_N)

    keys = load_head(
        k, k_strides, k_args, padding, heads + kv_head, group, kv_head, ki, M,
        K_TOKENS, LOOP.ALIGN, not LOOP.EVEN_M, LOOP,
    )  # fmt: skip
    values = load_head(
        v, v_strides, k_args, padding, 2 * heads + kv_head, group, kv_head, ki, M,
        K_TOKENS, LOOP.ALIGN, not LOOP.EVEN_M, LOOP,
    )  # fmt: skip
    factor = scale * LOG2E
    if COSINE:
        scale = tl.load(cosine + kv_head)
        factor = scale * LOG2E
        unit, inverse = normalize(keys[0])
        keys = (unit.to(k.dtype.element_ty),)

    acc_k = zeros(LOOP.BLOCK_N, LOOP)
    acc_v = zeros(LOOP.BLOCK_N, LOOP)
    first = 0
    if LOOP.CAUSAL:  # the first query that sees this block
        first = tl.maximum(0, block * LOOP.BLOCK_N - (M - N)) // LOOP.BLOCK_M
    blocks = tl.maximum(tl.cdiv(N, LOOP.BLOCK_M) - first, 0)
    for step in tl.range(0, LOOP.KV_SHARE * blocks):
        head = kv_head * LOOP.KV_SHARE + step // blocks
        row = group * heads + head
        qi = (first + step % blocks) * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)
        queries = load_head(
            q, q_strides, q_args, padding, head, group, head, qi, N,
            Q_TOKENS, LOOP.ALIGN, not LOOP.EVEN_N, LOOP,
        )  # fmt: skip
        if COSINE:
            queries = (normalize(queries[0])[0].to(q.dtype.element_ty),)
        pivot = load_pivot(lse, lse_strides, q_args, group, head, qi, N, Q_TOKENS, LOOP.PADDED)
        product = products(keys, queries, LOOP.PRECISION)  # [BLOCK_N, BLOCK_M]
        weights = probabilities(
            product, factor, pivot[None, :], group, head, qi[None, :], ki[:, None], score_args, N, M, SCORE,
            LOOP.PLAIN, LOOP.CAUSAL, False,
        )  # fmt: skip
        grads = load_head(
            grad, grad_strides, q_args, None, 0, group, head, qi, N,
            Q_TOKENS, LOOP.OUT_ALIGN, not LOOP.EVEN_N, LOOP,
        )  # fmt: skip
        slope = products(values, grads, LOOP.PRECISION)  # [BLOCK_N, BLOCK_M]
        dropped = weights
        if seed is not None:
            keep = keep_mask(tl.load(seed), row, qi[None, :], ki[:, None], dropout_p)
            dropped = tl.where(keep, weights * (1.0 / (1.0 - dropout_p)), 0.0)
            slope = tl.where(keep, slope * (1.0 / (1.0 - dropout_p)), 0.0)
        acc_v = add_products(acc_v, dropped.to(grad.dtype.element_ty), grads, LOOP.PRECISION)
        deltas = load_scalars(delta, lse_strides, q_args, group, head, qi, N, 0.0, Q_TOKENS, LOOP.PADDED)
        slope = weights * (slope - deltas[None, :])
        acc_k = add_products(acc_k, slope.to(q.dtype.element_ty), queries, LOOP.PRECISION)

    acc_k = scaled(acc_k, scale)
    if COSINE:
        acc_k = (normalize_backward(acc_k[0], unit, inverse),)
    store_head(dk, dk_strides, k_args, acc_k, group, kv_head, ki, M, K_TOKENS, LOOP)
    store_head(dv, dv_strides, k_args, acc_v, group, kv_head, ki, M, K_TOKENS, LOOP)
    if padding_grad is not None:  # every program leaves the sum over its padding tokens
        outside = ((ki < M) & (K_TOKENS(group, ki, k_strides[1], k_args)[1] == 0))[:, None]
        where = padding_grad + pid.to(tl.int64) * (2 * LOOP.HEAD_DIM)
        store_sums(where, acc_k, outside, LOOP)
        store_sums(where + LOOP.HEAD_DIM, acc_v, outside, LOOP)


def _shared(s: Problem) -> tuple:
    """The arguments that both kernels take."""
    return s.q_args, s.k_args, s.score_args, s.padding, s.cosine, s.seed, s.heads, s.n, s.m, s.scale, s.dropout_p


def stream_dq(
    s: Problem,
    q: Rows,
    k: Rows,
    v: Rows,
    out: Rows,
    grad: Rows,
    lse: Rows,
    delta: Tensor,
    dq: Rows,
    lse_grad: Tensor | None = None,
) -> Tensor | None:
    """Fill ``delta`` and ``dq``. ``delta`` and ``lse_grad``, the gradient of ``lse``, are float32, laid out as ``lse``.

    Returns the gradient of ``s.cosine`` (H,), float32, None where the problem has none.
    """
    align, out_align = aligned(q, k, v), aligned(out, grad, dq)
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    if s.ragged:
        config = ragged_config(s.head_dim, itemsize, arch, True)
    else:
        config = stream_dq_config(s.head_dim, itemsize, arch, s.n, hooked(s))
    blocks = triton.cdiv(s.n, config.block_m)
    cosine_grad = None if s.cosine is None else s.cosine.new_empty(s.groups, s.heads, blocks)
    launch(
        _stream_bwd_dq, (blocks * s.groups * s.heads,),
        q.tensor, k.tensor, v.tensor, out.tensor, grad.tensor, lse.tensor, lse_grad, delta, dq.tensor, cosine_grad,
        q.over(align), k.over(align), v.over(align), out.over(out_align), grad.over(out_align), lse.over(1),
        dq.over(out_align), *_shared(s), **constants(s, q, config, align, out_align),
    )  # fmt: skip
    return None if cosine_grad is None else cosine_grad.sum((0, 2))


def stream_dkdv(
    s: Problem, q: Rows, k: Rows, v: Rows, grad: Rows, lse: Rows, delta: Tensor, dk: Rows, dv: Rows
) -> Tensor | None:
    """Fill ``dk`` and ``dv``; ``delta`` is that of `stream_dq`. The groups may be other ones than there: here they are
    those of the keys.

    Returns the gradient of ``s.padding`` (3, H, D), float32, None where the problem has none.
    """
    align, out_align = aligned(q, k, v), aligned(grad, dk, dv)
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    if s.ragged:
        config = ragged_config(s.head_dim, itemsize, arch, True)
    else:
        config = stream_dkdv_config(s.head_dim, itemsize, arch, s.m, hooked(s))
    blocks = triton.cdiv(s.m, config.block_n)
    padding_grad = None
    if s.padding is not None:
        padding_grad = delta.new_empty(s.groups, s.heads, blocks, 2, s.head_dim)
    launch(
        _stream_bwd_dkdv, (blocks * s.groups * s.kv_heads,),
        q.tensor, k.tensor, v.tensor, grad.tensor, lse.tensor, delta, dk.tensor, dv.tensor, padding_grad,
        q.over(align), k.over(align), v.over(align), grad.over(out_align), lse.over(1), dk.over(out_align),
        dv.over(out_align), *_shared(s), **constants(s, q, config, align, out_align),
    )  # fmt: skip
    if padding_grad is None:
        return None
    return torch.nn.functional.pad(padding_grad.sum((0, 2)).transpose(0, 1), (0, 0, 0, 0, 1, 0))
