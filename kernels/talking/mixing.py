"""Mixing the heads of lanes by a matrix (H, H), and the gradient of that."""

import triton
import triton.language as tl

from .lanes import LANES


@triton.jit
def _matrix(HEADS: tl.constexpr, HEAD_TILE: tl.constexpr):
    """Of each element of a [LANES, LANES] matrix: its place in (H, H), and whether it is in a diagonal block."""
    row, column = tl.arange(0, LANES)[:, None], tl.arange(0, LANES)[None, :]
    inside = (row % HEAD_TILE < HEADS) & (column % HEAD_TILE < HEADS)
    return row % HEAD_TILE * HEADS + column % HEAD_TILE, inside & (row // HEAD_TILE == column // HEAD_TILE)


@triton.jit
def load_matrix(pointer, HEADS: tl.constexpr, HEAD_TILE: tl.constexpr):
    """(H, H), contiguous, for each block of tokens: [LANES, LANES] float32."""
    places, inside = _matrix(HEADS, HEAD_TILE)
    return tl.load(pointer + places, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_bias(pointer, HEADS: tl.constexpr, HEAD_TILE: tl.constexpr):
    """(H,), contiguous, for each block of tokens: [LANES, 1, 1] float32, zeros of None."""
    head = tl.arange(0, LANES) % HEAD_TILE
    if pointer is None:
        bias = tl.zeros([LANES], tl.float32)
    else:
        bias = tl.load(pointer + head, mask=head < HEADS, other=0.0).to(tl.float32)
    return bias[:, None, None]


@triton.jit
def mixed(matrix, tile, MIXING: tl.constexpr):
    """out[l] = sum_m matrix[l, m] tile[m], of a tile [LANES, ROWS, COLS] in float32."""
    flat = tl.reshape(tile, [LANES, tile.shape[1] * tile.shape[2]])
    return tl.reshape(tl.dot(matrix, flat, input_precision=MIXING), [LANES, tile.shape[1], tile.shape[2]])


@triton.jit
def softmaxed(logits, pivot, there):
    """exp2(logits - pivot) of keys that are ``there``, both broadcast. The logits of others are 0: where a pivot is far
    below, they would weigh infinitely, which is NaN times the zeros of their rows and between lanes."""
    return tl.math.exp2(tl.where(there, logits - pivot, float("-inf")))


@triton.jit
def paired(sums, left, right, MIXING: tl.constexpr):
    """sums [ROWS, LANES, LANES] + sum_c left[l, r, c] right[m, r, c], the gradient of what mixed ``right``. The rows of
    a tile stay apart, so that warps share them."""
    return tl.dot(tl.permute(left, (1, 0, 2)), tl.permute(right, (1, 2, 0)), sums, input_precision=MIXING)


@triton.jit
def store_shares(pointer, program, dbefore, dafter, dbias, HEADS: tl.constexpr, HEAD_TILE: tl.constexpr):
    """The shares (2 H + 1, H) of a program's blocks of tokens, one after the other: [LANES, LANES] twice, [LANES]."""
    lane = tl.arange(0, LANES)
    blocks = program.to(tl.int64) * (LANES // HEAD_TILE) + lane // HEAD_TILE
    start = pointer + blocks * ((2 * HEADS + 1) * HEADS)
    places, inside = _matrix(HEADS, HEAD_TILE)
    tl.store(start[:, None] + places, dbefore, mask=inside)
    tl.store(start[:, None] + (HEADS * HEADS + places), dafter, mask=inside)
    head = lane % HEAD_TILE
    tl.store(start + (2 * HEADS * HEADS + head), dbias, mask=head < HEADS)
