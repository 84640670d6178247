"""Blocks of SIDE x SIDE positions and BLOCK_D channels of an image and head: which one a program has, and its places.

A block is a tile [SIDE, SIDE * BLOCK_D], one axis of it in rows, the other beside the channels in columns, so that a
product with a matrix of the first mixes along that axis.
"""

import triton
import triton.language as tl

SIDE = tl.constexpr(16)  # what tl.dot takes


@triton.jit
def block_of(grid, heads, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Of a program: image, head, first row and column of its block, channels [BLOCK_D]."""
    CHUNKS: tl.constexpr = (HEAD_DIM + BLOCK_D - 1) // BLOCK_D
    d = tl.program_id(0) % CHUNKS * BLOCK_D + tl.arange(0, BLOCK_D)
    across = tl.cdiv(grid[1], SIDE)
    blocks = tl.cdiv(grid[0], SIDE) * across
    program = tl.program_id(0) // CHUNKS
    block = program // heads % blocks
    return program // heads // blocks, program % heads, block // across * SIDE, block % across * SIDE, d


@triton.jit
def places(
    strides, image, head, grid, top, left, d,
    X_FIRST: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Offsets [SIDE * SIDE, BLOCK_D] of channels of a block, and which there are; X_FIRST: y runs fastest."""
    r = tl.arange(0, SIDE * SIDE)
    if X_FIRST:
        y, x = top + r % SIDE, left + r // SIDE
    else:
        y, x = top + r // SIDE, left + r % SIDE
    start = image.to(tl.int64) * strides[1][0] + head.to(tl.int64) * strides[0]
    at = (start + (y * grid[1] + x).to(tl.int64) * strides[1][1]) * ALIGN
    inside = ((y < grid[0]) & (x < grid[1]))[:, None]
    if HEAD_DIM % BLOCK_D != 0:
        inside = inside & (d < HEAD_DIM)[None, :]
    return at[:, None] + d[None, :], inside


@triton.jit
def wide(rows, BLOCK_D: tl.constexpr):
    """[SIDE * SIDE, BLOCK_D] -> [SIDE, SIDE * BLOCK_D]."""
    return tl.reshape(rows, [SIDE, SIDE * BLOCK_D])


@triton.jit
def swapped(tile, BLOCK_D: tl.constexpr):
    """[first, (second, d)] -> [second, (first, d)]."""
    return wide(tl.permute(tl.reshape(tile, [SIDE, SIDE, BLOCK_D]), (1, 0, 2)), BLOCK_D)
