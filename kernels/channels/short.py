"""Images of one program for each head: sums over all tokens, then what they mix. Nothing is in memory between the two,
and what is read again comes out of the second-level cache."""

import triton
import triton.language as tl

from ..machine.launch import launch
from .matrix import factor_of, slopes_of, weights_of
from .tokens import mix, mix_backward, summed


@triton.jit
def _channel_short_fwd(
    left, right, carried, out, temperature, strides, out_strides, heads, N, scale,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    UNIT: tl.constexpr = temperature is not None
    total, left_squares, right_squares = summed(
        left, right, strides, strides, image, head, 0, N, UNIT, HEAD_DIM, BLOCK_M, BLOCK_D, ALIGN, PRECISION
    )
    factor = factor_of(temperature, head, scale)
    weights = weights_of(total, left_squares, right_squares, factor, UNIT, HEAD_DIM, BLOCK_D)
    weights = weights.to(carried.dtype.element_ty)
    for start in tl.range(0, N, BLOCK_M):
        i = start + tl.arange(0, BLOCK_M)
        mix(carried, out, weights, strides, out_strides, image, head, i, N, HEAD_DIM, BLOCK_D, ALIGN, PRECISION)


@triton.jit
def _channel_short_bwd(
    left, right, carried, grad, dleft, dright, dcarried, temperature, dtemperature,
    strides, grad_strides, gradient_strides, heads, N, scale,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    UNIT: tl.constexpr = temperature is not None
    total, left_squares, right_squares = summed(
        left, right, strides, strides, image, head, 0, N, UNIT, HEAD_DIM, BLOCK_M, BLOCK_D, ALIGN, PRECISION
    )
    dweights = summed(
        grad, carried, grad_strides, strides, image, head, 0, N, False, HEAD_DIM, BLOCK_M, BLOCK_D, ALIGN, PRECISION
    )[0]
    factor = factor_of(temperature, head, scale)
    matrices, vectors, dfactor = slopes_of(
        total, left_squares, right_squares, dweights, factor, UNIT, left.dtype.element_ty, HEAD_DIM, BLOCK_D
    )
    if UNIT:
        tl.store(dtemperature + tl.program_id(0), dfactor)
    for start in tl.range(0, N, BLOCK_M):
        i = start + tl.arange(0, BLOCK_M)
        mix_backward(
            left, right, grad, dleft, dright, dcarried, matrices, vectors, strides, grad_strides, gradient_strides,
            image, head, i, N, UNIT, HEAD_DIM, BLOCK_D, ALIGN, PRECISION,
        )  # fmt: skip


def short_forward(problem, left, right, carried, out):
    """Fills ``out``."""
    launch(
        _channel_short_fwd, (problem.matrices,),
        left.tensor, right.tensor, carried.tensor, out.tensor, problem.temperature, *problem.strides(left, out),
        problem.heads, problem.tokens, problem.scale, **problem.constants,
    )  # fmt: skip


def short_backward(problem, left, right, carried, grad, dleft, dright, dcarried, dtemperature):
    """Fills the gradients."""
    operands = (left, right, carried, grad, dleft, dright, dcarried)
    launch(
        _channel_short_bwd, (problem.matrices,),
        *(rows.tensor for rows in operands), problem.temperature, dtemperature,
        *problem.strides(left, grad, dleft), problem.heads, problem.tokens, problem.scale, **problem.constants,
    )  # fmt: skip
