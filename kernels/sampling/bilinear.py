"""Values between pixels, and zeros around an image: x is in pixels, 0 the centre of the first."""

import triton
import triton.language as tl

from ..machine.tiles import load_rows


@triton.jit
def in_pixels(locations, i, mask, size):
    """Of points in pixels [BLOCK]; two pixels outside the image for all that are farther, NaN where it is NaN. Lanes
    without a point have the corner of the image, whose first pixel may always be read."""
    x = tl.load(locations + i, mask=mask, other=0.0).to(tl.float32) * size - 0.5
    x = tl.where(x < -2.0, -2.0, x)
    return tl.where(x > size + 1.0, size + 1.0, x)


@triton.jit
def pixel_before(x):
    """The pixel at or before x, as an integer, and the distance from it. NaN is before all pixels."""
    whole = tl.floor(x)
    return tl.where(x == x, whole, -2.0).to(tl.int32), x - whole


@triton.jit
def rows_at(strides, image, head, i):
    """Places of rows ``i`` in units of ALIGN; strides (head, (image, row))."""
    start = image.to(tl.int64) * strides[1][0] + head.to(tl.int64) * strides[0]
    return start + i.to(tl.int64) * strides[1][1]


@triton.jit
def pixel_rows(
    value, strides, image, head, first, x, y, height, width,
    HEAD_DIM: tl.constexpr, ALIGN: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Values [BLOCK, BLOCK_D] at pixels of the level that begins at ``first``; zeros around it."""
    inside = (x.to(tl.uint32) < width.to(tl.uint32)) & (y.to(tl.uint32) < height.to(tl.uint32))
    at = rows_at(strides, image, head, first + y * width + x)
    return load_rows(value, at, inside, HEAD_DIM, ALIGN, 0, BLOCK_D)
