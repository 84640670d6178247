"""Sums over the hidden features of w_f tanh(a_f + b_f), for tiles of tokens i of a and j of b, and of its gradient.

Float32 (EXACT): tanh to its last bits. Half precision: 1 - 2 / (1 + e^2a e^2b), an error of 2^-23 or so: one special
function a term, where the exponentials are taken of each token; the tile where one is beyond FAR takes them of sums.
a is (rows, F, A), b (rows, F, B), tokens side by side.
"""

import triton
import triton.language as tl

from ..machine.tiles import LOG2E

TWICE = tl.constexpr(2.8853900817779268)  # 2 log2(e)
STEP = tl.constexpr(16)
FAR = tl.constexpr(20.0)  # e^(2 * 20), squared, is in the range of float32


@triton.jit
def _feature(x, row, f, i, count, features):
    """Feature ``f`` of tokens ``i`` [BLOCK] of x (rows, F, count), zero from ``count`` on."""
    at = (row.to(tl.int64) * features + f) * count + i
    return tl.load(x + at, mask=i < count, other=0.0).to(tl.float32)


@triton.jit
def are_near(x, row, i, count, features, EXACT: tl.constexpr):
    """Whether no feature of these tokens is beyond FAR; nobody asks where EXACT."""
    if EXACT:
        near = False
    else:
        farthest = tl.zeros_like(i).to(tl.float32)
        for f in tl.range(0, features):
            farthest = tl.maximum(farthest, tl.abs(_feature(x, row, f, i, count, features)))
        near = tl.max(farthest, 0) <= FAR
    return near


@triton.jit
def _tanh_of_sums(a, b, NEAR: tl.constexpr, EXACT: tl.constexpr):
    """tanh(a + b) [A, B] of a feature of some tokens [A] and of others [B]. NEAR: none is beyond FAR."""
    if NEAR:
        root = tl.math.rsqrt(1.0 + tl.math.exp2(a * TWICE)[:, None] * tl.math.exp2(b * TWICE)[None, :])
        found = 1.0 - 2.0 * (root * root)
    else:
        x = a[:, None] + b[None, :]
        size = tl.abs(x)
        small = tl.math.exp2(size * -TWICE)
        found = (1.0 - small) / (1.0 + small)
        if EXACT:  # where 1 - small loses bits: minimax, Cephes' tanhf
            z = x * x
            poly = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
            found = tl.where(size < 0.625, size + size * ((poly - 3.33332819422e-1) * z), found)
        found = tl.where(x < 0.0, -found, found)
    return found


@triton.jit
def _sum_scores(a, b, weight, row, head, i, j, A, B, features, NEAR: tl.constexpr, EXACT: tl.constexpr):
    nothing = tl.zeros_like(i).to(tl.float32)[:, None] + tl.zeros_like(j).to(tl.float32)[None, :]
    s = nothing
    for first in tl.range(0, features, STEP):  # a sum of sums: of a thousand features many bits are left
        part = nothing
        for f in tl.range(first, tl.minimum(first + STEP, features)):
            w = tl.load(weight + head.to(tl.int64) * features + f).to(tl.float32)
            own, others = _feature(a, row, f, i, A, features), _feature(b, row, f, j, B, features)
            part += (w * LOG2E) * _tanh_of_sums(own, others, NEAR, EXACT)
        s += part
    return s


@triton.jit
def tile_scores(a, b, weight, row, head, i, j, A, B, features, near, EXACT: tl.constexpr):
    """Scores in units of log2 of tokens ``i`` of a and ``j`` of b. near: none of them is beyond FAR."""
    if EXACT:
        s = _sum_scores(a, b, weight, row, head, i, j, A, B, features, False, True)
    elif near:
        s = _sum_scores(a, b, weight, row, head, i, j, A, B, features, True, False)
    else:
        s = _sum_scores(a, b, weight, row, head, i, j, A, B, features, False, False)
    return s


@triton.jit
def _sum_slopes(
    ds, a, b, row, i, j, A, B, features, first, FEATURES: tl.constexpr, NEAR: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    column = first + tl.arange(0, FEATURES)[None, :]
    slopes = tl.zeros_like(i).to(tl.float32)[:, None] + tl.zeros_like(column).to(tl.float32)
    values = slopes
    for f in tl.range(first, tl.minimum(first + FEATURES, features)):
        t = _tanh_of_sums(_feature(a, row, f, i, A, features), _feature(b, row, f, j, B, features), NEAR, EXACT)
        slopes += tl.where(column == f, tl.sum(ds - ds * t * t, 1)[:, None], 0.0)
        values += tl.where(column == f, tl.sum(ds * t, 1)[:, None], 0.0)
    return slopes, values


@triton.jit
def tile_slopes(ds, a, b, row, i, j, A, B, features, first, near, FEATURES: tl.constexpr, EXACT: tl.constexpr):
    """Of a tile ``ds`` (i, j) the sums over j of ds (1 - tanh^2) and of ds tanh, [.., FEATURES] each: those of features
    from ``first`` on."""
    if EXACT:
        slopes, values = _sum_slopes(ds, a, b, row, i, j, A, B, features, first, FEATURES, False, True)
    elif near:
        slopes, values = _sum_slopes(ds, a, b, row, i, j, A, B, features, first, FEATURES, True, False)
    else:
        slopes, values = _sum_slopes(ds, a, b, row, i, j, A, B, features, first, FEATURES, False, False)
    return slopes, values


@triton.jit
def tokens_of(count, heads, BLOCK: tl.constexpr):
    """(row, sequence, head, tokens [BLOCK]) of a program: it owns a block of ``count`` tokens of a row, which is a
    sequence and head."""
    blocks = tl.cdiv(count, BLOCK)
    row = tl.program_id(0) // blocks
    return row, row // heads, row % heads, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def seen_keys(mask, sequence, j, M):
    """Which of the keys ``j`` there are."""
    allowed = j < M
    if mask is not None:
        allowed = tl.load(mask + sequence.to(tl.int64) * M + j, mask=allowed, other=0) != 0
    return allowed


@triton.jit
def place_of(strides, sequence, head, i):
    """Places of rows ``i`` in units of ALIGN; strides (head, (sequence, row))."""
    return sequence.to(tl.int64) * strides[1][0] + head.to(tl.int64) * strides[0] + i.to(tl.int64) * strides[1][1]
