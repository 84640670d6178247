"""Hook 2: how a logit changes.

``SCORE(s, group, head, qi, ki, args) -> s`` with ``s`` [BLOCK_M, BLOCK_N] float32 in units of log2, ``qi`` [BLOCK_M] and ``ki`` [BLOCK_N]
int32 token indices within the group. A hook adds to a logit or forbids it (-inf), never rescales it: then the backward recomputes the
probabilities with the same hook and the gradient of the logit passes through unchanged. Keys past the group are masked by the caller.
"""

import triton
import triton.language as tl

from .tiles import LOG2E  # noqa: F401  (a jitted function reads it)


@triton.jit
def plain(s, group, head, qi, ki, args):
    """No change. args ()."""
    return s
