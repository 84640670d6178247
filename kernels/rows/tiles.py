"""Whole rows of C channels as tiles: what kernels over rows load and store, in float32.

T rows (tokens), C channels; BLOCK_C the power of two that holds a row. EVEN_C: it is the row.
"""

import triton
import triton.language as tl


@triton.jit
def load_tile(
    pointer,
    rows,
    stride,
    row_mask,
    channels,
    BLOCK_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    LAST_READ: tl.constexpr = False,
):
    """Rows [BLOCK_M] of a matrix with contiguous channels -> [BLOCK_M, BLOCK_C] float32, zero outside."""
    c = tl.arange(0, BLOCK_C)
    where = pointer + rows.to(tl.int64)[:, None] * stride + c[None, :]
    mask = row_mask[:, None]
    if not EVEN_C:
        mask = mask & (c < channels)[None, :]
    if LAST_READ:
        return tl.load(where, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
    return tl.load(where, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_tile(pointer, rows, stride, tile, row_mask, channels, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr):
    """The inverse of `load_tile`; rounds to the pointer's dtype."""
    c = tl.arange(0, BLOCK_C)
    where = pointer + rows.to(tl.int64)[:, None] * stride + c[None, :]
    mask = row_mask[:, None]
    if not EVEN_C:
        mask = mask & (c < channels)[None, :]
    tl.store(where, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_channels(pointer, default: tl.constexpr, channels, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr):
    """[BLOCK_C] float32, one per channel; ``default`` throughout where there is no pointer."""
    if pointer is None:
        return tl.full([BLOCK_C], default, tl.float32)
    else:
        c = tl.arange(0, BLOCK_C)
        return tl.load(pointer + c, mask=None if EVEN_C else c < channels, other=None if EVEN_C else 0.0).to(tl.float32)


def as_rows(x):
    """(..., C) -> (T, C) with contiguous channels; a copy only where no such view exists."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
