"""Deformable attention by pixel: the gradient of the values. See ../deformable_attention.py."""

import triton
import triton.language as tl

from ..machine.numbers import plain
from ..machine.tiles import load_rows, store_rows
from .bilinear import in_pixels, rows_at


@triton.jit
def _deformable_bwd_value(
    grad, locations, weights, order, starts, dvalue, grad_strides, sizes, queries, pixels, heads,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, HEAD_DIM: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr,
    COUNT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """order: the places of all points in ``cells`` of `_deformable_bwd`, sorted by image, head and cell; starts: where
    each cell begins there, and after them the points that are in none. A program has BLOCK pixels of a head, and COUNT
    points of each at a time: its rows are [BLOCK * COUNT].
    """
    queries, pixels = plain(queries), plain(pixels)
    blocks = tl.cdiv(pixels, BLOCK)
    images = tl.num_programs(0) // heads // blocks
    head, row = tl.program_id(0) % heads, tl.program_id(0) // heads
    image, block = row % images, blocks - 1 - row // images  # the last levels have most points for each pixel
    group = image.to(tl.int64) * heads + head
    r = tl.arange(0, BLOCK * COUNT)
    pixel = block * BLOCK + r // COUNT
    first, height, width, cell = tl.zeros_like(r), tl.zeros_like(r), tl.zeros_like(r), tl.zeros_like(r)
    end, end_cell = 0, 0
    for level in tl.static_range(LEVELS):
        h, w = plain(sizes[level][0]), plain(sizes[level][1])
        later = pixel >= end
        first, cell = tl.where(later, end, first), tl.where(later, end_cell, cell)
        height, width = tl.where(later, h, height), tl.where(later, w, width)
        end += h * w
        end_cell += (h + 1) * (w + 1)
    y, x = (pixel - first) // width, (pixel - first) % width
    at = starts + group * (end_cell + 1) + cell + y * (width + 1) + x  # of the cell whose last pixel this one is
    acc = tl.zeros([BLOCK * COUNT, BLOCK_D], tl.float32)
    for below in tl.static_range(2):
        here = at + below * (width + 1)
        begin = tl.load(here, mask=pixel < pixels, other=0) + r % COUNT
        stop = tl.load(here + 2, mask=pixel < pixels, other=0)
        for _ in tl.range(0, tl.cdiv(tl.max(stop - begin, 0), COUNT)):
            mask = begin < stop
            place = (tl.load(order + begin, mask=mask, other=0) - group * queries * (LEVELS * POINTS)).to(tl.int32)
            q = place // (LEVELS * POINTS)
            i = ((image.to(tl.int64) * queries + q) * heads + head) * (LEVELS * POINTS) + place % (LEVELS * POINTS)
            right = tl.abs(in_pixels(locations, 2 * i, mask, width) - x)
            under = tl.abs(in_pixels(locations, 2 * i + 1, mask, height) - y)
            weight = tl.load(weights + i, mask=mask, other=0.0) * (1.0 - right) * (1.0 - under)
            rows = load_rows(grad, rows_at(grad_strides, image, head, q), mask, HEAD_DIM, ALIGN, 0, BLOCK_D)
            acc += weight[:, None] * rows
            begin += COUNT
    total = tl.sum(tl.reshape(acc, [BLOCK, COUNT, BLOCK_D]), 1)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    at = (image.to(tl.int64) * pixels + pixel) * heads + head
    store_rows(dvalue, at * (HEAD_DIM // ALIGN), total, pixel < pixels, HEAD_DIM, ALIGN, 0, BLOCK_D)
