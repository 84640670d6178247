"""Backward: gradients of the queries, with shares of those of the matrices; then gradients of keys and values."""

import triton
import triton.language as tl

from ..machine.launch import launch
from ..machine.tiles import LOG2E
from .lanes import (
    LANES,
    gathered,
    lane_tokens,
    load_lanes,
    load_numbers,
    no_rows,
    products,
    shared_tokens,
    store_lanes,
    store_numbers,
)
from .mixing import load_bias, load_matrix, mixed, paired, softmaxed, store_shares


@triton.jit
def _talking_bwd_queries(
    q, k, v, grad, lse, delta, dq, shares, before, after, strides, grad_strides, gradient_strides, N, blocks, scale,
    HEADS: tl.constexpr, HEAD_TILE: tl.constexpr, HEAD_DIM: tl.constexpr, PART: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, MIXING: tl.constexpr,
):  # fmt: skip
    """Fills delta (B, H, N), which the keys' gradients take. Two passes over the keys, as a row's delta needs all."""
    image, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    qi = lane_tokens(block, HEAD_TILE, BLOCK_M)
    q_rows = load_lanes(q, strides, image, qi, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
    g_rows = load_lanes(grad, grad_strides, image, qi, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
    pivot = load_numbers(lse, image, qi, N, float("inf"), HEADS, HEAD_TILE)[:, :, None] * LOG2E
    wl, ww = load_matrix(before, HEADS, HEAD_TILE), load_matrix(after, HEADS, HEAD_TILE)
    dafter = tl.zeros([BLOCK_M, LANES, LANES], tl.float32)
    dbias = tl.zeros([LANES, BLOCK_M], tl.float32)
    deltas = tl.zeros([LANES, BLOCK_M], tl.float32)
    for start in tl.range(0, N, BLOCK_N):
        ki = shared_tokens(start, BLOCK_N)
        k_rows = load_lanes(k, strides, image, ki, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
        v_rows = load_lanes(v, strides, image, ki, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
        logits = mixed(wl * (scale * LOG2E), products(q_rows, k_rows, PRECISION), MIXING)
        a = softmaxed(logits, pivot, (ki < N)[:, None, :])  # [LANES, BLOCK_M, BLOCK_N]
        dp = products(g_rows, v_rows, PRECISION)  # zero past the last key
        dafter = paired(dafter, dp, a, MIXING)
        dbias += tl.sum(dp, 2)
        deltas += tl.sum(a * mixed(tl.trans(ww), dp, MIXING), 2)
    store_numbers(delta, deltas, image, qi, N, HEADS, HEAD_TILE)

    dbefore = tl.zeros([BLOCK_M, LANES, LANES], tl.float32)
    sums = no_rows(BLOCK_M, HEAD_DIM, PART)
    for start in tl.range(0, N, BLOCK_N):
        ki = shared_tokens(start, BLOCK_N)
        k_rows = load_lanes(k, strides, image, ki, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
        v_rows = load_lanes(v, strides, image, ki, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
        product = products(q_rows, k_rows, PRECISION)  # zero past the last key, as its rows are
        a = softmaxed(mixed(wl * (scale * LOG2E), product, MIXING), pivot, (ki < N)[:, None, :])
        da = mixed(tl.trans(ww), products(g_rows, v_rows, PRECISION), MIXING)
        dlogits = a * (da - deltas[:, :, None])
        dbefore = paired(dbefore, dlogits, product, MIXING)
        sums = gathered(sums, mixed(tl.trans(wl), dlogits, MIXING), k_rows, PRECISION)
    store_lanes(dq, sums, scale, gradient_strides, image, qi, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
    dbefore = tl.sum(dbefore, 0) * scale
    store_shares(shares, tl.program_id(0), dbefore, tl.sum(dafter, 0), tl.sum(dbias, 1), HEADS, HEAD_TILE)


@triton.jit
def _talking_bwd_keys(
    q, k, v, grad, lse, delta, dk, dv, before, after, after_bias, strides, grad_strides, gradient_strides,
    N, blocks, scale,
    HEADS: tl.constexpr, HEAD_TILE: tl.constexpr, HEAD_DIM: tl.constexpr, PART: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, MIXING: tl.constexpr,
):  # fmt: skip
    """Tiles are transposed: BLOCK_M counts keys, BLOCK_N queries."""
    image, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    ki = lane_tokens(block, HEAD_TILE, BLOCK_M)
    k_rows = load_lanes(k, strides, image, ki, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
    v_rows = load_lanes(v, strides, image, ki, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
    wl, ww = load_matrix(before, HEADS, HEAD_TILE), load_matrix(after, HEADS, HEAD_TILE)
    bias = load_bias(after_bias, HEADS, HEAD_TILE)
    dk_sums, dv_sums = no_rows(BLOCK_M, HEAD_DIM, PART), no_rows(BLOCK_M, HEAD_DIM, PART)
    for start in tl.range(0, N, BLOCK_N):
        qi = shared_tokens(start, BLOCK_N)
        q_rows = load_lanes(q, strides, image, qi, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
        g_rows = load_lanes(grad, grad_strides, image, qi, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
        pivot = load_numbers(lse, image, qi, N, float("inf"), HEADS, HEAD_TILE)[:, None, :] * LOG2E
        deltas = load_numbers(delta, image, qi, N, 0.0, HEADS, HEAD_TILE)[:, None, :]
        logits = mixed(wl * (scale * LOG2E), products(k_rows, q_rows, PRECISION), MIXING)
        a = softmaxed(logits, pivot, (ki < N)[:, :, None])  # [LANES, BLOCK_M, BLOCK_N]
        dv_sums = gathered(dv_sums, mixed(ww, a, MIXING) + bias, g_rows, PRECISION)
        da = mixed(tl.trans(ww), products(v_rows, g_rows, PRECISION), MIXING)
        dlogits = a * (da - deltas)
        dk_sums = gathered(dk_sums, mixed(tl.trans(wl), dlogits, MIXING), q_rows, PRECISION)
    store_lanes(dk, dk_sums, scale, gradient_strides, image, ki, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
    store_lanes(dv, dv_sums, 1.0, gradient_strides, image, ki, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)


def query_gradients(problem, q, k, v, grad, lse, delta, dq, shares):
    """Fills ``dq``, ``delta`` (B, H, N), and ``shares`` (blocks of tokens, 2 H + 1, H): those of the gradients of both
    matrices and of the bias after the softmax."""
    before, after, _ = problem.mixing
    launch(
        _talking_bwd_queries, (problem.programs,),
        q.tensor, k.tensor, v.tensor, grad.tensor, lse, delta, dq.tensor, shares, before, after,
        *problem.strides(q, grad, dq), *problem.sizes, **problem.constants,
    )  # fmt: skip


def key_gradients(problem, q, k, v, grad, lse, delta, dk, dv):
    """Fills ``dk`` and ``dv``."""
    launch(
        _talking_bwd_keys, (problem.programs,),
        q.tensor, k.tensor, v.tensor, grad.tensor, lse, delta, dk.tensor, dv.tensor, *problem.mixing,
        *problem.strides(q, grad, dk), *problem.sizes, **problem.constants,
    )  # fmt: skip
