"""Which keys a query of local attention sees, and how queries and keys fall into groups: index arithmetic and hooks.

Positions of an axis with dilation d fall into d classes of positions that see one another; a rank counts within a
class. A query of rank r sees the ranks [begin, begin + EXTENT), begin = r // BLOCK * BLOCK - HALO and EXTENT = BLOCK +
2 HALO: BLOCK = 1 is a window around each query, HALO = 0 cuts the axis into windows. BORDER says what becomes of ranks
beyond the class: the interval is moved inside (CLAMP, where BLOCK is 1), they are not seen (EXCLUDE), they are seen and
have no row (KEEP), or they are those of the other end (WRAP, where what pads the last block is not seen).

A group is a tile of TILE ranks of each axis, and a region of SPAN ranks that holds all that the tile needs. KIND:

    OF_QUERIES  the tile holds queries, the region their keys
    OF_KEYS     the tile holds keys, the region the queries that see any of them
    FIXED       as OF_QUERIES, but region and tile lie alike in all groups, at a border too

An axis travels as (size, dilation, tiles, TILE, SPAN, BLOCK, HALO, BORDER, KIND, span, inverse): size, tiles and span
in disguise (see `numbers`), the capitals constexpr. A TILE and BLOCK of 0 are all ranks, a SPAN of 0 is ``span``: they
follow the size, and one kernel serves all; ``inverse`` is that of the span, see `numbers`. ``args`` of the TOKENS hooks
are (y_axis, x_axis), their strides (image, y, x), disguised.
"""

import triton
import triton.language as tl

from ..machine.numbers import all_plain, divided, plain
from ..machine.tiles import LOG2E

CLAMP, EXCLUDE, KEEP, WRAP = (tl.constexpr(n) for n in range(4))
OF_QUERIES, OF_KEYS, FIXED = (tl.constexpr(n) for n in range(3))


@triton.jit
def _tile_of(group, y_axis, x_axis):
    """Of a group: its image, and for each axis the class and the first rank of the tile."""
    _, y_dilation, y_tiles, Y_TILE, _, _, _, _, _, _, _ = y_axis
    _, x_dilation, x_tiles, X_TILE, _, _, _, _, _, _, _ = x_axis
    y_tiles, x_tiles = plain(y_tiles), plain(x_tiles)
    x_tile, rest = group % x_tiles, group // x_tiles
    y_tile, rest = rest % y_tiles, rest // y_tiles
    x_class, rest = rest % x_dilation, rest // x_dilation
    return rest // y_dilation, rest % y_dilation, y_tile * Y_TILE, x_class, x_tile * X_TILE


@triton.jit
def _length(axis, number):
    """Ranks of a class."""
    return (plain(axis[0]) - number + axis[1] - 1) // axis[1]


@triton.jit
def _begin(rank, length, axis):
    """First rank that a query sees."""
    _, _, _, _, _, BLOCK, HALO, BORDER, _, _, _ = axis
    first = rank - HALO
    if BLOCK == 0:
        first = rank * 0
    elif BLOCK > 1:  # ranks start at -BLOCK where an axis wraps, and division rounds towards 0
        first = (rank + BLOCK) // BLOCK * BLOCK - BLOCK - HALO
    if BORDER == CLAMP:
        first = tl.minimum(tl.maximum(first, 0), length - (BLOCK + 2 * HALO))
    return first


@triton.jit
def _region_begin(rank, length, axis):
    """First rank of the region of the tile that starts at ``rank``."""
    _, _, _, _, _, BLOCK, HALO, BORDER, KIND, _, _ = axis
    if KIND == OF_KEYS:
        first = rank - HALO
        if BLOCK == 0:
            first = rank * 0
        elif BLOCK > 1:
            first = (rank - HALO + 2 * BLOCK) // BLOCK * BLOCK - 2 * BLOCK
        if BORDER == CLAMP:
            first = tl.where(rank < BLOCK + 2 * HALO, 0, first)
        if BORDER != WRAP:
            first = tl.maximum(first, 0)
    elif (KIND == FIXED) & (BORDER == CLAMP):
        first = rank - 2 * HALO
    else:
        first = _begin(rank, length, axis)
    return first


@triton.jit
def _wrapped(rank, axis):
    """The rank within the padded class, for one that is at most that far outside."""
    if axis[7] == WRAP:
        padded = plain(axis[2]) * axis[3]
        rank = tl.where(rank < 0, rank + padded, tl.where(rank < padded, rank, rank - padded))
    return rank


@triton.jit
def _row(image, y_class, y, x_class, x, y_axis, x_axis, strides):
    """Offset of the token at ranks y and x, and whether there is one."""
    y, x, strides = _wrapped(y, y_axis), _wrapped(x, x_axis), all_plain(strides)
    inside = (y >= 0) & (y < _length(y_axis, y_class)) & (x >= 0) & (x < _length(x_axis, x_class))
    rows = (y * y_axis[1] + y_class).to(tl.int64) * strides[1]
    columns = (x * x_axis[1] + x_class).to(tl.int64) * strides[2]
    return image.to(tl.int64) * strides[0] + rows + columns, inside


@triton.jit
def _place(i, axis, SIDE: tl.constexpr):
    """Row and column of token ``i`` among rows of SIDE, of the span where that is 0."""
    if SIDE > 0:
        row = i // SIDE
        column = i % SIDE
    else:
        row = divided(i, axis[10])
        column = i - row * plain(axis[9])
    return row, column


@triton.jit
def _tile_ranks(group, i, y_axis, x_axis):
    """Image, and class and rank of each axis, of token ``i`` of a tile."""
    image, y_class, y, x_class, x = _tile_of(group, y_axis, x_axis)
    row, column = _place(i, x_axis, x_axis[3])
    return image, y_class, y + row, x_class, x + column


@triton.jit
def in_region(i, args):
    """Row and column of token ``i`` within a region."""
    return _place(i, args[1], args[1][4])


@triton.jit
def _region_ranks(group, i, y_axis, x_axis):
    """As `_tile_ranks`, of a region."""
    image, y_class, y, x_class, x = _tile_of(group, y_axis, x_axis)
    row, column = _place(i, x_axis, x_axis[4])
    y = _region_begin(y, _length(y_axis, y_class), y_axis)
    x = _region_begin(x, _length(x_axis, x_class), x_axis)
    return image, y_class, y + row, x_class, x + column


@triton.jit
def tile(group, i, strides, args):
    """TOKENS of a tile."""
    image, y_class, y, x_class, x = _tile_ranks(group, i, args[0], args[1])
    offset, inside = _row(image, y_class, y, x_class, x, args[0], args[1], strides)
    return offset, inside


@triton.jit
def region(group, i, strides, args):
    """TOKENS of a region."""
    image, y_class, y, x_class, x = _region_ranks(group, i, args[0], args[1])
    offset, inside = _row(image, y_class, y, x_class, x, args[0], args[1], strides)
    return offset, inside


@triton.jit
def first_seen(group, i, args):
    """Row and column of the region at which the interval of query ``i`` of a tile begins."""
    y_axis, x_axis = args
    _, y_class, y_start, x_class, x_start = _tile_of(group, y_axis, x_axis)
    _, _, y, _, x = _tile_ranks(group, i, y_axis, x_axis)
    y_length, x_length = _length(y_axis, y_class), _length(x_axis, x_class)
    first_y = _begin(y, y_length, y_axis) - _region_begin(y_start, y_length, y_axis)
    return first_y, _begin(x, x_length, x_axis) - _region_begin(x_start, x_length, x_axis)


@triton.jit
def _within(i, count):
    return (i >= 0) & (i < count)


@triton.jit
def _seen(q, k, length, axis):
    """Whether there is a query, and a key in its interval, along one axis."""
    _, _, _, _, _, BLOCK, HALO, BORDER, _, _, _ = axis
    if BLOCK == 0:
        seen = (q < length) & (k < length)
    else:
        step, place = k - _begin(q, length, axis), _wrapped(q, axis)
        seen = (step >= 0) & (step < BLOCK + 2 * HALO) & (place >= 0) & (place < length)
        if BORDER == EXCLUDE:
            seen = seen & (k >= 0) & (k < length)
        elif BORDER == WRAP:
            seen = seen & (_wrapped(k, axis) < length)
    return seen


@triton.jit
def own_ranks(group, i, args):
    """PREPARE of `near`: class and rank of each axis, and image, of tokens ``i`` of the tile."""
    y_axis, x_axis = args[0]
    image, y_class, y, x_class, x = _tile_ranks(group, i, y_axis, x_axis)
    return image, y_class, y, x_class, x


@triton.jit
def near(s, group, head, qi, ki, args, state):
    """SCORE: forbids what a query does not see, and adds what depends on where a key lies.

    args (axes, table, logits, block). ``table``: () or (pointer, HEIGHT, WIDTH), (H, HEIGHT, WIDTH) float32 in units of
    log2, its middle entry for the query's own place. ``rel``: () or (y_pointer, x_pointer, y_strides, x_strides,
    Y_ALIGN, X_ALIGN), each (B, img_h, img_w, H, EXTENT), in natural units, entry j for the keys of rank begin + j;
    strides (image, y, x, head) in units of ALIGN, disguised. ``neighbor``: () or (dy, dx): of the blocks around its own
    a query sees this one alone.
    """
    axes, table, rel, neighbor = args
    y_axis, x_axis = axes
    if args[0][0][8] == OF_KEYS:  # read in place: what is assigned to a name is no constant any more
        image, y_class, qy, x_class, qx = _region_ranks(group, qi, y_axis, x_axis)
        _, _, ky, _, kx = state
    else:
        image, y_class, qy, x_class, qx = state
        _, _, ky, _, kx = _region_ranks(group, ki, y_axis, x_axis)
    y_length, x_length = _length(y_axis, y_class), _length(x_axis, x_class)
    seen = _seen(qy, ky, y_length, y_axis) & _seen(qx, kx, x_length, x_axis)
    if len(neighbor) > 0:
        Y_BLOCK: tl.constexpr = y_axis[5]
        X_BLOCK: tl.constexpr = x_axis[5]
        dy = ky - _begin(qy, y_length, y_axis) - Y_BLOCK  # from the query's own block
        dx = kx - _begin(qx, x_length, x_axis) - X_BLOCK
        own = _within(dy, Y_BLOCK) & _within(dx, X_BLOCK)
        chosen = _within(dy - neighbor[0] * Y_BLOCK, Y_BLOCK) & _within(dx - neighbor[1] * X_BLOCK, X_BLOCK)
        seen = seen & (own | chosen)
    if len(table) > 0:
        pointer, HEIGHT, WIDTH = table
        place = (ky * WIDTH + kx) - (qy * WIDTH + qx) + (HEIGHT // 2 * WIDTH + WIDTH // 2)
        s += tl.load(pointer + head.to(tl.int64) * (HEIGHT * WIDTH) + place, mask=seen, other=0.0)
    if len(rel) > 0:
        y_pointer, x_pointer, y_strides, x_strides, Y_ALIGN, X_ALIGN = rel
        y_offset, _ = _row(image, y_class, qy, x_class, qx, y_axis, x_axis, y_strides)
        x_offset, _ = _row(image, y_class, qy, x_class, qx, y_axis, x_axis, x_strides)
        y_head, x_head = head.to(tl.int64) * plain(y_strides[3]), head.to(tl.int64) * plain(x_strides[3])
        y_where = y_pointer + (y_offset + y_head) * Y_ALIGN + (ky - _begin(qy, y_length, y_axis))
        x_where = x_pointer + (x_offset + x_head) * X_ALIGN + (kx - _begin(qx, x_length, x_axis))
        added = tl.load(y_where, mask=seen, other=0.0).to(tl.float32)
        added += tl.load(x_where, mask=seen, other=0.0).to(tl.float32)
        s += added * LOG2E
    return tl.where(seen, s, float("-inf"))
