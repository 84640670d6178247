"""Rows of a head as one tile or two: 80 dims are 64 and 16, so that no product, register or byte of shared memory is
spent on what the next power of two, 128, would add. `head_parts` says which.

A head is a tuple of tiles: [BLOCK, BLOCK_D] and, where TAIL_D is not 0, [BLOCK, TAIL_D] with the dims from BLOCK_D on.
Dims from DIM on are zero. HEAD, LOOP: see constants.py.
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
    FIRST_D: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr,
    PADDED: tl.constexpr,
):  # fmt: skip
    if PADDED:
        rows = gather_rows(pointer, offsets, inside, i < count, padding, padding_row, DIM, ALIGN, FIRST_D, WIDTH)
    elif MASKED:
        rows = load_rows(pointer, offsets, i < count, DIM, ALIGN, FIRST_D, WIDTH)
    else:
        rows = load_rows(pointer, offsets, None, DIM, ALIGN, FIRST_D, WIDTH)
    return rows


@triton.jit
def load_head(
    operand, args, padding, padding_row, group, head, i, count,
    TOKENS: tl.constexpr, HEAD: tl.constexpr, ALIGN: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Rows of tokens ``i`` [BLOCK] of a group and head; operand (pointer, stride of heads, strides of TOKENS) in units
    of ALIGN.

    MASKED: zero from ``count`` on. PADDED: some tokens have no row, see `gather_rows`.
    """
    pointer, head_stride, strides = operand
    offsets, inside = TOKENS(group, i, strides, args)
    offsets += head.to(tl.int64) * head_stride
    rows = _load_part(
        pointer, offsets, inside, i, count, padding, padding_row, 0, HEAD.BLOCK_D, HEAD.DIM, ALIGN, MASKED, PADDED
    )
    parts = (rows,)
    if HEAD.TAIL_D > 0:
        tail = _load_part(
            pointer, offsets, inside, i, count, padding, padding_row,
            HEAD.BLOCK_D, HEAD.TAIL_D, HEAD.DIM, ALIGN, MASKED, PADDED,
        )  # fmt: skip
        parts += (tail,)
    return parts


@triton.jit
def store_head(
    operand, args, rows, group, head, i, count,
    TOKENS: tl.constexpr, HEAD: tl.constexpr, ALIGN: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """The inverse of `load_head`; tokens without a row are not stored."""
    pointer, head_stride, strides = operand
    offsets, inside = TOKENS(group, i, strides, args)
    offsets += head.to(tl.int64) * head_stride
    mask = i < count
    if PADDED:
        mask = mask & inside
    store_rows(pointer, offsets, rows[0], mask, HEAD.DIM, ALIGN, 0, HEAD.BLOCK_D)
    if HEAD.TAIL_D > 0:
        store_rows(pointer, offsets, rows[1], mask, HEAD.DIM, ALIGN, HEAD.BLOCK_D, HEAD.TAIL_D)


@triton.jit
def zeros(BLOCK: tl.constexpr, HEAD: tl.constexpr):
    """Sums to begin with, float32."""
    parts = (tl.zeros([BLOCK, HEAD.BLOCK_D], tl.float32),)
    if HEAD.TAIL_D > 0:
        parts += (tl.zeros([BLOCK, HEAD.TAIL_D], tl.float32),)
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
def store_sums(pointer, rows, mask, HEAD: tl.constexpr):
    """The sum over the rows of ``mask`` [BLOCK, 1] at ``pointer``: D numbers."""
    d = tl.arange(0, HEAD.BLOCK_D)
    tl.store(pointer + d, tl.sum(tl.where(mask, rows[0], 0.0), 0), mask=d < HEAD.DIM)
    if HEAD.TAIL_D > 0:
        tail = HEAD.BLOCK_D + tl.arange(0, HEAD.TAIL_D)
        tl.store(pointer + tail, tl.sum(tl.where(mask, rows[1], 0.0), 0), mask=tail < HEAD.DIM)


@triton.jit
def store_softmax(
    out, lse, args, maximum, total, sums, group, head, qi, count, TOKENS: tl.constexpr, LOOP: tl.constexpr
):
    """What the turns of `softmax_step` come to: rows of the output from the ``sums`` of values, and the natural
    logarithms of their denominators.
    """
    total = tl.where(total == 0.0, 1.0, total)  # a row without keys: 0 / 1, and log(1) - inf
    rows = scaled(sums, (1.0 / total)[:, None])
    store_head(out, args, rows, group, head, qi, count, TOKENS, LOOP.V, LOOP.OUT_ALIGN, LOOP.PADDED)
    logs = maximum * LN2 + tl.log(total)
    store_scalars(lse, args, logs, group, head, qi, count, TOKENS, LOOP.PADDED)
