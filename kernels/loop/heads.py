"""Rows of a head as one tile or two: 80 dims are 64 and 16, so that no product, register or byte of shared memory is
spent on what the next power of two, 128, would add. `head_parts` says which.

A head is a tuple of tiles: [BLOCK, BLOCK_D] and, where TAIL_D is not 0, [BLOCK, TAIL_D] with the dims from BLOCK_D on.
Dims from HEAD_DIM on are zero. LOOP: see constants.py.
"""

import triton
import triton.language as tl

from ..machine.architecture import CONSUMER_BLACKWELL, family
from ..machine.blocks import head_tile
from ..machine.choices import choice
from ..machine.switch import Switch
from ..machine.tiles import LN2, gather_rows, load_rows, store_rows, store_scalars

_one_tile = Switch(False)


@choice
def head_parts(head_dim, arch, hooked):
    """Widths of the one or two tiles that hold a head: 80 dims are (64, 16), 64 are (64, 0). ``hooked``: see
    `constants.hooked`.

    Beyond 128 dims, where rows are no whole pieces of 16 bytes, and with a hook on consumer Blackwell, two tiles spill
    where one does not.
    """
    whole = head_tile(head_dim)
    half = whole // 2
    spills = head_dim % 8 or (hooked and family(arch) == CONSUMER_BLACKWELL)
    if whole in (64, 128) and not spills and not _one_tile.value and head_tile(head_dim - half) < half:
        return half, head_tile(head_dim - half)
    return whole, 0


def one_tile():
    """Within the block one tile holds a head, whatever its dims: what `head_parts` is measured against."""
    return _one_tile.set(True)


@triton.jit
def _load_part(
    pointer, offsets, inside, i, count, padding, padding_row,
    FIRST_D: tl.constexpr, WIDTH: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    if LOOP.PADDED:
        rows = gather_rows(
            pointer, offsets, inside, i < count, padding, padding_row, LOOP.HEAD_DIM, ALIGN, FIRST_D, WIDTH
        )
    elif MASKED:
        rows = load_rows(pointer, offsets, i < count, LOOP.HEAD_DIM, ALIGN, FIRST_D, WIDTH)
    else:
        rows = load_rows(pointer, offsets, None, LOOP.HEAD_DIM, ALIGN, FIRST_D, WIDTH)
    return rows


@triton.jit
def load_head(
    pointer, strides, args, padding, padding_row, group, head, i, count,
    TOKENS: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """Rows of tokens ``i`` [BLOCK] of a group and head; strides (head, strides of TOKENS) in units of ALIGN.

    MASKED: zero from ``count`` on. Where tokens have no row, see `gather_rows`.
    """
    offsets, inside = TOKENS(group, i, strides[1], args)
    offsets += head.to(tl.int64) * strides[0]
    rows = _load_part(pointer, offsets, inside, i, count, padding, padding_row, 0, LOOP.BLOCK_D, ALIGN, MASKED, LOOP)
    parts = (rows,)
    if LOOP.TAIL_D > 0:
        tail = _load_part(
            pointer, offsets, inside, i, count, padding, padding_row, LOOP.BLOCK_D, LOOP.TAIL_D, ALIGN, MASKED, LOOP
        )
        parts += (tail,)
    return parts


@triton.jit
def store_head(pointer, strides, args, rows, group, head, i, count, TOKENS: tl.constexpr, LOOP: tl.constexpr):
    """The inverse of `load_head`, with strides in units of OUT_ALIGN; tokens without a row are not stored."""
    offsets, inside = TOKENS(group, i, strides[1], args)
    offsets += head.to(tl.int64) * strides[0]
    mask = i < count
    if LOOP.PADDED:
        mask = mask & inside
    store_rows(pointer, offsets, rows[0], mask, LOOP.HEAD_DIM, LOOP.OUT_ALIGN, 0, LOOP.BLOCK_D)
    if LOOP.TAIL_D > 0:
        store_rows(pointer, offsets, rows[1], mask, LOOP.HEAD_DIM, LOOP.OUT_ALIGN, LOOP.BLOCK_D, LOOP.TAIL_D)


@triton.jit
def zeros(BLOCK: tl.constexpr, LOOP: tl.constexpr):
    """Sums to begin with, float32."""
    parts = (tl.zeros([BLOCK, LOOP.BLOCK_D], tl.float32),)
    if LOOP.TAIL_D > 0:
        parts += (tl.zeros([BLOCK, LOOP.TAIL_D], tl.float32),)
    return parts


@triton.jit
def scaled(rows, factor):
    """rows * factor, a number or one for each row [BLOCK, 1]."""
    parts = ()
    for n in tl.static_range(len(rows)):
        parts += (rows[n] * factor,)
    return parts


@triton.jit
def products(a, b, PRECISION: tl.constexpr):
    """a b^T: [BLOCK_A, BLOCK_B] float32."""
    product = tl.dot(a[0], tl.trans(b[0]), input_precision=PRECISION)
    for n in tl.static_range(1, len(a)):
        product = tl.dot(a[n], tl.trans(b[n]), product, input_precision=PRECISION)
    return product


@triton.jit
def add_products(sums, weights, rows, PRECISION: tl.constexpr):
    """sums + weights rows, for ``weights`` [BLOCK_A, BLOCK_B] and the rows of BLOCK_B tokens."""
    parts = ()
    for n in tl.static_range(len(rows)):
        parts += (tl.dot(weights, rows[n], sums[n], input_precision=PRECISION),)
    return parts


@triton.jit
def inner_products(a, b):
    """Of each row of ``a`` with that of ``b``: [BLOCK] float32."""
    total = tl.sum(a[0].to(tl.float32) * b[0].to(tl.float32), 1)
    for n in tl.static_range(1, len(a)):
        total += tl.sum(a[n].to(tl.float32) * b[n].to(tl.float32), 1)
    return total


@triton.jit
def store_sums(pointer, rows, mask, LOOP: tl.constexpr):
    """The sum over the rows of ``mask`` [BLOCK, 1] at ``pointer``: D numbers."""
    d = tl.arange(0, LOOP.BLOCK_D)
    tl.store(pointer + d, tl.sum(tl.where(mask, rows[0], 0.0), 0), mask=d < LOOP.HEAD_DIM)
    if LOOP.TAIL_D > 0:
        tail = LOOP.BLOCK_D + tl.arange(0, LOOP.TAIL_D)
        tl.store(pointer + tail, tl.sum(tl.where(mask, rows[1], 0.0), 0), mask=tail < LOOP.HEAD_DIM)


@triton.jit
def store_softmax(
    out, lse, out_strides, lse_strides, args, maximum, total, sums, group, head, qi, count,
    TOKENS: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """What the turns of `softmax_step` come to: rows of the output from the ``sums`` of values, and the natural
    logarithms of their denominators.
    """
    total = tl.where(total == 0.0, 1.0, total)  # a row without keys: 0 / 1, and log(1) - inf
    rows = scaled(sums, (1.0 / total)[:, None])
    store_head(out, out_strides, args, rows, group, head, qi, count, TOKENS, LOOP)
    logs = maximum * LN2 + tl.log(total)
    store_scalars(lse, lse_strides, args, logs, group, head, qi, count, TOKENS, LOOP.PADDED)
