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
from ..machine.tiles import LOG2E, key_range, load_pivot, load_scalars, store_scalars, visible
from .blocks import ragged_config, stream_dkdv_config, stream_dq_config
from .constants import constants, hooked, widest
from .heads import add_products, inner_products, load_head, products, scaled, store_head, store_sums, zeros
from .problem import PLAIN_ROWS, Problem, Rows, aligned
from .splits import add_parts, parts_of, split_share, splits_of
from .weighing import logit_slope


@triton.jit
def _stream_bwd_dq(
    q, k, v, out, grad, lse, lse_grad, delta, dq, scale_grad, args, padding, head_scale, heads, N, M, scale,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, NORM: tl.constexpr, LOGIT: tl.constexpr, PREPARE: tl.constexpr,
    SCORE: tl.constexpr, WEIGH: tl.constexpr, NORM_BACKWARD: tl.constexpr, LOGIT_BACKWARD: tl.constexpr,
    LOOP: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_M)
    block, row = pid % blocks, pid // blocks
    group, head = row // heads, row % heads
    kv_head = head // LOOP.KV_SHARE
    qi = block * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)

    rows = load_head(
        q, args.q, padding, head, group, head, qi, N,
        Q_TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_N, LOOP.PADDED,
    )  # fmt: skip
    grads = load_head(
        grad, args.q, None, 0, group, head, qi, N,
        Q_TOKENS, LOOP.V, LOOP.OUT_ALIGN, not LOOP.EVEN_N, LOOP.PADDED,
    )  # fmt: skip
    outs = load_head(
        out, args.q, None, 0, group, head, qi, N,
        Q_TOKENS, LOOP.V, LOOP.OUT_ALIGN, not LOOP.EVEN_N, LOOP.PADDED,
    )  # fmt: skip
    deltas = inner_products(grads, outs)  # [BLOCK_M]
    if lse_grad is not None:
        deltas -= load_scalars((lse_grad, lse[1], lse[2]), args.q, group, head, qi, N, 0.0, Q_TOKENS, LOOP.PADDED)
    store_scalars((delta, lse[1], lse[2]), args.q, deltas, group, head, qi, N, Q_TOKENS, LOOP.PADDED)
    pivot = load_pivot(lse, args.q, group, head, qi, N, Q_TOKENS, LOOP.PADDED)
    if head_scale is not None:
        scale = tl.load(head_scale + head)
    factor = scale * LOG2E
    queries = NORM(rows, LOOP.QK.DIM)
    state = PREPARE(group, qi[:, None], args.score)

    acc = zeros(LOOP.BLOCK_M, LOOP.QK)
    whole, end = key_range(block, N, M, LOOP.BLOCK_M, LOOP.BLOCK_N, LOOP.CAUSAL)
    for MASKED in tl.static_range(1 if LOOP.EVEN_M and not LOOP.CAUSAL else 2):
        for start in tl.range(whole if MASKED else 0, end if MASKED else whole, LOOP.BLOCK_N):
            ki = start + tl.arange(0, LOOP.BLOCK_N)
            keys = load_head(
                k, args.k, padding, heads + head, group, kv_head, ki, M,
                K_TOKENS, LOOP.QK, LOOP.ALIGN, MASKED and not LOOP.EVEN_M, LOOP.PADDED,
            )  # fmt: skip
            keys = NORM(keys, LOOP.QK.DIM)
            values = load_head(
                v, args.k, padding, 2 * heads + head, group, kv_head, ki, M,
                K_TOKENS, LOOP.V, LOOP.ALIGN, MASKED and not LOOP.EVEN_M, LOOP.PADDED,
            )  # fmt: skip
            product = products(queries, keys, LOOP.PRECISION) * factor  # [BLOCK_M, BLOCK_N]
            s = LOGIT(product, args.logit)
            s = SCORE(s, group, head, qi[:, None], ki[None, :], args.score, state)
            s = visible(s, qi[:, None], ki[None, :], N, M, MASKED and LOOP.CAUSAL, MASKED and not LOOP.EVEN_M)
            weights = tl.math.exp2(s - pivot[:, None])
            counted, used = WEIGH(weights, group, head, qi[:, None], ki[None, :], args.weigh)
            slope = products(grads, values, LOOP.PRECISION)
            slope = logit_slope(counted, used, slope, deltas[:, None], LOOP.WEIGHED)
            slope = LOGIT_BACKWARD(slope, product, args.logit)
            acc = add_products(acc, slope.to(k[0].dtype.element_ty), keys, LOOP.PRECISION)

    if scale_grad is not None:
        tl.store(scale_grad + pid, tl.sum(inner_products(acc, queries), 0))
    acc = NORM_BACKWARD(scaled(acc, scale), rows, LOOP.QK.DIM)
    store_head(dq, args.q, acc, group, head, qi, N, Q_TOKENS, LOOP.QK, LOOP.OUT_ALIGN, LOOP.PADDED)


@triton.jit
def _stream_bwd_dkdv(
    q, k, v, grad, lse, delta, dk, dv, padding_grad, args, padding, head_scale, heads, N, M, scale, split,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, NORM: tl.constexpr, LOGIT: tl.constexpr, PREPARE: tl.constexpr,
    SCORE: tl.constexpr, WEIGH: tl.constexpr, NORM_BACKWARD: tl.constexpr, LOGIT_BACKWARD: tl.constexpr,
    LOOP: tl.constexpr,
):  # fmt: skip
    """split: (), or (groups, splits) where a program walks a share of the queries, and dk and dv are those of a group
    for each share."""
    pid = tl.program_id(0)
    kv_heads = heads // LOOP.KV_SHARE
    key_blocks = tl.cdiv(M, LOOP.BLOCK_N)
    block, kv_head = pid % key_blocks, pid // key_blocks % kv_heads
    place = pid // (key_blocks * kv_heads)  # (split, group)
    group = place
    ki = block * LOOP.BLOCK_N + tl.arange(0, LOOP.BLOCK_N)
    first = 0
    if LOOP.CAUSAL:  # the first query that sees this block
        first = tl.maximum(0, block * LOOP.BLOCK_N - (M - N)) // LOOP.BLOCK_M
    blocks = tl.maximum(tl.cdiv(N, LOOP.BLOCK_M) - first, 0)
    begin, end = 0, LOOP.KV_SHARE * blocks
    if len(split) > 0:
        group = place % split[0]
        begin, end = split_share(place // split[0], split[1], end, 1)

    rows = load_head(
        k, args.k, padding, heads + kv_head, group, kv_head, ki, M,
        K_TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_M, LOOP.PADDED,
    )  # fmt: skip
    values = load_head(
        v, args.k, padding, 2 * heads + kv_head, group, kv_head, ki, M,
        K_TOKENS, LOOP.V, LOOP.ALIGN, not LOOP.EVEN_M, LOOP.PADDED,
    )  # fmt: skip
    keys = NORM(rows, LOOP.QK.DIM)
    if head_scale is not None:
        scale = tl.load(head_scale + kv_head)
    state = PREPARE(group, ki[:, None], args.score)

    acc_k = zeros(LOOP.BLOCK_N, LOOP.QK)
    acc_v = zeros(LOOP.BLOCK_N, LOOP.V)
    for step in tl.range(begin, end):
        head = kv_head * LOOP.KV_SHARE + step // blocks
        qi = (first + step % blocks) * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)
        queries = load_head(
            q, args.q, padding, head, group, head, qi, N,
            Q_TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_N, LOOP.PADDED,
        )  # fmt: skip
        queries = NORM(queries, LOOP.QK.DIM)
        pivot = load_pivot(lse, args.q, group, head, qi, N, Q_TOKENS, LOOP.PADDED)
        product = products(keys, queries, LOOP.PRECISION) * (scale * LOG2E)  # [BLOCK_N, BLOCK_M]
        s = LOGIT(product, args.logit)
        s = SCORE(s, group, head, qi[None, :], ki[:, None], args.score, state)
        s = visible(s, qi[None, :], ki[:, None], N, M, LOOP.CAUSAL, False)
        weights = tl.math.exp2(s - pivot[None, :])
        counted, used = WEIGH(weights, group, head, qi[None, :], ki[:, None], args.weigh)
        grads = load_head(
            grad, args.q, None, 0, group, head, qi, N,
            Q_TOKENS, LOOP.V, LOOP.OUT_ALIGN, not LOOP.EVEN_N, LOOP.PADDED,
        )  # fmt: skip
        slope = products(values, grads, LOOP.PRECISION)  # [BLOCK_N, BLOCK_M]
        acc_v = add_products(acc_v, used.to(grad[0].dtype.element_ty), grads, LOOP.PRECISION)
        deltas = load_scalars((delta, lse[1], lse[2]), args.q, group, head, qi, N, 0.0, Q_TOKENS, LOOP.PADDED)
        slope = logit_slope(counted, used, slope, deltas[None, :], LOOP.WEIGHED)
        slope = LOGIT_BACKWARD(slope, product, args.logit)
        acc_k = add_products(acc_k, slope.to(q[0].dtype.element_ty), queries, LOOP.PRECISION)

    acc_k = NORM_BACKWARD(scaled(acc_k, scale), rows, LOOP.QK.DIM)
    store_head(dk, args.k, acc_k, place, kv_head, ki, M, K_TOKENS, LOOP.QK, LOOP.OUT_ALIGN, LOOP.PADDED)
    store_head(dv, args.k, acc_v, place, kv_head, ki, M, K_TOKENS, LOOP.V, LOOP.OUT_ALIGN, LOOP.PADDED)
    if padding_grad is not None:  # every program leaves the sum over its padding tokens
        outside = ((ki < M) & (K_TOKENS(group, ki, k[2], args.k)[1] == 0))[:, None]
        where = padding_grad + pid.to(tl.int64) * (2 * LOOP.QK.DIM)
        store_sums(where, acc_k, outside, LOOP.QK)
        store_sums(where + LOOP.QK.DIM, acc_v, outside, LOOP.V)


def _backward(s: Problem) -> dict:
    return dict(NORM_BACKWARD=s.norm.backward, LOGIT_BACKWARD=s.logit.backward)


def stream_dq(
    s: Problem, q: Rows, k: Rows, v: Rows, out: Rows, grad: Rows, lse: Rows, delta: Tensor, dq: Rows,
    lse_grad: Tensor | None = None,
) -> Tensor | None:  # fmt: skip
    """Fill ``delta`` and ``dq``. ``delta`` and ``lse_grad``, the gradient of ``lse``, are float32, laid out as ``lse``.

    Returns the gradient of ``s.head_scale`` (H,), float32, None where the problem has none.
    """
    align, out_align = aligned(q, k, v), aligned(out, grad, dq)
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    if s.ragged:
        config = ragged_config(widest(s), itemsize, arch, True)
    else:
        config = stream_dq_config(widest(s), itemsize, arch, s.n, hooked(s))
    blocks = triton.cdiv(s.n, config.block_m)
    scale_grad = None if s.head_scale is None else s.head_scale.new_empty(s.groups, s.heads, blocks)
    launch(
        _stream_bwd_dq, (blocks * s.groups * s.heads,),
        q.over(align), k.over(align), v.over(align), out.over(out_align), grad.over(out_align), lse.over(1),
        lse_grad, delta, dq.over(out_align), scale_grad,
        s.args, s.padding, s.head_scale, s.heads, s.n, s.m, s.scale,
        **_backward(s), **constants(s, q, config, align, out_align),
    )  # fmt: skip
    return None if scale_grad is None else scale_grad.sum((0, 2))


def stream_dkdv(
    s: Problem, q: Rows, k: Rows, v: Rows, grad: Rows, lse: Rows, delta: Tensor, dk: Rows, dv: Rows
) -> Tensor | None:
    """Fill ``dk`` and ``dv``; ``delta`` is that of `stream_dq`. The groups may be other ones than there: here they are
    those of the keys.

    Returns the gradient of ``s.padding`` (3, H, D), float32, None where the problem has none.
    """
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    if s.ragged:
        config = ragged_config(widest(s), itemsize, arch, True)
    else:
        config = stream_dkdv_config(widest(s), itemsize, arch, s.m, hooked(s))
    blocks = triton.cdiv(s.m, config.block_n)
    programs, turns = blocks * s.groups * s.kv_heads, s.heads // max(s.kv_heads, 1) * triton.cdiv(s.n, config.block_m)
    splits = 1 if s.norm is not PLAIN_ROWS else splits_of(s, programs, turns, arch)
    left = (dk, dv) if splits == 1 else parts_of(splits * s.groups, dk, dv)
    align, out_align = aligned(q, k, v), aligned(grad, *left)
    padding_grad = None
    if s.padding is not None:
        padding_grad = lse.tensor.new_empty(s.groups, s.heads, blocks, 2, s.head_dim)
    launch(
        _stream_bwd_dkdv, (splits * programs,),
        q.over(align), k.over(align), v.over(align), grad.over(out_align), lse.over(1), delta,
        left[0].over(out_align), left[1].over(out_align), padding_grad,
        s.args, s.padding, s.head_scale, s.heads, s.n, s.m, s.scale, () if splits == 1 else (s.groups, splits),
        **_backward(s), **constants(s, q, config, align, out_align),
    )  # fmt: skip
    if splits > 1:
        for part, whole in zip(left, (dk, dv), strict=True):
            add_parts(splits, part, whole)
    if padding_grad is None:
        return None
    return torch.nn.functional.pad(padding_grad.sum((0, 2)).transpose(0, 1), (0, 0, 0, 0, 1, 0))
