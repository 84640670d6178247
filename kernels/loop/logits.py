"""Hook: what becomes of the product of a query and a key before biases and masks are added.

``LOGIT(s, args) -> s`` with ``s`` the scaled products of a tile, float32, in units of log2, and ``LOGIT_BACKWARD(slope,
s, args) -> slope``, their gradient from that of the logits. Both are by the element: a tile may be transposed.
"""

import triton
import triton.language as tl


@triton.jit
def plain(s, args):
    """No change. args ()."""
    return s


@triton.jit
def plain_backward(slope, s, args):
    return slope


@triton.jit
def _tanh(x):
    """Within 3 units of the last place: x P(x^2) / Q(x^2), where |x| < 7.9; beyond, it is 1 in float32. NaN stays."""
    x = tl.clamp(x, -7.90531110763549805, 7.90531110763549805, propagate_nan=tl.PropagateNan.ALL)
    y = x * x
    p = y * -2.76076847742355e-16 + 2.00018790482477e-13
    p = y * p - 8.60467152213735e-11
    p = y * p + 5.12229709037114e-08
    p = y * p + 1.48572235717979e-05
    p = y * p + 6.37261928875436e-04
    p = y * p + 4.89352455891786e-03
    q = y * 1.19825839466702e-06 + 1.18534705686654e-04
    q = y * q + 2.26843463243900e-03
    q = y * q + 4.89352518554385e-03
    return x * p / q


@triton.jit
def capped(s, args):
    """Soft-capping, cap tanh(s / cap) (Gemma 2, arXiv 2408.00118, section 2). args (cap,), in units of log2."""
    return args[0] * _tanh(s * (1.0 / args[0]))


@triton.jit
def capped_backward(slope, s, args):
    bend = _tanh(s * (1.0 / args[0]))
    return slope * (1.0 - bend * bend)
