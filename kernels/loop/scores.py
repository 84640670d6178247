"""Hook: what is added to a logit.

``SCORE(s, group, head, qi, ki, args, state) -> s`` with ``s`` the logits of a tile, float32, in units of log2, and
``qi``, ``ki`` int32 token indices within the group, already shaped to broadcast against ``s``: [BLOCK_M, 1] and [1,
BLOCK_N], or [1, BLOCK_M] and [BLOCK_N, 1] where a kernel holds the transposed tile. A hook adds to a logit or forbids
it (-inf), never rescales it (`logits` does): then the backward recomputes the probabilities with the same hook and the
gradient of the logit passes through unchanged. Keys past the group are masked by the caller.

``PREPARE(group, i, args) -> state``, a tuple, computes once what depends on the tokens ``i`` [BLOCK, 1] alone
that a program holds: queries, or keys where the tile is transposed.
"""

import triton
import triton.language as tl

from ..machine.numbers import all_plain
from ..machine.tiles import LOG2E


@triton.jit
def plain(s, group, head, qi, ki, args, state):
    """No change. args ()."""
    return s


@triton.jit
def unprepared(group, i, args):
    """PREPARE of what has nothing to compute beforehand."""
    return ()


@triton.jit
def terms(s, group, head, qi, ki, args, state):
    """Dense bias and mask tensors. args: one tuple (pointer, strides, queries, keys, PER_QUERY) for each term.

    strides (group, head, query, key), 0 where the term broadcasts. A bool term forbids where it is false, any other
    is added, natural units. Loads stop at ``queries`` and ``keys``; rows padded to a multiple of 16 keys give wide
    loads. PER_QUERY constexpr: false where one row serves all queries.
    """
    for n in tl.static_range(len(args)):
        s = _term(s, group, head, qi, ki, args[n])
    return s


@triton.jit
def _term(s, group, head, qi, ki, term):
    pointer, strides, queries, keys = term[0], term[1], term[2], term[3]
    where = pointer + group.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1] + ki.to(tl.int64) * strides[3]
    inside = ki < keys
    if term[4]:  # read in place: a constexpr that is assigned to a name becomes a tensor
        value = tl.load(where + qi.to(tl.int64) * strides[2], mask=inside & (qi < queries), other=0)
    else:
        value = tl.load(where, mask=inside, other=0)
    if pointer.dtype.element_ty == tl.int1:
        s = tl.where(value, s, float("-inf"))
    else:
        s += value.to(tl.float32) * LOG2E
    return s


@triton.jit
def regions(s, group, head, qi, ki, args, state):
    """Adds a value between tokens of a shifted window that were no neighbours (Swin, arXiv 2103.14030, section 3.2).

    args ((rows, cols), value, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W): windows of an image, disguised (see `numbers`);
    the value in units of log2; the last four constexpr. Only windows of the last row or column hold several regions:
    the roll brought their last SHIFT rows or columns from the other side of the image.
    """
    counts, value, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W = args
    rows, cols = all_plain(counts)
    meets_y = ((group // cols) % rows == rows - 1) & (SHIFT_H > 0)
    meets_x = (group % cols == cols - 1) & (SHIFT_W > 0)
    if meets_y | meets_x:
        first_y = tl.where(meets_y, WINDOW_H - SHIFT_H, WINDOW_H) * WINDOW_W  # first token of the later region
        first_x = tl.where(meets_x, WINDOW_W - SHIFT_W, WINDOW_W)
        # Zero, which the compiler cannot tell: else it holds the coordinates of all columns in registers throughout a
        # loop over groups.
        zero = tl.minimum(group, 0)
        q_region = (qi >= first_y).to(tl.int32) * 2 + ((qi + zero) % WINDOW_W >= first_x).to(tl.int32)
        k_region = (ki >= first_y).to(tl.int32) * 2 + ((ki + zero) % WINDOW_W >= first_x).to(tl.int32)
        s = tl.where(q_region != k_region, s + value, s)
    return s


@triton.jit
def tile(s, group, head, qi, ki, args, state):
    """Adds a tile per head that all groups share.

    args (pointer, COLUMNS, ROWS): (H, ROWS, COLUMNS) float32 in units of log2, padded so that every block lies within.
    """
    pointer, COLUMNS, ROWS = args
    return s + tl.load(pointer + head.to(tl.int64) * (ROWS * COLUMNS) + qi * COLUMNS + ki)


@triton.jit
def tile_and_regions(s, group, head, qi, ki, args, state):
    """`tile`, then `regions`. args: a tuple of theirs."""
    return regions(tile(s, group, head, qi, ki, args[0], state), group, head, qi, ki, args[1], state)
