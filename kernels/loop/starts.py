"""Hook: what a row has seen before its first key.

``START(head, args, BLOCK) -> maximum, total``, each [BLOCK] float32: a logit in units of log2, and the sum of
exponentials relative to it. Both gradients need nothing of it: the log-sum-exp that the forward leaves has it within.
"""

import triton
import triton.language as tl

from ..machine.tiles import LOG2E


@triton.jit
def empty(head, args, BLOCK: tl.constexpr):
    """Nothing. args ()."""
    return tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)


@triton.jit
def sink(head, args, BLOCK: tl.constexpr):
    """One more key, whose value is zero: an attention sink (arXiv 2309.17453, section 3.3). args (logits,), (H,) of any
    float dtype, in natural units.
    """
    logit = tl.load(args[0] + head).to(tl.float32) * LOG2E
    return tl.full([BLOCK], 0.0, tl.float32) + logit, tl.full([BLOCK], 1.0, tl.float32)
