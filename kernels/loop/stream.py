"""Streaming (flash) attention, forward: one loop over key blocks with an online softmax (FlashAttention-2, arXiv
2307.08691, algorithm 1).

    out = softmax(scale * q k^T changed by SCORE) v,  lse = log of the softmax denominator

Legend: groups (batch entries or windows), H heads, KV key heads, N query and M key tokens of a group, D head dim. One
program owns BLOCK_M queries of one (group, head); neighbours in the grid share keys. Two hooks make it every dense
family: TOKENS (tokens.py) says where a token lives, SCORE (scores.py) changes a logit. The backward is in
stream_backward.py.
"""

import triton
import triton.language as tl

from ..machine.architecture import arch_of
from ..machine.launch import launch
from ..machine.tiles import LOG2E, keep_mask, key_range, normalize, softmax_step
from .blocks import ragged_config, stream_forward_config
from .constants import constants, hooked
from .heads import add_products, load_head, products, scaled, store_softmax, zeros
from .problem import Problem, Rows, aligned


@triton.jit
def _stream_fwd(
    q, k, v, out, lse, q_strides, k_strides, v_strides, out_strides, lse_strides, q_args, k_args,
    score_args, padding, cosine, seed, heads, N, M, scale, dropout_p,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, SCORE: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    COSINE: tl.constexpr = cosine is not None
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_M)
    block, row = pid % blocks, pid // blocks  # row: (group, head)
    group, head = row // heads, row % heads
    kv_head = head // LOOP.KV_SHARE
    qi = block * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)

    queries = load_head(
        q, q_strides, q_args, padding, head, group, head, qi, N,
        Q_TOKENS, LOOP.ALIGN, not LOOP.EVEN_N, LOOP,
    )  # fmt: skip
    factor = scale * LOG2E
    if COSINE:
        factor = tl.load(cosine + head) * LOG2E
        queries = (normalize(queries[0])[0].to(q.dtype.element_ty),)

    maximum = tl.full([LOOP.BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([LOOP.BLOCK_M], tl.float32)
    acc = zeros(LOOP.BLOCK_M, LOOP)
    whole, end = key_range(block, N, M, LOOP.BLOCK_M, LOOP.BLOCK_N, LOOP.CAUSAL)
    for MASKED in tl.static_range(1 if LOOP.EVEN_M and not LOOP.CAUSAL else 2):
        for start in tl.range(whole if MASKED else 0, end if MASKED else whole, LOOP.BLOCK_N):
            ki = start + tl.arange(0, LOOP.BLOCK_N)
            keys = load_head(
                k, k_strides, k_args, padding, heads + head, group, kv_head, ki, M,
                K_TOKENS, LOOP.ALIGN, MASKED and not LOOP.EVEN_M, LOOP,
            )  # fmt: skip
            if COSINE:
                keys = (normalize(keys[0])[0].to(k.dtype.element_ty),)
            s = products(queries, keys, LOOP.PRECISION)  # [BLOCK_M, BLOCK_N]
            if not LOOP.PLAIN:
                s = SCORE(s * factor, group, head, qi[:, None], ki[None, :], score_args)
            if MASKED and LOOP.CAUSAL:
                s = tl.where(ki[None, :] <= qi[:, None] + (M - N), s, float("-inf"))
            if MASKED and not LOOP.EVEN_M:
                s = tl.where(ki[None, :] < M, s, float("-inf"))
            weights, maximum, total, shrink = softmax_step(s, factor, maximum, total, LOOP.PLAIN)
            acc = scaled(acc, shrink[:, None])
            if seed is not None:
                keep = keep_mask(tl.load(seed), row, qi[:, None], ki[None, :], dropout_p)
                weights = tl.where(keep, weights * (1.0 / (1.0 - dropout_p)), 0.0)
            values = load_head(
                v, v_strides, k_args, padding, 2 * heads + head, group, kv_head, ki, M,
                K_TOKENS, LOOP.ALIGN, MASKED and not LOOP.EVEN_M, LOOP,
            )  # fmt: skip
            acc = add_products(acc, weights.to(v.dtype.element_ty), values, LOOP.PRECISION)

    store_softmax(out, lse, out_strides, lse_strides, q_args, maximum, total, acc, group, head, qi, N, Q_TOKENS, LOOP)


def stream_forward(s: Problem, q: Rows, k: Rows, v: Rows, out: Rows, lse: Rows) -> None:
    """Fill ``out`` and ``lse``, float32, natural logarithm: one for each query token and head."""
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    if s.ragged:
        config = ragged_config(s.head_dim, itemsize, arch, False)
    else:
        config = stream_forward_config(s.head_dim, itemsize, arch, s.n, hooked(s), s.causal, s.seed is not None)
    align, out_align = aligned(q, k, v), aligned(out)
    launch(
        _stream_fwd, (triton.cdiv(s.n, config.block_m) * s.groups * s.heads,),
        q.tensor, k.tensor, v.tensor, out.tensor, lse.tensor,
        q.over(align), k.over(align), v.over(align), out.over(out_align), lse.over(1),
        s.q_args, s.k_args, s.score_args, s.padding, s.cosine, s.seed, s.heads, s.n, s.m, s.scale, s.dropout_p,
        **constants(s, q, config, align, out_align),
    )  # fmt: skip
