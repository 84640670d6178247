"""Hook: what a weight counts for once it is exponentiated.

``WEIGH(e, group, head, qi, ki, args) -> counted, used`` with ``e`` the exponentials of the logits of a tile: what
enters the denominator of the softmax, and what multiplies v, both ``e`` times a factor. The backward hands it
probabilities, e over the denominator. ``qi``, ``ki`` as for SCORE, see scores.py.
"""

import triton
import triton.language as tl


@triton.jit
def plain(e, group, head, qi, ki, args):
    """No change. args ()."""
    return e, e


@triton.jit
def dropout(e, group, head, qi, ki, args):
    """Drops what multiplies v. args (seed, probability, heads), seed int64, one element. One Philox counter per (row,
    query, key), so that every tiling draws the same numbers.
    """
    seed, p, heads = args
    zero = qi * 0 + ki * 0  # the shape of the tile
    bits, _, _, _ = tl.philox(tl.load(seed), zero + ki, zero + qi, zero + (group * heads + head), zero)
    return e, tl.where(tl.uint_to_uniform_float(bits) >= p, e * (1.0 / (1.0 - p)), 0.0)


@triton.jit
def logit_slope(counted, used, slope, deltas, WEIGHED: tl.constexpr):
    """Gradient of the logits from ``slope``, that of the weights of v; ``deltas`` broadcasts: that of each row's
    output times the output."""
    if WEIGHED:
        return used * slope - counted * deltas
    return counted * (slope - deltas)
