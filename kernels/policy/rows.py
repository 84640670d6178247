"""What the kernels of policy attention read of a group besides its rows: policies of keys, means of values."""

import triton
import triton.language as tl


@triton.jit
def load_policy(policy, group, ki, N):
    """Of keys ``ki``, in their shape, zero past the last."""
    return tl.load(policy + group.to(tl.int64) * N + ki, mask=ki < N, other=0.0)


@triton.jit
def kept(e, policy, qi, ki):
    """``e``, float32, times what each key counts for, 1 where it is the query's own."""
    return tl.where(qi == ki, e, e * policy)


@triton.jit
def load_mean(means, group, head, heads, HEAD: tl.constexpr):
    """The mean of the values of a group and head, as heads.py has rows: tiles [1, BLOCK_D] and [1, TAIL_D]; means (B,
    H, D) float32."""
    start = means + (group.to(tl.int64) * heads + head) * HEAD.DIM
    d = tl.arange(0, HEAD.BLOCK_D)[None, :]
    parts = (tl.load(start + d, mask=d < HEAD.DIM, other=0.0),)
    if HEAD.TAIL_D > 0:
        tail = HEAD.BLOCK_D + tl.arange(0, HEAD.TAIL_D)[None, :]
        parts += (tl.load(start + tail, mask=tail < HEAD.DIM, other=0.0),)
    return parts
