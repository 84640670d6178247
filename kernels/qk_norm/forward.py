"""Forward: the loop of stream.py, in which each loaded tile of q and k is normalised."""

import triton
import triton.language as tl

from ..loop import tokens
from ..loop.blocks import stream_forward_config
from ..loop.heads import add_products, load_head, products, scaled, store_softmax, zeros
from ..machine.architecture import arch_of
from ..machine.launch import launch
from ..machine.tiles import LOG2E, key_range, softmax_step, visible
from .norm import load_channels, normalised


@triton.jit
def _qk_norm_fwd(
    q, k, v, out, lse, q_weight, q_bias, k_weight, heads, N, scale, eps,
    CENTRED: tl.constexpr, TOKENS: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_M)
    block, row = pid % blocks, pid // blocks
    group, head = row // heads, row % heads
    qi = block * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)
    rows = load_head(q, (), None, 0, group, head, qi, N, TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_N, False)
    weight, bias = load_channels(q_weight, 1.0, LOOP.QK), load_channels(q_bias, 0.0, LOOP.QK)
    queries = normalised(rows, weight, bias, eps, CENTRED, LOOP.QK)
    weight = load_channels(k_weight, 1.0, LOOP.QK)
    factor = scale * LOG2E
    maximum = tl.full([LOOP.BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([LOOP.BLOCK_M], tl.float32)
    acc = zeros(LOOP.BLOCK_M, LOOP.V)
    whole, end = key_range(block, N, N, LOOP.BLOCK_M, LOOP.BLOCK_N, False)
    for MASKED in tl.static_range(1 if LOOP.EVEN_M else 2):
        for start in tl.range(whole if MASKED else 0, end if MASKED else whole, LOOP.BLOCK_N):
            ki = start + tl.arange(0, LOOP.BLOCK_N)
            keys = load_head(k, (), None, 0, group, head, ki, N, TOKENS, LOOP.QK, LOOP.ALIGN, MASKED, False)
            keys = normalised(keys, weight, None, eps, CENTRED, LOOP.QK)
            s = products(queries, keys, LOOP.PRECISION)
            s = visible(s, qi[:, None], ki[None, :], N, N, False, MASKED)  # [BLOCK_M, BLOCK_N]
            weights, maximum, shrink = softmax_step(s, factor, maximum, True)
            total = total * shrink + tl.sum(weights, 1)
            acc = scaled(acc, shrink[:, None])
            values = load_head(v, (), None, 0, group, head, ki, N, TOKENS, LOOP.V, LOOP.ALIGN, MASKED, False)
            acc = add_products(acc, weights.to(v[0].dtype.element_ty), values, LOOP.PRECISION)
    store_softmax(out, lse, (), maximum, total, acc, group, head, qi, N, TOKENS, LOOP)


def run_forward(problem, norms, q, k, v, out, lse):
    """Fills ``out`` and ``lse``; ``norms``: see `qk_norm_attention.Norms`."""
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    config = stream_forward_config(problem.head_dim, itemsize, arch, problem.tokens, True, False, False)
    constants, places = problem.started(config, (q, k, v), (out,))
    launch(
        _qk_norm_fwd, (problem.programs(config.block_m),),
        *places, lse.over(1), *norms.parameters, problem.heads, problem.tokens, problem.scale, norms.eps,
        CENTRED=norms.centred, TOKENS=tokens.dense, **constants,
    )  # fmt: skip
