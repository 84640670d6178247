"""Activations of an MLP as x * gate(x), with their derivative. All in float32.

    gelu        gate = Phi(x), the normal distribution function (arXiv 1606.08415)
    gelu_tanh   gate = (1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    quick_gelu  gate = sigmoid(1.702 x)

Half precision takes Phi from Abramowitz and Stegun 7.1.26, |error| < 0.75e-7: about half the instructions of erf,
one exponential which the
derivative shares, and no cancellation in the lower tail. float32 takes erf (EXACT).
"""

import triton
import triton.language as tl

NEG_HALF_LOG2E = tl.constexpr(-0.7213475204444817)
SQRT_HALF = tl.constexpr(0.7071067811865476)
DENSITY_AT_ZERO = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
NEG_TANH_RATE = tl.constexpr(-2.302208198144325)  # -2 sqrt(2 / pi) log2(e)
CUBIC = tl.constexpr(0.044715)
NEG_QUICK_RATE = tl.constexpr(-2.4554669595930157)  # -1.702 log2(e)
NEG_LN2 = tl.constexpr(-0.6931471805599453)


@triton.jit
def _normal_distribution(x, bell, EXACT: tl.constexpr):
    """Phi(x); ``bell`` is exp(-x^2 / 2)."""
    if EXACT:
        return 0.5 + 0.5 * tl.math.erf(x * SQRT_HALF)
    t = 1.0 / (1.0 + 0.23164188936 * tl.abs(x))  # 0.3275911 * sqrt(1/2)
    poly = 0.5 * 1.061405429 * t - 0.5 * 1.453152027
    poly = poly * t + 0.5 * 1.421413741
    poly = poly * t - 0.5 * 0.284496736
    poly = poly * t + 0.5 * 0.254829592
    tail = poly * t * bell
    return tl.where(x < 0.0, tail, 1.0 - tail)


@triton.jit
def activate(x, ACT: tl.constexpr, EXACT: tl.constexpr):
    """The activation of x."""
    if ACT == "gelu":
        return x * _normal_distribution(x, tl.math.exp2(x * x * NEG_HALF_LOG2E), EXACT)
    if ACT == "gelu_tanh":
        return x / (1.0 + tl.math.exp2(x * (x * x * CUBIC + 1.0) * NEG_TANH_RATE))
    return x / (1.0 + tl.math.exp2(x * NEG_QUICK_RATE))


@triton.jit
def activate_with_slope(x, ACT: tl.constexpr, EXACT: tl.constexpr):
    """The activation of x, and its derivative there."""
    if ACT == "gelu":
        bell = tl.math.exp2(x * x * NEG_HALF_LOG2E)
        gate = _normal_distribution(x, bell, EXACT)
        return x * gate, gate + x * bell * DENSITY_AT_ZERO
    if ACT == "gelu_tanh":
        exponent = x * (x * x * CUBIC + 1.0) * NEG_TANH_RATE
        rate = (x * x * (3.0 * CUBIC) + 1.0) * (NEG_TANH_RATE * NEG_LN2)
    else:
        exponent = x * NEG_QUICK_RATE
        rate = NEG_QUICK_RATE * NEG_LN2
    gate = 1.0 / (1.0 + tl.math.exp2(exponent))
    return x * gate, gate + x * gate * (1.0 - gate) * rate
