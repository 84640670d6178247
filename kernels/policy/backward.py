"""Backward: gradients of the queries, with what the kernel of the keys takes of each; then those of keys and values,
with each head's part of that of the policy."""

import triton
import triton.language as tl

from ..loop import tokens
from ..loop.blocks import stream_dkdv_config, stream_dq_config
from ..loop.heads import add_products, inner_products, load_head, products, scaled, store_head, zeros
from ..machine.architecture import arch_of
from ..machine.launch import launch
from ..machine.tiles import LOG2E, key_range, load_pivot, load_scalars, store_scalars, visible
from .rows import kept, load_mean, load_policy


@triton.jit
def _policy_bwd_dq(
    q, k, v, out, grad, dq, lse, share, first, delta, lost, means, policy, heads, N, scale,
    TOKENS: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """Fills, of each query, delta = dout . out, and lost = share (delta - mean dP), what the largest logit has less of
    gradient for being the pivot of all."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_M)
    block, row = pid % blocks, pid // blocks
    group, head = row // heads, row % heads
    qi = block * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)
    queries = load_head(q, (), None, 0, group, head, qi, N, TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_N, False)
    grads = load_head(grad, (), None, 0, group, head, qi, N, TOKENS, LOOP.V, LOOP.OUT_ALIGN, not LOOP.EVEN_N, False)
    outs = load_head(out, (), None, 0, group, head, qi, N, TOKENS, LOOP.V, LOOP.OUT_ALIGN, not LOOP.EVEN_N, False)
    deltas = inner_products(grads, outs)  # [BLOCK_M]
    shares = load_scalars((share, lse[1], lse[2]), (), group, head, qi, N, 0.0, TOKENS, False)
    losses = shares * (deltas - inner_products(grads, load_mean(means, group, head, heads, LOOP.V)))
    store_scalars((delta, lse[1], lse[2]), (), deltas, group, head, qi, N, TOKENS, False)
    store_scalars((lost, lse[1], lse[2]), (), losses, group, head, qi, N, TOKENS, False)
    largest = load_scalars((first, lse[1], lse[2]), (), group, head, qi, N, 0, TOKENS, False)
    pivot = load_pivot(lse, (), group, head, qi, N, TOKENS, False)

    acc = zeros(LOOP.BLOCK_M, LOOP.QK)
    whole, end = key_range(block, N, N, LOOP.BLOCK_M, LOOP.BLOCK_N, False)
    for MASKED in tl.static_range(1 if LOOP.EVEN_M else 2):
        for start in tl.range(whole if MASKED else 0, end if MASKED else whole, LOOP.BLOCK_N):
            ki = start + tl.arange(0, LOOP.BLOCK_N)
            keys = load_head(k, (), None, 0, group, head, ki, N, TOKENS, LOOP.QK, LOOP.ALIGN, MASKED, False)
            values = load_head(v, (), None, 0, group, head, ki, N, TOKENS, LOOP.V, LOOP.ALIGN, MASKED, False)
            s = products(queries, keys, LOOP.PRECISION) * (scale * LOG2E)  # [BLOCK_M, BLOCK_N]
            s = visible(s, qi[:, None], ki[None, :], N, N, False, MASKED)
            slope = tl.math.exp2(s - pivot[:, None]) * (products(grads, values, LOOP.PRECISION) - deltas[:, None])
            slope = kept(slope, load_policy(policy, group, ki[None, :], N), qi[:, None], ki[None, :])
            slope = tl.where(ki[None, :] == largest[:, None], slope - losses[:, None], slope)
            acc = add_products(acc, slope.to(k[0].dtype.element_ty), keys, LOOP.PRECISION)
    store_head(dq, (), scaled(acc, scale), group, head, qi, N, TOKENS, LOOP.QK, LOOP.OUT_ALIGN, False)


@triton.jit
def _policy_bwd_dkdv(
    q, k, v, grad, dk, dv, lse, share, first, delta, lost, dpolicy, policy, heads, N, scale,
    TOKENS: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """dpolicy (B, H, N): each head's part. Tiles are transposed."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_N)
    block, row = pid % blocks, pid // blocks
    group, head = row // heads, row % heads
    ki = block * LOOP.BLOCK_N + tl.arange(0, LOOP.BLOCK_N)
    keys = load_head(k, (), None, 0, group, head, ki, N, TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_M, False)
    values = load_head(v, (), None, 0, group, head, ki, N, TOKENS, LOOP.V, LOOP.ALIGN, not LOOP.EVEN_M, False)
    counted = load_policy(policy, group, ki[:, None], N)

    acc_k, acc_v = zeros(LOOP.BLOCK_N, LOOP.QK), zeros(LOOP.BLOCK_N, LOOP.V)
    acc_policy = tl.zeros([LOOP.BLOCK_N], tl.float32)
    for start in tl.range(0, N, LOOP.BLOCK_M):
        qi = start + tl.arange(0, LOOP.BLOCK_M)
        queries = load_head(q, (), None, 0, group, head, qi, N, TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_N, False)
        pivot = load_pivot(lse, (), group, head, qi, N, TOKENS, False)
        s = products(keys, queries, LOOP.PRECISION) * (scale * LOG2E)  # [BLOCK_N, BLOCK_M]
        weights = tl.math.exp2(s - pivot[None, :])
        grads = load_head(
            grad, (), None, 0, group, head, qi, N, TOKENS, LOOP.V, LOOP.OUT_ALIGN, not LOOP.EVEN_N, False
        )  # fmt: skip
        slope = products(values, grads, LOOP.PRECISION)
        shares = load_scalars((share, lse[1], lse[2]), (), group, head, qi, N, 0.0, TOKENS, False)
        used = kept(weights, counted, qi[None, :], ki[:, None]) + (shares / N)[None, :]
        acc_v = add_products(acc_v, used.to(grad[0].dtype.element_ty), grads, LOOP.PRECISION)
        deltas = load_scalars((delta, lse[1], lse[2]), (), group, head, qi, N, 0.0, TOKENS, False)
        slope = weights * (slope - deltas[None, :])
        acc_policy += tl.sum(tl.where(qi[None, :] == ki[:, None], 0.0, slope), 1)
        slope = kept(slope, counted, qi[None, :], ki[:, None])
        losses = load_scalars((lost, lse[1], lse[2]), (), group, head, qi, N, 0.0, TOKENS, False)
        largest = load_scalars((first, lse[1], lse[2]), (), group, head, qi, N, 0, TOKENS, False)
        slope = tl.where(ki[:, None] == largest[None, :], slope - losses[None, :], slope)
        acc_k = add_products(acc_k, slope.to(q[0].dtype.element_ty), queries, LOOP.PRECISION)

    store_head(dk, (), scaled(acc_k, scale), group, head, ki, N, TOKENS, LOOP.QK, LOOP.OUT_ALIGN, False)
    store_head(dv, (), acc_v, group, head, ki, N, TOKENS, LOOP.V, LOOP.OUT_ALIGN, False)
    store_scalars((dpolicy, lse[1], lse[2]), (), acc_policy, group, head, ki, N, TOKENS, False)


def query_gradients(problem, policy, q, k, v, out, grad, dq, lse, share, first, delta, lost, means):
    """Fills ``dq``, ``delta`` and ``lost``."""
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    config = stream_dq_config(problem.head_dim, itemsize, arch, problem.tokens, True)
    constants, places = problem.started(config, (q, k, v), (out, grad, dq))
    launch(
        _policy_bwd_dq, (problem.programs(config.block_m),),
        *places, lse.over(1), share, first, delta, lost, means, policy,
        problem.heads, problem.tokens, problem.scale, TOKENS=tokens.dense, **constants,
    )  # fmt: skip


def key_gradients(problem, policy, q, k, v, grad, dk, dv, lse, share, first, delta, lost, dpolicy):
    """Fills ``dk``, ``dv`` and ``dpolicy`` (B, H, N)."""
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    config = stream_dkdv_config(problem.head_dim, itemsize, arch, problem.tokens, True)
    constants, places = problem.started(config, (q, k, v), (grad, dk, dv))
    launch(
        _policy_bwd_dkdv, (problem.programs(config.block_n),),
        *places, lse.over(1), share, first, delta, lost, dpolicy, policy,
        problem.heads, problem.tokens, problem.scale, TOKENS=tokens.dense, **constants,
    )  # fmt: skip
