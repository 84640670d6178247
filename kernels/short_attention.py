"""Attention within groups that fit one tile: a whole row of scores at once, so the softmax takes one pass.

    out = softmax(scale * q k^T + bias) v         per head of a group; scores in units of log2

Legend: G groups, H heads, N query and M key tokens of a group, D head dim. BLOCK_N >= M, BLOCK_D >= D powers of two.
One program owns one head, one block of BLOCK_M rows and a chunk of groups; the head is the fastest part of its index,
because neighbouring heads share the cache lines of a packed row. The backward lives in `short_attention_backward`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import scores, tokens
from .configs import (
    alignment,
    arch_of,
    dot_precision,
    groups_per_program,
    head_tile,
    short_forward_config,
    short_takes,
    short_tile,
)
from .launch import launch
from .tiles import LN2, LOG2E, load_rows, normalize, store_rows

LOG2_OF_E = LOG2E.value


@triton.jit
def gather_rows(
    pointer,
    offsets,
    inside,
    valid,
    padding,
    PADDED: tl.constexpr,
    ALIGN: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """[BLOCK, BLOCK_D] rows where ``valid``, else zero. A token that is not ``inside`` is zero, or PADDED: the row at
    ``padding``."""
    if PADDED:
        d = tl.arange(0, BLOCK_D)
        # Choosing between addresses, not values, leaves the load a plain copy to shared memory.
        where = tl.where(inside[:, None], pointer + (offsets * ALIGN)[:, None] + d[None, :], (padding + d)[None, :])
        return tl.load(where, mask=valid[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    else:
        return load_rows(pointer, offsets, valid & inside, HEAD_DIM, ALIGN, BLOCK_D, HEAD_DIM == BLOCK_D)


@triton.jit
def bias_tile(bias, group, head, qi, ki, strides, N, M, BAKED: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_M, BLOCK_N] in units of log2. A baked tile is padded to the block, is in log2 already and -inf past the
    last key."""
    start = bias + group.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
    if BAKED:
        return tl.load(start + qi[:, None] * BLOCK_N + ki[None, :])
    valid = (qi < N)[:, None] & (ki < M)[None, :]
    tile = tl.load(
        start + qi.to(tl.int64)[:, None] * strides[2] + ki.to(tl.int64)[None, :] * strides[3], mask=valid, other=0.0
    )
    return tile.to(tl.float32) * LOG2E


@triton.jit
def _short_fwd(
    q, k, v, out, lse, bias, head_scale, padding,
    head_strides, q_strides, k_strides, v_strides, out_strides, bias_strides, q_args, k_args, score_args,
    groups, heads, chunk, N, M, scale,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, SCORE: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, ROW_BLOCKS: tl.constexpr, ALIGN: tl.constexpr,
    BIAS: tl.constexpr, COSINE: tl.constexpr, PADDED: tl.constexpr, LSE: tl.constexpr,
    SHARED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    head = pid % heads
    qi = pid // heads % ROW_BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    ki = tl.arange(0, BLOCK_N)
    first = pid // (heads * ROW_BLOCKS) * chunk
    q += head.to(tl.int64) * head_strides[0] * ALIGN
    k += head.to(tl.int64) * head_strides[1] * ALIGN
    v += head.to(tl.int64) * head_strides[2] * ALIGN
    out += head.to(tl.int64) * head_strides[3] * ALIGN
    pad_q, pad_k, pad_v = padding, padding, padding
    if PADDED:  # (3, H, D)
        pad_q += head * HEAD_DIM
        pad_k += (heads + head) * HEAD_DIM
        pad_v += (2 * heads + head) * HEAD_DIM
    if COSINE:
        scale = tl.load(head_scale + head) * LOG2E
    if BIAS == "held":
        tile = bias_tile(bias, first, head, qi, ki, bias_strides, N, M, True, BLOCK_N)
    for step in tl.range(0, tl.minimum(chunk, groups - first)):
        group = first + step
        q_at, q_inside = Q_TOKENS(group, qi, q_strides, q_args)
        if SHARED == "qkv":
            k_at, k_inside, v_at = q_at, q_inside, q_at
        else:
            k_at, k_inside = K_TOKENS(group, ki, k_strides, k_args)
            v_at = k_at if SHARED == "kv" else K_TOKENS(group, ki, v_strides, k_args)[0]
        q_rows = gather_rows(q, q_at, q_inside, qi < N, pad_q, PADDED, ALIGN, HEAD_DIM, BLOCK_D)
        k_rows = gather_rows(k, k_at, k_inside, ki < M, pad_k, PADDED, ALIGN, HEAD_DIM, BLOCK_D)
        v_rows = gather_rows(v, v_at, k_inside, ki < M, pad_v, PADDED, ALIGN, HEAD_DIM, BLOCK_D)
        if COSINE:
            q_rows = normalize(q_rows)[0].to(q_rows.dtype)
            k_rows = normalize(k_rows)[0].to(k_rows.dtype)
        s = tl.dot(q_rows, tl.trans(k_rows), input_precision=PRECISION) * scale  # [BLOCK_M, BLOCK_N]
        if BIAS == "held":
            s += tile
        elif BIAS != "none":
            s += bias_tile(bias, group, head, qi, ki, bias_strides, N, M, BIAS == "baked", BLOCK_N)
        s = SCORE(s, group, head, qi[:, None], ki[None, :], score_args)
        if BIAS == "none" or BIAS == "strided":
            s = tl.where((ki < M)[None, :], s, float("-inf"))
        top = tl.max(s, 1)
        top = tl.where(top == float("-inf"), 0.0, top)  # a fully masked row needs a finite pivot
        p = tl.exp2(s - top[:, None])
        total = tl.sum(p, 1)
        o = tl.dot(p.to(v_rows.dtype), v_rows, input_precision=PRECISION)  # [BLOCK_M, BLOCK_D]
        o *= (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]
        out_at = Q_TOKENS(group, qi, out_strides, q_args)[0]
        store_rows(out, out_at, o, q_inside & (qi < N), HEAD_DIM, ALIGN, BLOCK_D, HEAD_DIM == BLOCK_D)
        if LSE:
            row = (group.to(tl.int64) * heads + head) * N + qi
            tl.store(lse + row, (top + tl.log2(total)) * LN2, mask=qi < N)


class View(NamedTuple):
    """A tensor whose rows a tokens hook finds; strides in elements."""

    data: Tensor
    head: int
    strides: tuple[int, ...]


class Bias(NamedTuple):
    """An additive bias. ``kind`` "held": a baked tile per head, loaded once; "baked": the same, loaded per group;
    "strided": any tensor."""

    data: Tensor
    strides: tuple[int, int, int, int]
    kind: str


class Geometry(NamedTuple):
    """What forward and backward agree on."""

    groups: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    scale: float
    q_tokens: object = tokens.dense
    k_tokens: object = tokens.dense
    q_args: tuple = ()
    k_args: tuple = ()
    score: object = scores.plain
    score_args: tuple = ()


def common_alignment(*views):
    """`alignment` over every stride of ``views``."""
    itemsize = max(view.data.element_size() for view in views)
    return alignment(itemsize, *(stride for view in views for stride in (view.head, *view.strides)))


def shared_offsets(geometry, block_m, columns, queries, keys):
    """Which rows lie at equal offsets in their tensors, so that one computation of them serves: "qkv", "kv" or
    "none"."""
    g = geometry
    if any(view.strides != keys[0].strides for view in keys):
        return "none"
    same = g.q_tokens is g.k_tokens and g.q_args == g.k_args and g.queries == g.keys and block_m == columns
    return "qkv" if same and all(view.strides == keys[0].strides for view in queries) else "kv"


def scaled(strides, align):
    return tuple(stride // align for stride in strides)


def run_forward(geometry, q, k, v, out, *, lse=None, bias=None, padding=None, head_scale=None):
    """Launch the forward on `View` arguments; writes ``out`` and, when given, ``lse`` (G, H, N) float32, natural
    log."""
    g = geometry
    rows, columns = short_tile(g.queries, g.keys)
    arch = arch_of(q.data)
    config = short_forward_config(rows, columns, q.data.element_size(), arch)
    row_blocks = -(-g.queries // config.block_m)
    chunk = groups_per_program(g.groups, g.heads, arch) if row_blocks == 1 else 1
    align = common_alignment(q, k, v, out)
    launch(
        _short_fwd, (-(-g.groups // chunk) * row_blocks * g.heads,),
        q.data, k.data, v.data, out.data, lse, bias and bias.data, head_scale, padding,
        scaled((q.head, k.head, v.head, out.head), align), *(scaled(view.strides, align) for view in (q, k, v, out)),
        bias.strides if bias else (), g.q_args, g.k_args, g.score_args,
        g.groups, g.heads, chunk, g.queries, g.keys, g.scale * LOG2_OF_E,
        Q_TOKENS=g.q_tokens, K_TOKENS=g.k_tokens, SCORE=g.score, HEAD_DIM=g.head_dim,
        BLOCK_M=config.block_m, BLOCK_N=columns, BLOCK_D=head_tile(g.head_dim), ROW_BLOCKS=row_blocks, ALIGN=align,
        BIAS=bias.kind if bias else "none", COSINE=head_scale is not None, PADDED=padding is not None,
        LSE=lse is not None,
        SHARED=shared_offsets(g, config.block_m, columns, (q,), (k, v)), PRECISION=dot_precision(q.data.dtype),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def dense_view(x):
    """`View` of (B, H, N, D) with any strides but the last, which is 1."""
    return View(x, x.stride(1), (x.stride(0), x.stride(2)))


def dense_geometry(q, k, scale, score, score_args):
    batch, heads, queries, head_dim = q.shape
    return Geometry(batch, heads, queries, k.shape[2], head_dim, scale, score=score, score_args=score_args)


def dense_bias(bias, geometry):
    """`Bias` of a tensor broadcastable to (B, H, N, M). One that serves the whole batch is baked, once."""
    if bias is None:
        return None
    g = geometry
    wide = bias.expand(g.groups, g.heads, g.queries, g.keys)
    if wide.stride(0) or g.groups == 1:
        return Bias(wide, wide.stride(), "strided")
    rows, columns = short_tile(g.queries, g.keys)
    tile = bias.new_full((g.heads, rows, columns), float("-inf"), dtype=torch.float32)
    tile[:, g.queries :] = 0.0  # rows that no query fills stay finite
    tile[:, : g.queries, : g.keys] = wide[0].float() * LOG2_OF_E
    return Bias(tile, (0, rows * columns, columns, 1), "held" if columns <= 64 else "baked")


def fits(q, k, v, *, bias=False):
    """Whether (B, H, N, D), (B, H, M, D) are for this file: a group in one tile, equal head counts, unit last strides,
    nothing empty."""
    (batch, heads, queries, head_dim), keys = q.shape, k.shape[2]
    if min(batch, heads, queries, keys, head_dim) == 0 or k.shape[1] != heads or v.shape[3] != head_dim:
        return False
    return all(x.stride(3) == 1 for x in (q, k, v)) and short_takes(queries, keys, head_dim, q.element_size(), bias)


def short_forward(q, k, v, out, *, scale, lse=None, bias=None, score=scores.plain, score_args=()):
    """Dense attention where `fits` holds.

    Args:
        q, out: (B, H, N, D); k, v: (B, H, M, D); any strides with a last one of 1. ``out`` is written.
        scale: factor of q . k.
        lse: (B, H, N) float32 contiguous, written when given: natural log, -inf for a fully masked row.
        bias: broadcastable to (B, H, N, M), added to the scores.
        score, score_args: score hook and its argument.
    """
    geometry = dense_geometry(q, k, scale, score, score_args)
    run_forward(geometry, *(dense_view(x) for x in (q, k, v, out)), lse=lse, bias=dense_bias(bias, geometry))
