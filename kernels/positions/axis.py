"""The softmax of positions along one axis: A_ij = softmax_j(linear d + square d^2), d = j - i; its derivatives by these
two weights are A (d - mean d) and A (d^2 - mean d^2)."""

import triton
import triton.language as tl

from ..machine.tiles import LOG2E


@triton.jit
def axis_of(i, extent, positions, head, WHICH: tl.constexpr, ALL: tl.constexpr):
    """The softmax of positions ``i`` [n] along an axis: (factors of d and d^2, in units of log2), and of each i the
    pivot, 1 / sum, mean d, mean d^2. WHICH: 0 for x, 1 for y; ALL, a power of two, holds the axis."""
    linear = tl.load(positions + head * 3 + WHICH).to(tl.float32) * LOG2E
    square = tl.load(positions + head * 3 + 2).to(tl.float32) * LOG2E
    j = tl.arange(0, ALL)
    d = j[None, :] - i[:, None]
    s = tl.where((j < extent)[None, :], d * (linear + square * d), float("-inf"))
    pivot = tl.max(s, 1)
    e = tl.math.exp2(s - pivot[:, None])
    inverse = 1.0 / tl.sum(e, 1)
    return linear, square, pivot, inverse, tl.sum(e * d, 1) * inverse, tl.sum(e * d * d, 1) * inverse


@triton.jit
def weights_of(d, inside, axis):
    """A [m, n], columns i, zero where not ``inside``; ``d``: j - i."""
    linear, square, pivot, inverse, _, _ = axis
    s = tl.where(inside, d * (linear + square * d) - pivot[None, :], float("-inf"))
    return tl.math.exp2(s) * inverse[None, :]
