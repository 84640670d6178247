"""The D x D matrix of an image and head: from sums over tokens to weights, and from the gradient of the weights to
those of the sums.

    A = softmax_j(f G_ij)        dS = A (dA - rowsum(A dA))        G = left^T right

f is a scale; with unit columns f_ij = t / (|left_i| |right_j|), t the temperature of the head. BLOCK_D, a power of two,
holds D channels; from HEAD_DIM on rows and columns of sums are zero.
"""

import triton
import triton.language as tl

from ..machine.tiles import LOG2E


@triton.jit
def factor_of(temperature, head, scale):
    """Of the logits of a head: its temperature, or the scale."""
    if temperature is None:
        return scale
    else:
        return tl.load(temperature + head).to(tl.float32)


@triton.jit
def inverse_norms(squares):
    """[BLOCK_D] sums of squares -> 1 / norms, those below 1e-12 taken as 1e-12."""
    return tl.math.rsqrt(tl.maximum(squares, 1e-24))


@triton.jit
def softmax_rows(logits, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """``logits`` in units of log2."""
    d = tl.arange(0, BLOCK_D)
    s = tl.where((d < HEAD_DIM)[None, :], logits, float("-inf"))
    p = tl.math.exp2(s - tl.max(s, 1)[:, None])
    return p * (1.0 / tl.sum(p, 1))[:, None]


@triton.jit
def weights_of(
    total, left_squares, right_squares, factor,
    UNIT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The weights [BLOCK_D, BLOCK_D] of ``total`` = left^T right; ``factor``: the scale, or the temperature."""
    logits = total * (factor * LOG2E)
    if UNIT:
        logits *= inverse_norms(left_squares)[:, None] * inverse_norms(right_squares)[None, :]
    return softmax_rows(logits, HEAD_DIM, BLOCK_D)


@triton.jit
def slopes_of(
    total, left_squares, right_squares, dweights, factor,
    UNIT: tl.constexpr, DTYPE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What gradients of tokens take from the sums over all tokens, ((A, L, R) in DTYPE, (l, r, own_l, own_r), dfactor):

        dcarried = dout A    dleft = (right L^T) l - left own_l    dright = (left R) r - right own_r

    where the vectors [BLOCK_D] multiply columns. The last two are of unit columns alone: such a column keeps its
    length, so that its gradient has no part along it.
    """
    weights = weights_of(total, left_squares, right_squares, factor, UNIT, HEAD_DIM, BLOCK_D)
    ds = weights * (dweights - tl.sum(weights * dweights, 1)[:, None])
    if UNIT:
        left_inverse, right_inverse = inverse_norms(left_squares), inverse_norms(right_squares)
        along = ds * (total * (left_inverse[:, None] * right_inverse[None, :]))
        dfactor = tl.sum(tl.sum(along, 1), 0)
        left_factor, right_factor = factor * left_inverse, factor * right_inverse
        # where the norm was clamped it is constant
        left_own = tl.where(left_squares > 1e-24, left_factor * left_inverse * tl.sum(along, 1), 0.0)
        right_own = tl.where(right_squares > 1e-24, right_factor * right_inverse * tl.sum(along, 0), 0.0)
        if DTYPE.is_fp16():  # such a channel is all zeros then, and 1e12 is beyond the range
            left_inverse = tl.where(left_squares > 1e-24, left_inverse, 0.0)
            right_inverse = tl.where(right_squares > 1e-24, right_inverse, 0.0)
        to_left, to_right = ds * right_inverse[None, :], ds * left_inverse[:, None]
        vectors = left_factor, right_factor, left_own, right_own
    else:
        dfactor = 0.0
        to_left, to_right = ds, ds
        vectors = tl.full([BLOCK_D], factor, tl.float32), tl.full([BLOCK_D], factor, tl.float32)
    matrices = weights.to(DTYPE), to_left.to(DTYPE), to_right.to(DTYPE)
    return matrices, vectors, dfactor
