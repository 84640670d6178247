"""Forward: the loop of stream.py with the maximum of all keys, kept or not, and the epilogue of the smoothing."""

import triton
import triton.language as tl

from ..loop import tokens
from ..loop.blocks import stream_forward_config
from ..loop.heads import add_products, load_head, products, scaled, store_head, zeros
from ..machine.architecture import arch_of
from ..machine.launch import launch
from ..machine.tiles import LN2, LOG2E, key_range, softmax_step, store_scalars, visible
from .rows import kept, load_mean, load_policy


@triton.jit
def _policy_fwd(
    q, k, v, out, lse, share, first, means, policy, heads, N, scale, eps, TOKENS: tl.constexpr, LOOP: tl.constexpr
):  # fmt: skip
    """Of each query lse = log(sum E + eps) + max, natural; share = eps / (sum E + eps); first: the key of the maximum.
    Three numbers of a query lie alike."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_M)
    block, row = pid % blocks, pid // blocks
    group, head = row // heads, row % heads
    qi = block * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)
    queries = load_head(q, (), None, 0, group, head, qi, N, TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_N, False)
    factor = scale * LOG2E
    maximum = tl.full([LOOP.BLOCK_M], float("-inf"), tl.float32)
    pivot = maximum  # of what counts: far below the maximum its weights would round away
    total = tl.zeros([LOOP.BLOCK_M], tl.float32)
    largest = tl.zeros([LOOP.BLOCK_M], tl.int32)
    acc = zeros(LOOP.BLOCK_M, LOOP.V)
    whole, end = key_range(block, N, N, LOOP.BLOCK_M, LOOP.BLOCK_N, False)
    for MASKED in tl.static_range(1 if LOOP.EVEN_M else 2):
        for start in tl.range(whole if MASKED else 0, end if MASKED else whole, LOOP.BLOCK_N):
            ki = start + tl.arange(0, LOOP.BLOCK_N)
            keys = load_head(k, (), None, 0, group, head, ki, N, TOKENS, LOOP.QK, LOOP.ALIGN, MASKED, False)
            s = products(queries, keys, LOOP.PRECISION) * factor  # [BLOCK_M, BLOCK_N]
            s = visible(s, qi[:, None], ki[None, :], N, N, False, MASKED)
            top = tl.max(s, 1)
            at = tl.min(tl.where(s == top[:, None], ki[None, :], N), 1)
            largest = tl.where(top > maximum, at, largest)
            maximum = tl.maximum(maximum, top)
            counts = load_policy(policy, group, ki[None, :], N)
            s = tl.where(qi[:, None] == ki[None, :], s, s + tl.where(counts == 0.0, float("-inf"), 0.0))  # NaN stays
            weights, pivot, shrink = softmax_step(s, factor, pivot, False)
            weights = kept(weights, counts, qi[:, None], ki[None, :])
            total = total * shrink + tl.sum(weights, 1)
            acc = scaled(acc, shrink[:, None])
            values = load_head(v, (), None, 0, group, head, ki, N, TOKENS, LOOP.V, LOOP.ALIGN, MASKED, False)
            acc = add_products(acc, weights.to(v[0].dtype.element_ty), values, LOOP.PRECISION)

    below = tl.math.exp2(pivot - maximum)
    total = total * below + eps
    total = tl.where(total == 0.0, 1.0, total)  # nothing is left, and no eps
    mean = load_mean(means, group, head, heads, LOOP.V)
    rows = ()
    for n in tl.static_range(len(acc)):
        rows += ((acc[n] * below[:, None] + eps * mean[n]) * (1.0 / total)[:, None],)
    store_head(out, (), rows, group, head, qi, N, TOKENS, LOOP.V, LOOP.OUT_ALIGN, False)
    store_scalars(lse, (), maximum * LN2 + tl.log(total), group, head, qi, N, TOKENS, False)
    store_scalars((share, lse[1], lse[2]), (), eps / total, group, head, qi, N, TOKENS, False)
    store_scalars((first, lse[1], lse[2]), (), largest, group, head, qi, N, TOKENS, False)


def run_forward(problem, policy, eps, q, k, v, out, lse, share, first, means):
    """Fills ``out``, ``lse``, ``share`` and ``first``; ``problem`` is a `Packed`, policy (B, N) contiguous, means (B,
    H, D) float32."""
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    config = stream_forward_config(problem.head_dim, itemsize, arch, problem.tokens, True, False, True)  # as dropout
    constants, places = problem.started(config, (q, k, v), (out,))
    launch(
        _policy_fwd, (problem.programs(config.block_m),),
        *places, lse.over(1), share, first, means, policy,
        problem.heads, problem.tokens, problem.scale, eps, TOKENS=tokens.dense, **constants,
    )  # fmt: skip
