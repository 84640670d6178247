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
def normalize(rows):
    """Unit rows in float32 [BLOCK, BLOCK_D] and the inverse lengths [BLOCK], lengths below 1e-12 taken as 1e-12."""
    wide = rows.to(tl.float32)
    inverse = tl.math.rsqrt(tl.maximum(tl.sum(wide * wide, 1), 1e-24))
    return wide * inverse[:, None], inverse


@triton.jit
def normalize_backward(grad, unit, inverse):
    """Gradient of the rows from that of the unit rows; ``inverse`` is 1e12 where the length was clamped, and
    constant there.
    """
    along = tl.where(inverse < 1e12, tl.sum(grad * unit, 1), 0.0)
    return (grad - unit * along[:, None]) * inverse[:, None]


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
def softmax_step(s, factor, maximum, total, FOLDED: tl.constexpr):
    """One turn of the online softmax: weights [BLOCK_M, BLOCK_N] of the tile ``s``, the running maximum and total
    [BLOCK_M], and what a sum of values relative to the old maximum shrinks by [BLOCK_M].

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
    shrink = tl.math.exp2(maximum - pivot)
    total = total * shrink + tl.sum(weights, 1)
    return weights, new_maximum, total, shrink


@triton.jit
def keep_mask(seed, row, qi, ki, dropout_p):
    """True with probability 1 - dropout_p. One Philox counter per (row, query, key), so that every tiling draws
    the same numbers.
    """
    zero = qi * 0 + ki * 0  # the shape of the tile
    bits, _, _, _ = tl.philox(seed, zero + ki, zero + qi, zero + row, zero)
    return tl.uint_to_uniform_float(bits) >= dropout_p


@triton.jit
def probabilities(
    product, factor, pivot, group, head, qi, ki, score_args, N, M,
    SCORE: tl.constexpr, PLAIN: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """exp2(logit - pivot) for a tile of q k^T; ``qi``, ``ki`` and ``pivot`` broadcast against it. MASKED: forbid
    keys from M on.
    """
    s = product * factor
    if not PLAIN:
        s = SCORE(s, group, head, qi, ki, score_args)
    if CAUSAL:
        s = tl.where(ki <= qi + (M - N), s, float("-inf"))
    if MASKED:
        s = tl.where(ki < M, s, float("-inf"))
    return tl.math.exp2(s - pivot)


@triton.jit
def load_scalars(pointer, strides, args, group, head, i, count, other, TOKENS: tl.constexpr, PADDED: tl.constexpr):
    """One float32 of each token ``i`` [BLOCK] of a group and head; ``other`` where there is no token. strides (head,
    strides of TOKENS) in elements.
    """
    offsets, inside = TOKENS(group, i, strides[1], args)
    mask = i < count
    if PADDED:
        mask = mask & inside
    return tl.load(pointer + (offsets + head.to(tl.int64) * strides[0]), mask=mask, other=other)


@triton.jit
def store_scalars(pointer, strides, args, values, group, head, i, count, TOKENS: tl.constexpr, PADDED: tl.constexpr):
    """The inverse of `load_scalars`."""
    offsets, inside = TOKENS(group, i, strides[1], args)
    mask = i < count
    if PADDED:
        mask = mask & inside
    tl.store(pointer + (offsets + head.to(tl.int64) * strides[0]), values, mask=mask)


@triton.jit
def load_pivot(lse, strides, args, group, head, i, count, TOKENS: tl.constexpr, PADDED: tl.constexpr):
    """lse [BLOCK] in units of log2. A row without keys has lse -inf and all logits -inf: 0 keeps its probabilities 0
    and not NaN; where there is no token, inf does.
    """
    pivot = load_scalars(lse, strides, args, group, head, i, count, float("inf"), TOKENS, PADDED)
    return tl.where(pivot == float("-inf"), 0.0, pivot * LOG2E)
