"""Streaming attention, sums of scores over what shares a map of queries and keys, in two deterministic steps: dS, which
is the gradient of a bias, or what else REDUCE (reductions.py) makes of a score.

One program owns a tile of the map and walks a share of the (group, head) pairs that belong to it; the shares are added
at the end. Memory is that of the map times the number of shares, whatever the batch. Legend: see stream.py.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..machine.architecture import arch_of
from ..machine.launch import launch
from ..machine.tiles import LOG2E, load_pivot, load_scalars, visible
from . import reductions, tokens
from .blocks import bias_splits, ragged_config, stream_bias_config
from .constants import constants, widest
from .heads import load_head, products
from .problem import Problem, Rows, aligned


@triton.jit(do_not_specialize=["groups", "splits"])
def _stream_bwd_bias(
    q, k, v, grad, lse, delta, partial, args, padding, head_scale, groups, heads, N, M, scale, splits,
    PER_GROUP: tl.constexpr, PER_HEAD: tl.constexpr, REDUCE: tl.constexpr,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, NORM: tl.constexpr, LOGIT: tl.constexpr, PREPARE: tl.constexpr,
    SCORE: tl.constexpr, WEIGH: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """partial (splits, groups or 1, H or 1, N, M): sums over a share of the (group, head) pairs that read the same
    bias. Where ``grad`` is None, REDUCE does not look at gradients.
    """
    pid = tl.program_id(0)
    key_blocks = tl.cdiv(M, LOOP.BLOCK_N)
    query_blocks = tl.cdiv(N, LOOP.BLOCK_M)
    key_block, query_block = pid % key_blocks, pid // key_blocks % query_blocks
    plane = pid // (key_blocks * query_blocks)  # (split, groups or 1, H or 1)
    shared_heads = 1 if PER_HEAD else heads
    shared_groups = 1 if PER_GROUP else groups
    kept_heads = heads if PER_HEAD else 1
    kept_groups = groups if PER_GROUP else 1
    split = plane // (kept_heads * kept_groups)
    first_head = plane % kept_heads
    first_group = plane // kept_heads % kept_groups
    members = shared_heads * shared_groups
    share = tl.cdiv(members, splits)
    qi = query_block * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)
    ki = key_block * LOOP.BLOCK_N + tl.arange(0, LOOP.BLOCK_N)

    acc = tl.zeros([LOOP.BLOCK_M, LOOP.BLOCK_N], tl.float32)
    for member in tl.range(split * share, tl.minimum((split + 1) * share, members)):
        group = first_group + member // shared_heads
        head = first_head + member % shared_heads
        kv_head = head // LOOP.KV_SHARE
        queries = load_head(
            q, args.q, padding, head, group, head, qi, N,
            Q_TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_N, LOOP.PADDED,
        )  # fmt: skip
        keys = load_head(
            k, args.k, padding, heads + head, group, kv_head, ki, M,
            K_TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_M, LOOP.PADDED,
        )  # fmt: skip
        factor = scale * LOG2E
        if head_scale is not None:
            factor = tl.load(head_scale + head) * LOG2E
        s = products(NORM(queries, LOOP.QK.DIM), NORM(keys, LOOP.QK.DIM), LOOP.PRECISION)  # [BLOCK_M, BLOCK_N]
        s = LOGIT(s * factor, args.logit)
        state = PREPARE(group, qi[:, None], args.score)
        s = SCORE(s, group, head, qi[:, None], ki[None, :], args.score, state)
        s = visible(s, qi[:, None], ki[None, :], N, M, LOOP.CAUSAL, False)
        pivot = load_pivot(lse, args.q, group, head, qi, N, Q_TOKENS, LOOP.PADDED)
        weights = tl.math.exp2(s - pivot[:, None])
        counted, used = WEIGH(weights, group, head, qi[:, None], ki[None, :], args.weigh)
        slope, deltas = 0.0, 0.0
        if grad is not None:
            grads = load_head(
                grad, args.q, None, 0, group, head, qi, N,
                Q_TOKENS, LOOP.V, LOOP.OUT_ALIGN, not LOOP.EVEN_N, LOOP.PADDED,
            )  # fmt: skip
            values = load_head(
                v, args.k, padding, 2 * heads + head, group, kv_head, ki, M,
                K_TOKENS, LOOP.V, LOOP.ALIGN, not LOOP.EVEN_M, LOOP.PADDED,
            )  # fmt: skip
            slope = products(grads, values, LOOP.PRECISION)
            deltas = load_scalars((delta, lse[1], lse[2]), args.q, group, head, qi, N, 0.0, Q_TOKENS, LOOP.PADDED)[
                :, None
            ]
        acc += REDUCE(counted, used, slope, deltas, LOOP.WEIGHED)

    where = partial + plane.to(tl.int64) * N * M + qi.to(tl.int64)[:, None] * M + ki[None, :]
    tl.store(where, acc, mask=(qi < N)[:, None] & (ki < M)[None, :])


def stream_bias_gradient(
    s: Problem, q: Rows, k: Rows, v: Rows, grad: Rows | None, lse: Rows, delta: Tensor | None, *,
    per_group: bool, per_head: bool, reduce: Callable = reductions.slopes,
) -> Tensor:  # fmt: skip
    """Sums over what shares a map: (groups or 1, H or 1, N, M) float32. ``delta`` is that of `stream_dq`; it and
    ``grad`` are None where ``reduce`` looks at probabilities alone.
    """
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    if s.ragged:
        config = ragged_config(widest(s), itemsize, arch, True)
    else:
        config = stream_bias_config(widest(s), itemsize, arch, s.q_tokens is not tokens.dense)
    kept = (s.groups if per_group else 1, s.heads if per_head else 1)
    planes = kept[0] * kept[1]
    tiles = triton.cdiv(s.n, config.block_m) * triton.cdiv(s.m, config.block_n) * planes
    splits = bias_splits(tiles, s.groups * s.heads // max(planes, 1), arch)
    partial = torch.empty(splits, *kept, s.n, s.m, dtype=torch.float32, device=lse.tensor.device)
    align, grad_align = aligned(q, k, v), 1 if grad is None else aligned(grad)
    launch(
        _stream_bwd_bias, (splits * tiles,),
        q.over(align), k.over(align), v.over(align), None if grad is None else grad.over(grad_align), lse.over(1),
        delta, partial, s.args, s.padding, s.head_scale,
        s.groups, s.heads, s.n, s.m, s.scale, splits,
        PER_GROUP=per_group, PER_HEAD=per_head, REDUCE=reduce, **constants(s, q, config, align, grad_align),
    )  # fmt: skip
    return partial[0] if splits == 1 else partial.sum(0)
