"""Forward: a program owns the queries of its lanes. It passes over the keys twice, for the statistics of the mixed
logits, and for what the mixed weights gather."""

import triton
import triton.language as tl

from ..machine.launch import launch
from ..machine.tiles import LN2, LOG2E
from .lanes import (
    LANES,
    gathered,
    lane_tokens,
    load_lanes,
    no_rows,
    products,
    shared_tokens,
    store_lanes,
    store_numbers,
)
from .mixing import load_bias, load_matrix, mixed, softmaxed


@triton.jit
def _talking_fwd(
    q, k, v, out, lse, before, after, after_bias, strides, out_strides, N, blocks, scale,
    HEADS: tl.constexpr, HEAD_TILE: tl.constexpr, HEAD_DIM: tl.constexpr, PART: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr, MIXING: tl.constexpr,
):  # fmt: skip
    image, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    qi = lane_tokens(block, HEAD_TILE, BLOCK_M)
    q_rows = load_lanes(q, strides, image, qi, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
    wl = load_matrix(before, HEADS, HEAD_TILE) * (scale * LOG2E)
    maximum = tl.full([LANES, BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([LANES, BLOCK_M], tl.float32)
    for start in tl.range(0, N, BLOCK_N):
        ki = shared_tokens(start, BLOCK_N)
        k_rows = load_lanes(k, strides, image, ki, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
        logits = mixed(wl, products(q_rows, k_rows, PRECISION), MIXING)  # [LANES, BLOCK_M, BLOCK_N]
        logits = tl.where((ki < N)[:, None, :], logits, float("-inf"))
        top = tl.maximum(maximum, tl.max(logits, 2))
        total = total * tl.math.exp2(maximum - top) + tl.sum(tl.math.exp2(logits - top[:, :, None]), 2)
        maximum = top
    pivot = maximum + tl.math.log2(total)
    store_numbers(lse, pivot * LN2, image, qi, N, HEADS, HEAD_TILE)

    ww, bias = load_matrix(after, HEADS, HEAD_TILE), load_bias(after_bias, HEADS, HEAD_TILE)
    sums = no_rows(BLOCK_M, HEAD_DIM, PART)
    for start in tl.range(0, N, BLOCK_N):
        ki = shared_tokens(start, BLOCK_N)
        k_rows = load_lanes(k, strides, image, ki, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
        v_rows = load_lanes(v, strides, image, ki, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)
        logits = mixed(wl, products(q_rows, k_rows, PRECISION), MIXING)
        a = softmaxed(logits, pivot[:, :, None], (ki < N)[:, None, :])
        weights = mixed(ww, a, MIXING) + bias
        sums = gathered(sums, weights, v_rows, PRECISION)  # past the last key rows are zeros
    store_lanes(out, sums, 1.0, out_strides, image, qi, N, HEADS, HEAD_TILE, HEAD_DIM, PART, ALIGN)


def run_forward(problem, q, k, v, out, lse):
    """Fills ``out``, rows, and ``lse`` (B, H, N)."""
    launch(
        _talking_fwd, (problem.programs,),
        q.tensor, k.tensor, v.tensor, out.tensor, lse, *problem.mixing, *problem.strides(q, out), *problem.sizes,
        **problem.constants,
    )  # fmt: skip
