"""Streaming attention, gradient of a bias: dS summed over what shares it, in two deterministic steps.

One program owns a tile of the bias and walks a share of the (group, head) pairs that read it; the shares are added at
the end. Memory is that of the bias times the number of shares, whatever the batch. Legend: see stream.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..machine.architecture import arch_of
from ..machine.launch import launch
from ..machine.tiles import LOG2E, keep_mask, load_pivot, load_scalars, normalize, probabilities
from . import tokens
from .blocks import bias_splits, ragged_config, stream_bias_config
from .constants import constants
from .heads import load_head, products
from .problem import Problem, Rows, aligned


@triton.jit(do_not_specialize=["groups", "splits"])
def _stream_bwd_bias(
    q, k, v, grad, lse, delta, partial, q_strides, k_strides, v_strides, grad_strides, lse_strides,
    q_args, k_args, score_args, padding, cosine, seed, groups, heads, N, M, scale, dropout_p, splits,
    PER_GROUP: tl.constexpr, PER_HEAD: tl.constexpr,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, SCORE: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """partial (splits, groups or 1, H or 1, N, M): dS summed over a share of the (group, head) pairs that read the
    same bias.
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
            q, q_strides, q_args, padding, head, group, head, qi, N,
            Q_TOKENS, LOOP.ALIGN, not LOOP.EVEN_N, LOOP,
        )  # fmt: skip
        keys = load_head(
            k, k_strides, k_args, padding, heads + head, group, kv_head, ki, M,
            K_TOKENS, LOOP.ALIGN, not LOOP.EVEN_M, LOOP,
        )  # fmt: skip
        factor = scale * LOG2E
        if cosine is not None:
            factor = tl.load(cosine + head) * LOG2E
            queries = (normalize(queries[0])[0].to(q.dtype.element_ty),)
            keys = (normalize(keys[0])[0].to(k.dtype.element_ty),)
        product = products(queries, keys, LOOP.PRECISION)  # [BLOCK_M, BLOCK_N]
        pivot = load_pivot(lse, lse_strides, q_args, group, head, qi, N, Q_TOKENS, LOOP.PADDED)
        weights = probabilities(
            product, factor, pivot[:, None], group, head, qi[:, None], ki[None, :], score_args, N, M, SCORE,
            LOOP.PLAIN, LOOP.CAUSAL, False,
        )  # fmt: skip
        grads = load_head(
            grad, grad_strides, q_args, None, 0, group, head, qi, N,
            Q_TOKENS, LOOP.OUT_ALIGN, not LOOP.EVEN_N, LOOP,
        )  # fmt: skip
        values = load_head(
            v, v_strides, k_args, padding, 2 * heads + head, group, kv_head, ki, M,
            K_TOKENS, LOOP.ALIGN, not LOOP.EVEN_M, LOOP,
        )  # fmt: skip
        slope = products(grads, values, LOOP.PRECISION)
        if seed is not None:
            keep = keep_mask(tl.load(seed), group * heads + head, qi[:, None], ki[None, :], dropout_p)
            slope = tl.where(keep, slope * (1.0 / (1.0 - dropout_p)), 0.0)
        deltas = load_scalars(delta, lse_strides, q_args, group, head, qi, N, 0.0, Q_TOKENS, LOOP.PADDED)
        acc += weights * (slope - deltas[:, None])

    where = partial + plane.to(tl.int64) * N * M + qi.to(tl.int64)[:, None] * M + ki[None, :]
    tl.store(where, acc, mask=(qi < N)[:, None] & (ki < M)[None, :])


def stream_bias_gradient(
    s: Problem, q: Rows, k: Rows, v: Rows, grad: Rows, lse: Rows, delta: Tensor, *, per_group: bool, per_head: bool
) -> Tensor:
    """Gradient of the logits summed over what shares a bias: (groups or 1, H or 1, N, M) float32. ``delta`` is that of
    `stream_dq`.
    """
    arch, itemsize = arch_of(q.tensor), q.tensor.element_size()
    if s.ragged:
        config = ragged_config(s.head_dim, itemsize, arch, True)
    else:
        config = stream_bias_config(s.head_dim, itemsize, arch, s.q_tokens is not tokens.dense)
    kept = (s.groups if per_group else 1, s.heads if per_head else 1)
    planes = kept[0] * kept[1]
    tiles = triton.cdiv(s.n, config.block_m) * triton.cdiv(s.m, config.block_n) * planes
    splits = bias_splits(tiles, s.groups * s.heads // max(planes, 1), arch)
    partial = torch.empty(splits, *kept, s.n, s.m, dtype=torch.float32, device=delta.device)
    align, grad_align = aligned(q, k, v), aligned(grad)
    launch(
        _stream_bwd_bias, (splits * tiles,),
        q.tensor, k.tensor, v.tensor, grad.tensor, lse.tensor, delta, partial,
        q.over(align), k.over(align), v.over(align), grad.over(grad_align), lse.over(1),
        s.q_args, s.k_args, s.score_args, s.padding, s.cosine, s.seed,
        s.groups, s.heads, s.n, s.m, s.scale, s.dropout_p, splits,
        PER_GROUP=per_group, PER_HEAD=per_head, **constants(s, q, config, align, grad_align),
    )  # fmt: skip
    return partial[0] if splits == 1 else partial.sum(0)
