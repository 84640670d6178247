"""Deformable attention by query: forward, and the gradients of locations and weights. See
../deformable_attention.py."""

import triton
import triton.language as tl

from ..machine.numbers import plain
from ..machine.tiles import load_rows, store_rows
from .bilinear import in_pixels, pixel_before, pixel_rows, rows_at


@triton.jit
def _queries(queries, heads, BLOCK_Q: tl.constexpr):
    """Of a program: image, head, queries [BLOCK_Q]."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(queries, BLOCK_Q)
    return pid // heads // blocks, pid % heads, pid // heads % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)


@triton.jit
def _deformable_fwd(
    value, locations, weights, out, value_strides, out_strides, sizes, queries, heads,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, HEAD_DIM: tl.constexpr, ALIGN: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """locations (B, Q, H, LEVELS, POINTS, 2), weights (B, Q, H, LEVELS, POINTS); sizes and queries in disguise."""
    queries = plain(queries)
    image, head, q = _queries(queries, heads, BLOCK_Q)
    mask = q < queries
    begin = ((image.to(tl.int64) * queries + q) * heads + head) * (LEVELS * POINTS)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    first = 0
    for level in tl.static_range(LEVELS):
        height, width = plain(sizes[level][0]), plain(sizes[level][1])
        for point in tl.range(level * POINTS, (level + 1) * POINTS):
            i = begin + point
            weight = tl.load(weights + i, mask=mask, other=0.0).to(tl.float32)
            x0, right = pixel_before(in_pixels(locations, 2 * i, mask, width))
            y0, below = pixel_before(in_pixels(locations, 2 * i + 1, mask, height))
            for corner in tl.static_range(4):
                share = (right if corner % 2 else 1.0 - right) * (below if corner // 2 else 1.0 - below)
                rows = pixel_rows(
                    value, value_strides, image, head, first, x0 + corner % 2, y0 + corner // 2, height, width,
                    HEAD_DIM, ALIGN, BLOCK_D,
                )  # fmt: skip
                acc += (weight * share)[:, None] * rows
        first += height * width
    store_rows(out, rows_at(out_strides, image, head, q), acc, mask, HEAD_DIM, ALIGN, 0, BLOCK_D)


@triton.jit
def _count_cells(sizes, LEVELS: tl.constexpr):
    """Of all levels."""
    count = 0
    for level in tl.static_range(LEVELS):
        count += (plain(sizes[level][0]) + 1) * (plain(sizes[level][1]) + 1)
    return count


@triton.jit
def _store(pointer, values, mask):
    tl.store(pointer, values.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _deformable_bwd(
    grad, value, locations, weights, dlocations, dweights, cells, grad_strides, value_strides, sizes, queries, heads,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, HEAD_DIM: tl.constexpr, ALIGN: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """cells (B, H, Q, LEVELS, POINTS): which one of all levels a point is in, the one after the last for none."""
    queries = plain(queries)
    image, head, q = _queries(queries, heads, BLOCK_Q)
    mask = q < queries
    group = image.to(tl.int64) * heads + head
    begin = ((image.to(tl.int64) * queries + q) * heads + head) * (LEVELS * POINTS)
    place = (group * queries + q) * (LEVELS * POINTS)
    slope = load_rows(grad, rows_at(grad_strides, image, head, q), mask, HEAD_DIM, ALIGN, 0, BLOCK_D).to(tl.float32)
    first, start, nowhere = 0, 0, _count_cells(sizes, LEVELS)
    for level in tl.static_range(LEVELS):
        height, width = plain(sizes[level][0]), plain(sizes[level][1])
        for point in tl.range(level * POINTS, (level + 1) * POINTS):
            i = begin + point
            x = in_pixels(locations, 2 * i, mask, width)
            y = in_pixels(locations, 2 * i + 1, mask, height)
            x0, right = pixel_before(x)
            y0, below = pixel_before(y)
            sums = ()  # of the gradient's products with the four values
            for corner in tl.static_range(4):
                rows = pixel_rows(
                    value, value_strides, image, head, first, x0 + corner % 2, y0 + corner // 2, height, width,
                    HEAD_DIM, ALIGN, BLOCK_D,
                )  # fmt: skip
                sums += (tl.sum(slope * rows, 1),)
            weight = tl.load(weights + i, mask=mask, other=0.0).to(tl.float32)
            above, under = sums[0] * (1.0 - right) + sums[1] * right, sums[2] * (1.0 - right) + sums[3] * right
            dweight = above * (1.0 - below) + under * below
            dx = weight * ((sums[1] - sums[0]) * (1.0 - below) + (sums[3] - sums[2]) * below) * width
            dy = weight * (under - above) * height
            _store(dweights + i, dweight, mask)
            _store(dlocations + 2 * i, tl.where((x > -2.0) & (x < width + 1.0), dx, 0.0), mask)
            _store(dlocations + 2 * i + 1, tl.where((y > -2.0) & (y < height + 1.0), dy, 0.0), mask)
            known = (x0 >= -1) & (x0 < width) & (y0 >= -1) & (y0 < height)
            cell = start + (y0 + 1) * (width + 1) + x0 + 1
            _store(cells + place + point, tl.where(known, cell, nowhere), mask)
        first += height * width
        start += (height + 1) * (width + 1)
