"""Backward: gradients of the queries, then of keys and values, as in stream_backward.py, of rows as they were before
the norm; with each program's part of the gradients of its weight and bias."""

import triton
import triton.language as tl

from ..loop import tokens
from ..loop.blocks import stream_dkdv_config, stream_dq_config
from ..loop.heads import add_products, inner_products, load_head, products, scaled, store_head, zeros
from ..machine.architecture import arch_of
from ..machine.launch import launch
from ..machine.tiles import LOG2E, key_range, load_pivot, load_scalars, store_scalars, visible
from .norm import load_channels, multiplied, norm_backward, normalised, store_channel_sums, unit_rows


@triton.jit
def _qk_norm_bwd_dq(
    q, k, v, out, grad, dq, lse, delta, sums, q_weight, q_bias, k_weight, heads, N, scale, eps,
    CENTRED: tl.constexpr, TOKENS: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """sums [programs, 2, D]: each program's part of the gradients of q_weight and q_bias."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_M)
    block, row = pid % blocks, pid // blocks
    group, head = row // heads, row % heads
    qi = block * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)
    grads = load_head(grad, (), None, 0, group, head, qi, N, TOKENS, LOOP.V, LOOP.OUT_ALIGN, not LOOP.EVEN_N, False)
    outs = load_head(out, (), None, 0, group, head, qi, N, TOKENS, LOOP.V, LOOP.OUT_ALIGN, not LOOP.EVEN_N, False)
    deltas = inner_products(grads, outs)  # [BLOCK_M]
    store_scalars((delta, lse[1], lse[2]), (), deltas, group, head, qi, N, TOKENS, False)
    pivot = load_pivot(lse, (), group, head, qi, N, TOKENS, False)
    rows = load_head(q, (), None, 0, group, head, qi, N, TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_N, False)
    own_weight = load_channels(q_weight, 1.0, LOOP.QK)
    queries = normalised(rows, own_weight, load_channels(q_bias, 0.0, LOOP.QK), eps, CENTRED, LOOP.QK)
    weight = load_channels(k_weight, 1.0, LOOP.QK)

    acc = zeros(LOOP.BLOCK_M, LOOP.QK)
    whole, end = key_range(block, N, N, LOOP.BLOCK_M, LOOP.BLOCK_N, False)
    for MASKED in tl.static_range(1 if LOOP.EVEN_M else 2):
        for start in tl.range(whole if MASKED else 0, end if MASKED else whole, LOOP.BLOCK_N):
            ki = start + tl.arange(0, LOOP.BLOCK_N)
            keys = load_head(k, (), None, 0, group, head, ki, N, TOKENS, LOOP.QK, LOOP.ALIGN, MASKED, False)
            keys = normalised(keys, weight, None, eps, CENTRED, LOOP.QK)
            values = load_head(v, (), None, 0, group, head, ki, N, TOKENS, LOOP.V, LOOP.ALIGN, MASKED, False)
            s = products(queries, keys, LOOP.PRECISION) * (scale * LOG2E)  # [BLOCK_M, BLOCK_N]
            s = visible(s, qi[:, None], ki[None, :], N, N, False, MASKED)
            slope = tl.math.exp2(s - pivot[:, None]) * (products(grads, values, LOOP.PRECISION) - deltas[:, None])
            acc = add_products(acc, slope.to(k[0].dtype.element_ty), keys, LOOP.PRECISION)

    acc = scaled(acc, scale)
    unit, rstd = unit_rows(rows, eps, CENTRED, LOOP.QK)  # again: held, it would take registers throughout
    sums += pid.to(tl.int64) * (2 * LOOP.QK.DIM)
    store_channel_sums(sums, multiplied(acc, unit), qi < N, LOOP.QK)
    store_channel_sums(sums + LOOP.QK.DIM, acc, qi < N, LOOP.QK)
    acc = norm_backward(acc, unit, rstd, own_weight, CENTRED, LOOP.QK)
    store_head(dq, (), acc, group, head, qi, N, TOKENS, LOOP.QK, LOOP.OUT_ALIGN, False)


@triton.jit
def _qk_norm_bwd_dkdv(
    q, k, v, grad, dk, dv, lse, delta, sums, q_weight, q_bias, k_weight, heads, N, scale, eps,
    CENTRED: tl.constexpr, TOKENS: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """sums [programs, D]: each program's part of the gradient of k_weight. Tiles are transposed."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_N)
    block, row = pid % blocks, pid // blocks
    group, head = row // heads, row % heads
    ki = block * LOOP.BLOCK_N + tl.arange(0, LOOP.BLOCK_N)
    rows = load_head(k, (), None, 0, group, head, ki, N, TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_M, False)
    values = load_head(v, (), None, 0, group, head, ki, N, TOKENS, LOOP.V, LOOP.ALIGN, not LOOP.EVEN_M, False)
    own_weight = load_channels(k_weight, 1.0, LOOP.QK)
    keys = normalised(rows, own_weight, None, eps, CENTRED, LOOP.QK)
    weight, bias = load_channels(q_weight, 1.0, LOOP.QK), load_channels(q_bias, 0.0, LOOP.QK)

    acc_k, acc_v = zeros(LOOP.BLOCK_N, LOOP.QK), zeros(LOOP.BLOCK_N, LOOP.V)
    for start in tl.range(0, N, LOOP.BLOCK_M):
        qi = start + tl.arange(0, LOOP.BLOCK_M)
        queries = load_head(q, (), None, 0, group, head, qi, N, TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_N, False)
        queries = normalised(queries, weight, bias, eps, CENTRED, LOOP.QK)
        pivot = load_pivot(lse, (), group, head, qi, N, TOKENS, False)
        s = products(keys, queries, LOOP.PRECISION) * (scale * LOG2E)  # [BLOCK_N, BLOCK_M]
        weights = tl.math.exp2(s - pivot[None, :])
        grads = load_head(
            grad, (), None, 0, group, head, qi, N, TOKENS, LOOP.V, LOOP.OUT_ALIGN, not LOOP.EVEN_N, False
        )  # fmt: skip
        slope = products(values, grads, LOOP.PRECISION)
        acc_v = add_products(acc_v, weights.to(grad[0].dtype.element_ty), grads, LOOP.PRECISION)
        deltas = load_scalars((delta, lse[1], lse[2]), (), group, head, qi, N, 0.0, TOKENS, False)
        slope = weights * (slope - deltas[None, :])
        acc_k = add_products(acc_k, slope.to(q[0].dtype.element_ty), queries, LOOP.PRECISION)

    acc_k = scaled(acc_k, scale)
    unit, rstd = unit_rows(rows, eps, CENTRED, LOOP.QK)
    store_channel_sums(sums + pid.to(tl.int64) * LOOP.QK.DIM, multiplied(acc_k, unit), ki < N, LOOP.QK)
    acc_k = norm_backward(acc_k, unit, rstd, own_weight, CENTRED, LOOP.QK)
    store_head(dk, (), acc_k, group, head, ki, N, TOKENS, LOOP.QK, LOOP.OUT_ALIGN, False)
    store_head(dv, (), acc_v, group, head, ki, N, TOKENS, LOOP.V, LOOP.OUT_ALIGN, False)


def query_gradients(problem, norms, q, k, v, out, grad, dq, lse, delta):
    """Fills ``dq`` and ``delta``; parts (programs, 2, D) of the gradients of q_weight and q_bias."""
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    config = stream_dq_config(problem.head_dim, itemsize, arch, problem.tokens, True)
    constants, places = problem.started(config, (q, k, v), (out, grad, dq))
    programs = problem.programs(config.block_m)
    sums = delta.new_empty(programs, 2, problem.head_dim)
    launch(
        _qk_norm_bwd_dq, (programs,),
        *places, lse.over(1), delta, sums, *norms.parameters, problem.heads, problem.tokens, problem.scale, norms.eps,
        CENTRED=norms.centred, TOKENS=tokens.dense, **constants,
    )  # fmt: skip
    return sums


def key_gradients(problem, norms, q, k, v, grad, dk, dv, lse, delta):
    """Fills ``dk`` and ``dv``; parts (programs, D) of the gradient of k_weight."""
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    config = stream_dkdv_config(problem.head_dim, itemsize, arch, problem.tokens, True)
    constants, places = problem.started(config, (q, k, v), (grad, dk, dv))
    programs = problem.programs(config.block_n)
    sums = delta.new_empty(programs, problem.head_dim)
    launch(
        _qk_norm_bwd_dkdv, (programs,),
        *places, lse.over(1), delta, sums, *norms.parameters, problem.heads, problem.tokens, problem.scale, norms.eps,
        CENTRED=norms.centred, TOKENS=tokens.dense, **constants,
    )  # fmt: skip
    return sums
