"""Jitted helpers that every attention loop shares.

Scores are kept in units of log2: a logit times log2(e), so that the softmax is one exp2. D head dim; BLOCK_D its power of two.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(pointer, offsets, row_mask, head_dim, ALIGN: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr):
    """Rows of D contiguous elements that start at ``offsets * ALIGN``: [BLOCK] -> [BLOCK, BLOCK_D], zero outside."""
    d = tl.arange(0, BLOCK_D)
    where = pointer + (offsets * ALIGN)[:, None] + d[None, :]
    if EVEN_D:
        return tl.load(where, mask=row_mask[:, None], other=0.0)
    return tl.load(where, mask=row_mask[:, None] & (d < head_dim)[None, :], other=0.0)


@triton.jit
def store_rows(pointer, offsets, rows, row_mask, head_dim, ALIGN: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr):
    """The inverse of `load_rows`; rounds to the pointer's dtype."""
    d = tl.arange(0, BLOCK_D)
    where = pointer + (offsets * ALIGN)[:, None] + d[None, :]
    if EVEN_D:
        tl.store(where, rows.to(pointer.dtype.element_ty), mask=row_mask[:, None])
    else:
        tl.store(where, rows.to(pointer.dtype.element_ty), mask=row_mask[:, None] & (d < head_dim)[None, :])
