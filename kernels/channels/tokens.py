"""What runs over the tokens of an image: sums of products of channels, and products with a D x D matrix.

Strides (head, (image, token)) are in units of ALIGN elements, as `load_rows` takes them.
"""

import triton
import triton.language as tl

from ..loop.tokens import dense
from ..machine.tiles import load_rows, store_rows


@triton.jit
def place(strides, image, head, i):
    """Where the rows of tokens ``i`` [BLOCK_M] begin."""
    offsets, _ = dense(image, i, strides[1], ())
    return offsets + head.to(tl.int64) * strides[0]


@triton.jit
def summed(
    left, right, left_strides, right_strides, image, head, first, last,
    SQUARES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """left^T right [BLOCK_D, BLOCK_D] over tokens [first, last), and the squares of each channel of both [BLOCK_D],
    zeros without SQUARES."""
    total = tl.zeros([BLOCK_D, BLOCK_D], tl.float32)
    left_squares, right_squares = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    for start in tl.range(first, last, BLOCK_M):
        i = start + tl.arange(0, BLOCK_M)
        x = load_rows(left, place(left_strides, image, head, i), i < last, HEAD_DIM, ALIGN, 0, BLOCK_D)
        y = load_rows(right, place(right_strides, image, head, i), i < last, HEAD_DIM, ALIGN, 0, BLOCK_D)
        total = tl.dot(tl.trans(x), y, total, input_precision=PRECISION)
        if SQUARES:
            wide_x, wide_y = x.to(tl.float32), y.to(tl.float32)
            left_squares += tl.sum(wide_x * wide_x, 0)
            right_squares += tl.sum(wide_y * wide_y, 0)
    return total, left_squares, right_squares


@triton.jit
def mix(
    carried, out, weights, strides, out_strides, image, head, i, N,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = carried A^T of tokens ``i``."""
    x = load_rows(carried, place(strides, image, head, i), i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)
    o = tl.dot(x, tl.trans(weights), input_precision=PRECISION)
    store_rows(out, place(out_strides, image, head, i), o, i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)


@triton.jit
def mix_backward(
    left, right, grad, dleft, dright, dcarried, matrices, vectors, strides, grad_strides, gradient_strides,
    image, head, i, N,
    UNIT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of tokens ``i``; ``matrices`` and ``vectors``: see `slopes_of`."""
    weights, to_left, to_right = matrices
    at, found_at = place(strides, image, head, i), place(gradient_strides, image, head, i)
    g = load_rows(grad, place(grad_strides, image, head, i), i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)
    dc = tl.dot(g, weights, input_precision=PRECISION)
    store_rows(dcarried, found_at, dc, i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)
    x = load_rows(left, at, i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)
    y = load_rows(right, at, i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)
    dx = tl.dot(y, tl.trans(to_left), input_precision=PRECISION) * vectors[0][None, :]
    dy = tl.dot(x, to_right, input_precision=PRECISION) * vectors[1][None, :]
    if UNIT:
        dx -= x.to(tl.float32) * vectors[2][None, :]
        dy -= y.to(tl.float32) * vectors[3][None, :]
    store_rows(dleft, found_at, dx, i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)
    store_rows(dright, found_at, dy, i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)
