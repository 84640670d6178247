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
from ..machine.blocks import Config, dot_precision, head_tile
from ..machine.launch import launch
from ..machine.tiles import LOG2E, keep_mask, key_range, normalize, softmax_step
from . import scores
from .blocks import ragged_config, stream_forward_config
from .heads import add_products, head_parts, load_head, products, scaled, store_softmax, zeros
from .problem import Problem, Rows, aligned


@triton.jit
def _stream_fwd(
    q, k, v, out, lse, q_strides, k_strides, v_strides, out_strides, lse_strides, q_args, k_args,
    score_args, padding, cosine, seed, heads, N, M, scale, dropout_p,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, SCORE: tl.constexpr, PLAIN: tl.constexpr, CAUSAL: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TAIL_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    KV_SHARE: tl.constexpr, ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr, EVEN_N: tl.constexpr, EVEN_M: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    COSINE: tl.constexpr = cosine is not None
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, BLOCK_M)
    block, row = pid % blocks, pid // blocks  # row: (group, head)
    group, head = row // heads, row % heads
    kv_head = head // KV_SHARE
    qi = block * BLOCK_M + tl.arange(0, BLOCK_M)

    queries = load_head(
        q, q_strides, q_args, padding, head, group, head, qi, N,
        Q_TOKENS, HEAD_DIM, BLOCK_D, TAIL_D, ALIGN, not EVEN_N, PADDED,
    )  # fmt: skip
    factor = scale * LOG2E
    if COSINE:
        factor = tl.load(cosine + head) * LOG2E
        queries = (normalize(queries[0])[0].to(q.dtype.element_ty),)

    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = zeros(BLOCK_M, BLOCK_D, TAIL_D)
    whole, end = key_range(block, N, M, BLOCK_M, BLOCK_N, CAUSAL)
    for MASKED in tl.static_range(1 if EVEN_M and not CAUSAL else 2):
        for start in tl.range(whole if MASKED else 0, end if MASKED else whole, BLOCK_N):
            ki = start + tl.arange(0, BLOCK_N)
            keys = load_head(
                k, k_strides, k_args, padding, heads + head, group, kv_head, ki, M,
                K_TOKENS, HEAD_DIM, BLOCK_D, TAIL_D, ALIGN, MASKED and not EVEN_M, PADDED,
            )  # fmt: skip
            if COSINE:
                keys = (normalize(keys[0])[0].to(k.dtype.element_ty),)
            s = products(queries, keys, PRECISION)  # [BLOCK_M, BLOCK_N]
            if not PLAIN:
                s = SCORE(s * factor, group, head, qi[:, None], ki[None, :], score_args)
            if MASKED and CAUSAL:
                s = tl.where(ki[None, :] <= qi[:, None] + (M - N), s, float("-inf"))
            if MASKED and not EVEN_M:
                s = tl.where(ki[None, :] < M, s, float("-inf"))
            weights, maximum, total, shrink = softmax_step(s, factor, maximum, total, PLAIN)
            acc = scaled(acc, shrink[:, None])
            if seed is not None:
                keep = keep_mask(tl.load(seed), row, qi[:, None], ki[None, :], dropout_p)
                weights = tl.where(keep, weights * (1.0 / (1.0 - dropout_p)), 0.0)
            values = load_head(
                v, v_strides, k_args, padding, 2 * heads + head, group, kv_head, ki, M,
                K_TOKENS, HEAD_DIM, BLOCK_D, TAIL_D, ALIGN, MASKED and not EVEN_M, PADDED,
            )  # fmt: skip
            acc = add_products(acc, weights.to(v.dtype.element_ty), values, PRECISION)

    store_softmax(
        out, lse, out_strides, lse_strides, q_args, maximum, total, acc, group, head, qi, N,
        Q_TOKENS, HEAD_DIM, BLOCK_D, TAIL_D, OUT_ALIGN, PADDED,
    )  # fmt: skip


def hooked(s: Problem) -> bool:
    """Whether a score hook, unit rows or dropout take registers of their own."""
    return s.score is not scores.plain or s.cosine is not None or s.seed is not None


def constants(s: Problem, q: Rows, config: Config) -> dict:
    """The constexpr arguments that all kernels of the loop have in common."""
    block_d, tail_d = head_tile(s.head_dim), 0
    if s.cosine is None and not s.ragged:  # lengths are those of whole rows; ragged rows have an address each
        block_d, tail_d = head_parts(s.head_dim, arch_of(q.tensor), hooked(s))
    return dict(
        Q_TOKENS=s.q_tokens,
        K_TOKENS=s.k_tokens,
        SCORE=s.score,
        PLAIN=s.score is scores.plain,
        CAUSAL=s.causal,
        HEAD_DIM=s.head_dim,
        BLOCK_D=block_d,
        TAIL_D=tail_d,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        EVEN_N=s.n % config.block_m == 0,
        EVEN_M=s.m % config.block_n == 0,
        PADDED=s.ragged or s.padding is not None,
        PRECISION=dot_precision(q.tensor.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


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
        KV_SHARE=s.heads // max(s.kv_heads, 1), ALIGN=align, OUT_ALIGN=out_align, **constants(s, q, config),
    )  # fmt: skip
