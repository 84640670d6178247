"""Streaming (flash) attention, forward: one loop over key blocks with an online softmax (FlashAttention-2, arXiv
2307.08691, algorithm 1).

    out = softmax(scale * q k^T changed by hooks) v,  lse = log of the softmax denominator

Legend: groups (batch entries or windows), H heads, KV key heads, N query and M key tokens of a group, D head dim. One
program owns BLOCK_M queries of one (group, head); neighbours in the grid share keys. Hooks make it every dense family:

    TOKENS (tokens.py)      where a token lives
    NORM (norms.py)         how a loaded row of q or k is normalised
    LOGIT (logits.py)       what becomes of a product
    SCORE (scores.py)       what is added to it, with PREPARE, what of that is computed once
    START (starts.py)       what a row has seen before its first key
    WEIGH (weighing.py)     what an exponential counts for

The backward is in stream_backward.py; splits.py adds up what several programs leave where queries are few.
"""

import triton
import triton.language as tl

from ..machine.architecture import arch_of
from ..machine.launch import launch
from ..machine.tiles import LOG2E, key_range, softmax_step, visible
from .blocks import ragged_config, stream_forward_config
from .constants import constants, hooked, widest
from .heads import add_products, load_head, products, scaled, store_softmax, zeros
from .problem import Problem, Rows, aligned
from .splits import combine_softmax, parts_of, split_share, splits_of
from .weighing import dropout


@triton.jit
def _stream_fwd(
    q, k, v, out, lse, args, padding, head_scale, heads, N, M, scale, split,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, NORM: tl.constexpr, LOGIT: tl.constexpr, PREPARE: tl.constexpr,
    SCORE: tl.constexpr, START: tl.constexpr, WEIGH: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """split: (), or (groups, splits) where a program walks a share of the keys, and out and lse are those of a group
    for each share."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_M)
    block, row = pid % blocks, pid // blocks  # row: (split, group, head)
    place, head = row // heads, row % heads
    kv_head = head // LOOP.KV_SHARE
    qi = block * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)
    group = place
    whole, end = key_range(block, N, M, LOOP.BLOCK_M, LOOP.BLOCK_N, LOOP.CAUSAL)
    maximum, total = START(head, args.start, LOOP.BLOCK_M)
    first = 0
    if len(split) > 0:
        group = place % split[0]
        first, last = split_share(place // split[0], split[1], M, LOOP.BLOCK_N)
        end = tl.maximum(tl.minimum(end, last), first)
        whole = tl.maximum(tl.minimum(whole, last), first)
        maximum = tl.where(first == 0, maximum, float("-inf"))
        total = tl.where(first == 0, total, 0.0)

    queries = load_head(
        q, args.q, padding, head, group, head, qi, N,
        Q_TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_N, LOOP.PADDED,
    )  # fmt: skip
    queries = NORM(queries, LOOP.QK.DIM)
    factor = scale * LOG2E
    if head_scale is not None:
        factor = tl.load(head_scale + head) * LOG2E
    state = PREPARE(group, qi[:, None], args.score)

    acc = zeros(LOOP.BLOCK_M, LOOP.V)
    for MASKED in tl.static_range(1 if LOOP.EVEN_M and not LOOP.CAUSAL else 2):
        for start in tl.range(whole if MASKED else first, end if MASKED else whole, LOOP.BLOCK_N):
            ki = start + tl.arange(0, LOOP.BLOCK_N)
            keys = load_head(
                k, args.k, padding, heads + head, group, kv_head, ki, M,
                K_TOKENS, LOOP.QK, LOOP.ALIGN, MASKED and not LOOP.EVEN_M, LOOP.PADDED,
            )  # fmt: skip
            s = products(queries, NORM(keys, LOOP.QK.DIM), LOOP.PRECISION)  # [BLOCK_M, BLOCK_N]
            if not LOOP.PLAIN:
                s = LOGIT(s * factor, args.logit)
                s = SCORE(s, group, head, qi[:, None], ki[None, :], args.score, state)
            s = visible(s, qi[:, None], ki[None, :], N, M, MASKED and LOOP.CAUSAL, MASKED and not LOOP.EVEN_M)
            weights, maximum, shrink = softmax_step(s, factor, maximum, LOOP.PLAIN)
            counted, used = WEIGH(weights, group, head, qi[:, None], ki[None, :], args.weigh)
            total = total * shrink + tl.sum(counted, 1)
            acc = scaled(acc, shrink[:, None])
            values = load_head(
                v, args.k, padding, 2 * heads + head, group, kv_head, ki, M,
                K_TOKENS, LOOP.V, LOOP.ALIGN, MASKED and not LOOP.EVEN_M, LOOP.PADDED,
            )  # fmt: skip
            acc = add_products(acc, used.to(v[0].dtype.element_ty), values, LOOP.PRECISION)

    store_softmax(out, lse, args.q, maximum, total, acc, place, head, qi, N, Q_TOKENS, LOOP)


def stream_forward(s: Problem, q: Rows, k: Rows, v: Rows, out: Rows, lse: Rows) -> None:
    """Fill ``out`` and ``lse``, float32, natural logarithm: one for each query token and head."""
    arch, itemsize, dim = arch_of(q.tensor), q.tensor.element_size(), widest(s)
    if s.ragged:
        config = ragged_config(dim, itemsize, arch, False)
    else:
        config = stream_forward_config(dim, itemsize, arch, s.n, hooked(s), s.causal, s.weigh is dropout)
    programs = triton.cdiv(s.n, config.block_m) * s.groups * s.heads
    splits = splits_of(s, programs, triton.cdiv(s.m, config.block_n), arch)
    left = (out, lse) if splits == 1 else parts_of(splits * s.groups, out, lse)
    align, out_align = aligned(q, k, v), aligned(left[0])
    launch(
        _stream_fwd, (splits * programs,),
        q.over(align), k.over(align), v.over(align), left[0].over(out_align), left[1].over(1),
        s.args, s.padding, s.head_scale, s.heads, s.n, s.m, s.scale, () if splits == 1 else (s.groups, splits),
        START=s.start, **constants(s, q, config, align, out_align),
    )  # fmt: skip
    if splits > 1:
        combine_softmax(splits, *left, out, lse)
