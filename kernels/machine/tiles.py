"""Jitted helpers that every attention loop shares.

Scores are kept in units of log2: a logit times log2(e), so that the softmax is one exp2. D head dim; BLOCK_D its
power of two.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(
    pointer, offsets, row_mask,
    HEAD_DIM: tl.constexpr, ALIGN: tl.constexpr, FIRST_D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Dims [FIRST_D, FIRST_D + BLOCK_D) of rows that start at ``offsets * ALIGN``: [BLOCK] -> [BLOCK, BLOCK_D], zero
    from HEAD_DIM on and outside ``row_mask``, None for all rows.
    """
    d = FIRST_D + tl.arange(0, BLOCK_D)
    where = pointer + (offsets * ALIGN)[:, None] + d[None, :]
    EVEN_D: tl.constexpr = FIRST_D + BLOCK_D <= HEAD_DIM
    if row_mask is None:
        if EVEN_D:
            rows = tl.load(where)
        else:
            rows = tl.load(where, mask=(d < HEAD_DIM)[None, :], other=0.0)
    elif EVEN_D:
        rows = tl.load(where, mask=row_mask[:, None], other=0.0)
    else:
        rows = tl.load(where, mask=row_mask[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    return rows


@triton.jit
def store_rows(
    pointer, offsets, rows, row_mask,
    HEAD_DIM: tl.constexpr, ALIGN: tl.constexpr, FIRST_D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The inverse of `load_rows`; rounds to the pointer's dtype."""
    d = FIRST_D + tl.arange(0, BLOCK_D)
    where = pointer + (offsets * ALIGN)[:, None] + d[None, :]
    if FIRST_D + BLOCK_D <= HEAD_DIM:
        tl.store(where, rows.to(pointer.dtype.element_ty), mask=row_mask[:, None])
    else:
        tl.store(where, rows.to(pointer.dtype.element_ty), mask=row_mask[:, None] & (d < HEAD_DIM)[None, :])


@triton.jit
def gather_rows(
    pointer, offsets, inside, valid, padding, padding_row,
    HEAD_DIM: tl.constexpr, ALIGN: tl.constexpr, FIRST_D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`load_rows` of tokens, zero where not ``valid``. A token that is not ``inside`` is row ``padding_row`` of
    ``padding`` [rows, D], or zero where that is None.
    """
    if padding is None:
        rows = load_rows(pointer, offsets, valid & inside, HEAD_DIM, ALIGN, FIRST_D, BLOCK_D)
    else:
        d = FIRST_D + tl.arange(0, BLOCK_D)
        outside = (padding + padding_row * HEAD_DIM + d)[None, :]
        # Choosing between addresses, not values, leaves the load a plain copy to shared memory.
        where = tl.where(inside[:, None], pointer + (offsets * ALIGN)[:, None] + d[None, :], outside)
        rows = tl.load(where, mask=valid[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    return rows


@triton.jit
def unit_length(squares):
    """What makes rows unit rows, from their sums of squares [BLOCK]; lengths below 1e-12 are taken as 1e-12."""
    return tl.math.rsqrt(tl.maximum(squares, 1e-24))


@triton.jit
def key_range(block, N, M, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr):
    """Ends of the keys that a block of queries sees without a mask, in whole key blocks, and of all that it sees."""
    end = M
    whole = M // BLOCK_N * BLOCK_N
    if CAUSAL:
        end = tl.minimum(M, tl.maximum(0, (block + 1) * BLOCK_M + (M - N)))
        whole = tl.minimum(whole, tl.maximum(0, block * BLOCK_M + (M - N) + 1) // BLOCK_N * BLOCK_N)
    return whole, end


@triton.jit
def softmax_step(s, factor, maximum, FOLDED: tl.constexpr):
    """One turn of the online softmax: exponentials [BLOCK_M, BLOCK_N] of the tile ``s``, the running maximum [BLOCK_M],
    and what sums relative to the old maximum shrink by [BLOCK_M].

    FOLDED: ``s`` is a bare product, and ``factor`` is folded into the exponent: one multiply-add for each score.
    """
    if FOLDED:
        new_maximum = tl.maximum(maximum, tl.max(s, 1) * factor)
        pivot = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)  # no key so far: exp2(-inf - 0) = 0
        weights = tl.math.exp2(s * factor - pivot[:, None])
    else:
        new_maximum = tl.maximum(maximum, tl.max(s, 1))
        pivot = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.math.exp2(s - pivot[:, None])
    return weights, new_maximum, tl.math.exp2(maximum - pivot)


@triton.jit
def visible(s, qi, ki, N, M, CAUSAL: tl.constexpr, MASKED: tl.constexpr):
    """``s``, -inf where a query does not see a key: a later one where CAUSAL, one from M on where MASKED."""
    if CAUSAL:
        s = tl.where(ki <= qi + (M - N), s, float("-inf"))
    if MASKED:
        s = tl.where(ki < M, s, float("-inf"))
    return s


@triton.jit
def load_scalars(operand, args, group, head, i, count, other, TOKENS: tl.constexpr, PADDED: tl.constexpr):
    """One float32 of each token ``i`` [BLOCK] of a group and head; ``other`` where there is no token. operand (pointer,
    stride of heads, strides of TOKENS) in elements.
    """
    pointer, head_stride, strides = operand
    offsets, inside = TOKENS(group, i, strides, args)
    mask = i < count
    if PADDED:
        mask = mask & inside
    return tl.load(pointer + (offsets + head.to(tl.int64) * head_stride), mask=mask, other=other)


@triton.jit
def store_scalars(operand, args, values, group, head, i, count, TOKENS: tl.constexpr, PADDED: tl.constexpr):
    """The inverse of `load_scalars`."""
    pointer, head_stride, strides = operand
    offsets, inside = TOKENS(group, i, strides, args)
    mask = i < count
    if PADDED:
        mask = mask & inside
    tl.store(pointer + (offsets + head.to(tl.int64) * head_stride), values, mask=mask)


@triton.jit
def load_pivot(lse, args, group, head, i, count, TOKENS: tl.constexpr, PADDED: tl.constexpr):
    """lse [BLOCK] in units of log2. A row without keys has lse -inf and all logits -inf: 0 keeps its probabilities 0
    and not NaN; where there is no token, inf does.
    """
    pivot = load_scalars(lse, args, group, head, i, count, float("inf"), TOKENS, PADDED)
    return tl.where(pivot == float("-inf"), 0.0, pivot * LOG2E)
