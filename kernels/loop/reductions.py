"""Hook: what of a score is summed over what shares a map of queries and keys.

``REDUCE(counted, used, slope, deltas, WEIGHED) -> tile``, [BLOCK_M, BLOCK_N] float32; see `weighing`: probabilities as
WEIGH leaves them, the gradient of those that multiply v, and ``deltas`` [BLOCK_M, 1]; the last two 0 where a launch is
given no gradient.
"""

import triton
import triton.language as tl

from .weighing import logit_slope


@triton.jit
def slopes(counted, used, slope, deltas, WEIGHED: tl.constexpr):
    """dS: the gradient of a bias."""
    return logit_slope(counted, used, slope, deltas, WEIGHED)


@triton.jit
def weights(counted, used, slope, deltas, WEIGHED: tl.constexpr):
    """The probabilities: a map of attention."""
    return used


@triton.jit
def relevance(counted, used, slope, deltas, WEIGHED: tl.constexpr):
    """max(0, P dP): what a class owes to an edge (Chefer et al., arXiv 2103.15679, equation 5)."""
    return tl.maximum(used * slope, 0.0)
