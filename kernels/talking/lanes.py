"""Lanes: the heads of one or more blocks of tokens, as the batch of three-dimensional products.

There are LANES = 16 of them, what tl.dot needs at least: lane l is head l % HEAD_TILE of block l // HEAD_TILE, where
HEAD_TILE is the power of two that holds the heads. A block has BLOCK tokens; tokens that all blocks share are loaded
for each. Mixing heads is then one product with a [LANES, LANES] matrix, whose diagonal blocks are the H x H matrix.

Rows are tuples of parts, [LANES, BLOCK, PART] each: PART of their D channels, so that 48 need no 64.
"""

import triton
import triton.language as tl

LANES = tl.constexpr(16)


@triton.jit
def lane_tokens(block, HEAD_TILE: tl.constexpr, BLOCK: tl.constexpr):
    """[LANES, BLOCK] tokens of the ``block``-th program of an image: each lane has those of its block."""
    lane = tl.arange(0, LANES) // HEAD_TILE + block * (LANES // HEAD_TILE)
    return lane[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def shared_tokens(first, BLOCK: tl.constexpr):
    """[LANES, BLOCK], the same tokens in each lane."""
    return first + tl.zeros([LANES, 1], tl.int32) + tl.arange(0, BLOCK)[None, :]


@triton.jit
def _heads(HEADS: tl.constexpr, HEAD_TILE: tl.constexpr):
    """Head of each lane, and whether there is one: [LANES, 1]."""
    head = (tl.arange(0, LANES) % HEAD_TILE)[:, None]
    return head, head < HEADS


@triton.jit
def _places(strides, image, tokens, N, HEADS: tl.constexpr, HEAD_TILE: tl.constexpr):
    """Where rows begin, in units of ALIGN, and which there are: [LANES, BLOCK]. strides (head, (image, token))."""
    head, there = _heads(HEADS, HEAD_TILE)
    within = tokens.to(tl.int64) * strides[1][1] + head.to(tl.int64) * strides[0]
    return image.to(tl.int64) * strides[1][0] + within, there & (tokens < N)


@triton.jit
def _part(there, FIRST_D: tl.constexpr, HEAD_DIM: tl.constexpr, PART: tl.constexpr):
    """Channels from FIRST_D on, and which are there of rows that are ``there``."""
    d = FIRST_D + tl.arange(0, PART)[None, None, :]
    mask = there[:, :, None]
    if FIRST_D + PART > HEAD_DIM:
        mask = mask & (d < HEAD_DIM)
    return d, mask


@triton.jit
def load_lanes(
    pointer, strides, image, tokens, N,
    HEADS: tl.constexpr, HEAD_TILE: tl.constexpr, HEAD_DIM: tl.constexpr, PART: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Rows of ``tokens`` [LANES, BLOCK], zero where there is none."""
    places, there = _places(strides, image, tokens, N, HEADS, HEAD_TILE)
    parts = ()
    for part in tl.static_range((HEAD_DIM + PART - 1) // PART):
        d, mask = _part(there, part * PART, HEAD_DIM, PART)
        parts += (tl.load(pointer + (places * ALIGN)[:, :, None] + d, mask=mask, other=0.0),)
    return parts


@triton.jit
def store_lanes(
    pointer, parts, factor, strides, image, tokens, N,
    HEADS: tl.constexpr, HEAD_TILE: tl.constexpr, HEAD_DIM: tl.constexpr, PART: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The inverse of `load_lanes`, times ``factor``; rounds to the pointer's dtype."""
    places, there = _places(strides, image, tokens, N, HEADS, HEAD_TILE)
    for part in tl.static_range((HEAD_DIM + PART - 1) // PART):
        d, mask = _part(there, part * PART, HEAD_DIM, PART)
        rows = (parts[part] * factor).to(pointer.dtype.element_ty)
        tl.store(pointer + (places * ALIGN)[:, :, None] + d, rows, mask=mask)


@triton.jit
def no_rows(BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, PART: tl.constexpr):
    """Rows of zeros in float32: sums to start with."""
    parts = ()
    for _ in tl.static_range((HEAD_DIM + PART - 1) // PART):
        parts += (tl.zeros([LANES, BLOCK, PART], tl.float32),)
    return parts


@triton.jit
def products(left, right, PRECISION: tl.constexpr):
    """left right^T of two blocks of rows in each lane: [LANES, ROWS, COLS]."""
    total = tl.dot(left[0], tl.permute(right[0], (0, 2, 1)), input_precision=PRECISION)
    for part in tl.static_range(1, len(left)):
        total = tl.dot(left[part], tl.permute(right[part], (0, 2, 1)), total, input_precision=PRECISION)
    return total


@triton.jit
def gathered(sums, weights, rows, PRECISION: tl.constexpr):
    """sums + weights rows; weights [LANES, ROWS, COLS]."""
    operand = weights.to(rows[0].dtype)
    found = ()
    for part in tl.static_range(len(rows)):
        found += (tl.dot(operand, rows[part], sums[part], input_precision=PRECISION),)
    return found


@triton.jit
def _number_places(image, tokens, N, HEADS: tl.constexpr, HEAD_TILE: tl.constexpr):
    head, there = _heads(HEADS, HEAD_TILE)
    return (image.to(tl.int64) * HEADS + head) * N + tokens, there & (tokens < N)


@triton.jit
def load_numbers(pointer, image, tokens, N, other, HEADS: tl.constexpr, HEAD_TILE: tl.constexpr):
    """[LANES, BLOCK] of (B, H, N), contiguous: one number for each token and head; ``other`` where there is none."""
    places, there = _number_places(image, tokens, N, HEADS, HEAD_TILE)
    return tl.load(pointer + places, mask=there, other=other)


@triton.jit
def store_numbers(pointer, values, image, tokens, N, HEADS: tl.constexpr, HEAD_TILE: tl.constexpr):
    """The inverse of `load_numbers`."""
    places, there = _number_places(image, tokens, N, HEADS, HEAD_TILE)
    tl.store(pointer + places, values, mask=there)
