"""Pixels of an image by their place in a patch: what kernels address that models would have unfolded.

A tile has one ``row`` of BLOCK patches, ACROSS of them side by side, and COLS columns of each from ``column`` on:
BLOCK * COLS pixels as they lie in rows of the image. All three are powers of two. A grid is (patches in a column,
pixels in a row in units of ALIGN) of an image.
"""

import triton
import triton.language as tl


@triton.jit
def pixels(
    turn, grid, row, column,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr, COLS: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """y, x [BLOCK * COLS] of the pixels of the ``turn``-th tile, and whether there are such."""
    blocks = _blocks(grid, PATCH_W, ACROSS, ALIGN)
    t = tl.arange(0, BLOCK * COLS)
    down, first = turn // blocks * (BLOCK // ACROSS) + t // (ACROSS * COLS), turn % blocks * ACROSS
    along = t % (ACROSS * COLS)
    if COLS == PATCH_W:
        x = first * COLS + along  # the compiler sees that they lie side by side
        inside = (down < grid[0]) & (x < grid[1] * ALIGN)
    else:
        j = column + along % COLS
        x = (first + along // COLS) * PATCH_W + j
        inside = (down < grid[0]) & (x < grid[1] * ALIGN) & (j < PATCH_W)
    return down * PATCH_H + row, x, inside


@triton.jit
def _blocks(grid, PATCH_W: tl.constexpr, ACROSS: tl.constexpr, ALIGN: tl.constexpr):
    """Tiles that a row of the grid takes."""
    return tl.cdiv(grid[1] * ALIGN, ACROSS * PATCH_W)


@triton.jit
def turns(grid, PATCH_W: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr):
    """Tiles that a grid takes."""
    return tl.cdiv(grid[0], BLOCK // ACROSS) * _blocks(grid, PATCH_W, ACROSS, ALIGN)


@triton.jit
def channels_at(strides, image, y, x, c, ALIGN: tl.constexpr):
    """Places of pixels [T] in channels ``c`` [BLOCK_C]: [T, BLOCK_C]; strides (image, channel, y, x), all but the last
    in units of ALIGN."""
    pixel = (image.to(tl.int64) * strides[0] + y.to(tl.int64) * strides[2]) * ALIGN + x.to(tl.int64) * strides[3]
    return pixel[:, None] + (c.to(tl.int64)[None, :] * strides[1]) * ALIGN


@triton.jit
def over_patches(tile, LARGEST: tl.constexpr, BLOCK: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr):
    """The sum, or the largest, of each class of a tile [BLOCK * COLS, WIDTH], at every pixel of the class."""
    parts = tl.reshape(tile, [BLOCK, COLS, WIDTH])
    if LARGEST:
        reduced = tl.max(parts, 0)
    else:
        reduced = tl.sum(parts, 0)
    return tl.reshape(tl.broadcast_to(reduced[None, :, :], [BLOCK, COLS, WIDTH]), [BLOCK * COLS, WIDTH])
