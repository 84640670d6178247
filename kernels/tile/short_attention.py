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

from ..loop import scores
from ..loop.constants import constant
from ..loop.problem import PLAIN_ROWS, Problem, aligned, dense_rows
from ..machine.architecture import arch_of
from ..machine.blocks import dot_precision, head_tile
from ..machine.choices import choice
from ..machine.launch import launch
from ..machine.tiles import LN2, LOG2E, gather_rows, store_rows
from .blocks import groups_per_program, short_columns, short_forward_config, short_tile

LOG2_OF_E = LOG2E.value


class Tile(NamedTuple):
    """What the kernels of the tile know when they are compiled, as one tl.constexpr. See `loop.constants.Loop`."""

    HEAD_DIM: tl.constexpr
    BLOCK_M: tl.constexpr
    BLOCK_N: tl.constexpr
    BLOCK_D: tl.constexpr
    ROW_BLOCKS: tl.constexpr
    TILE_ROWS: tl.constexpr  # of all blocks of rows
    ALIGN: tl.constexpr  # what strides are in units of
    NORMED: tl.constexpr  # NORM changes rows
    BIAS: tl.constexpr  # the kind of a `Bias`, or "none"
    DBIAS: tl.constexpr  # its gradient: "held", "group" or "none"
    SHARED: tl.constexpr  # see `shared_offsets`
    PRECISION: tl.constexpr  # of products of float32


@triton.jit
def of_head(operand, head, ALIGN: tl.constexpr):
    """Where the rows of a head begin; operand (pointer, stride of heads, strides of TOKENS) in units of ALIGN."""
    return operand[0] + head.to(tl.int64) * operand[1] * ALIGN


@triton.jit
def tile_rows(pointer, offsets, inside, valid, padding, padding_row, TILE: tl.constexpr):
    """[BLOCK, BLOCK_D] of a head that begins at ``pointer``, see `gather_rows`."""
    return gather_rows(
        pointer, offsets, inside, valid, padding, padding_row, TILE.HEAD_DIM, TILE.ALIGN, 0, TILE.BLOCK_D
    )


@triton.jit
def bias_tile(bias, group, head, qi, ki, N, M, BAKED: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_M, BLOCK_N] in units of log2; bias (pointer, strides). A baked tile is padded to the block, is in log2
    already and -inf past the last key."""
    pointer, strides = bias
    start = pointer + group.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
    if BAKED:
        return tl.load(start + qi[:, None] * BLOCK_N + ki[None, :])
    valid = (qi < N)[:, None] & (ki < M)[None, :]
    tile = tl.load(
        start + qi.to(tl.int64)[:, None] * strides[2] + ki.to(tl.int64)[None, :] * strides[3], mask=valid, other=0.0
    )
    return tile.to(tl.float32) * LOG2E


@triton.jit
def logits(product, held, bias, group, head, qi, ki, score_args, N, M, scale, SCORE: tl.constexpr, TILE: tl.constexpr):
    """[BLOCK_M, BLOCK_N] in units of log2 from q k^T; -inf past the last key. ``held``: the tile where BIAS is so."""
    s = product * scale
    if TILE.BIAS == "held":
        s += held
    elif TILE.BIAS != "none":
        s += bias_tile(bias, group, head, qi, ki, N, M, TILE.BIAS == "baked", TILE.BLOCK_N)
    s = SCORE(s, group, head, qi[:, None], ki[None, :], score_args, ())
    if TILE.BIAS == "none" or TILE.BIAS == "strided":
        s = tl.where((ki < M)[None, :], s, float("-inf"))
    return s


@triton.jit(do_not_specialize=["groups"], do_not_specialize_on_alignment=["chunk"])
def _short_fwd(
    q, k, v, out, lse, bias, args, padding, head_scale, groups, heads, chunk, N, M, scale,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, NORM: tl.constexpr, SCORE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    head = pid % heads
    qi = pid // heads % TILE.ROW_BLOCKS * TILE.BLOCK_M + tl.arange(0, TILE.BLOCK_M)
    ki = tl.arange(0, TILE.BLOCK_N)
    first = pid // (heads * TILE.ROW_BLOCKS) * chunk
    queries, keys = of_head(q, head, TILE.ALIGN), of_head(k, head, TILE.ALIGN)
    values, outs = of_head(v, head, TILE.ALIGN), of_head(out, head, TILE.ALIGN)
    if head_scale is not None:
        scale = tl.load(head_scale + head) * LOG2E
    held = None
    if TILE.BIAS == "held":
        held = bias_tile(bias, first, head, qi, ki, N, M, True, TILE.BLOCK_N)
    for step in tl.range(0, tl.minimum(chunk, groups - first)):
        group = first + step
        q_at, q_inside = Q_TOKENS(group, qi, q[2], args.q)
        if TILE.SHARED == "qkv":
            k_at, k_inside, v_at = q_at, q_inside, q_at
        else:
            k_at, k_inside = K_TOKENS(group, ki, k[2], args.k)
            v_at = k_at if TILE.SHARED == "kv" else K_TOKENS(group, ki, v[2], args.k)[0]
        q_rows = tile_rows(queries, q_at, q_inside, qi < N, padding, head, TILE)
        k_rows = tile_rows(keys, k_at, k_inside, ki < M, padding, heads + head, TILE)
        v_rows = tile_rows(values, v_at, k_inside, ki < M, padding, 2 * heads + head, TILE)
        q_rows, k_rows = NORM((q_rows,), TILE.HEAD_DIM)[0], NORM((k_rows,), TILE.HEAD_DIM)[0]
        product = tl.dot(q_rows, tl.trans(k_rows), input_precision=TILE.PRECISION)  # [BLOCK_M, BLOCK_N]
        s = logits(product, held, bias, group, head, qi, ki, args.score, N, M, scale, SCORE, TILE)
        top = tl.max(s, 1)
        top = tl.where(top == float("-inf"), 0.0, top)  # a fully masked row needs a finite pivot
        p = tl.exp2(s - top[:, None])
        total = tl.sum(p, 1)
        o = tl.dot(p.to(v_rows.dtype), v_rows, input_precision=TILE.PRECISION)  # [BLOCK_M, BLOCK_D]
        o *= (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]
        out_at = Q_TOKENS(group, qi, out[2], args.q)[0]
        store_rows(outs, out_at, o, q_inside & (qi < N), TILE.HEAD_DIM, TILE.ALIGN, 0, TILE.BLOCK_D)
        if lse is not None:
            row = (group.to(tl.int64) * heads + head) * N + qi
            tl.store(lse + row, (top + tl.log2(total)) * LN2, mask=qi < N)


class Bias(NamedTuple):
    """An additive bias. ``kind`` "held": a baked tile per head, loaded once; "baked": the same, loaded per group;
    "strided": any tensor."""

    tensor: Tensor
    strides: tuple[int, int, int, int]
    kind: str


def shared_offsets(problem, block_m, columns, queries, keys):
    """Which rows lie at equal offsets in their tensors, so that one computation of them serves: "qkv", "kv" or
    "none"."""
    p = problem
    if any(rows.strides != keys[0].strides for rows in keys):
        return "none"
    same = p.q_tokens is p.k_tokens and p.q_args == p.k_args and p.n == p.m and block_m == columns
    return "qkv" if same and all(rows.strides == keys[0].strides for rows in queries) else "kv"


def tile_of(**values) -> Tile:
    return constant(Tile, **values)


def run_forward(problem, q, k, v, out, *, lse=None, bias=None):
    """Launch the forward on `Rows`; writes ``out`` and, when given, ``lse`` (G, H, N) float32, natural log."""
    p = problem
    rows, columns = short_tile(p.n, p.m)
    arch = arch_of(q.tensor)
    config = short_forward_config(rows, columns, q.tensor.element_size(), arch)
    row_blocks = -(-p.n // config.block_m)
    chunk = groups_per_program(p.groups, p.heads, arch) if row_blocks == 1 else 1
    align = aligned(q, k, v, out)
    tile = tile_of(
        HEAD_DIM=p.head_dim, BLOCK_M=config.block_m, BLOCK_N=columns, BLOCK_D=head_tile(p.head_dim),
        ROW_BLOCKS=row_blocks, TILE_ROWS=rows, ALIGN=align, NORMED=p.norm is not PLAIN_ROWS,
        BIAS=bias.kind if bias else "none", DBIAS="none",
        SHARED=shared_offsets(p, config.block_m, columns, (q,), (k, v)), PRECISION=dot_precision(q.tensor.dtype),
    )  # fmt: skip
    launch(
        _short_fwd, (-(-p.groups // chunk) * row_blocks * p.heads,),
        *(x.over(align) for x in (q, k, v, out)), lse, bias and bias[:2], p.args, p.padding, p.head_scale,
        p.groups, p.heads, chunk, p.n, p.m, p.scale * LOG2_OF_E,
        Q_TOKENS=p.q_tokens, K_TOKENS=p.k_tokens, NORM=p.norm.forward, SCORE=p.score, TILE=tile,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def dense_problem(q, k, scale, score, score_args):
    batch, heads, n, head_dim = q.shape
    return Problem(batch, heads, heads, n, k.shape[2], head_dim, scale, score=score, score_args=score_args)


def held_bias(tile):
    """`Bias` of a baked tile (H, rows, columns) that all groups share."""
    _, rows, columns = tile.shape
    return Bias(tile, (0, rows * columns, columns, 1), "held" if columns <= 64 else "baked")


def dense_bias(bias, problem):
    """`Bias` of a tensor broadcastable to (B, H, N, M). One that serves the whole batch is baked, once."""
    if bias is None:
        return None
    p = problem
    wide = bias.expand(p.groups, p.heads, p.n, p.m)
    if wide.stride(0) or p.groups == 1:
        return Bias(wide, wide.stride(), "strided")
    tile = bias.new_full((p.heads, *short_tile(p.n, p.m)), float("-inf"), dtype=torch.float32)
    tile[:, p.n :] = 0.0  # rows that no query fills stay finite
    tile[:, : p.n, : p.m] = wide[0].float() * LOG2_OF_E
    return held_bias(tile)


@choice
def short_takes(queries, keys, head_dim, itemsize, walks):
    """Whether these kernels hold a group in registers: where they compile without spills, which the tests hold them to.
    No GPU has timed them against the loop.

    ``walks``: a program adds over groups (the gradient of a bias, a padding vector or the scale of a head), or reads a
    bias or a mask. Beyond 64 tokens only whole heads of 64 fit.
    """
    longest = max(queries, keys)
    if itemsize == 4:
        return longest <= 64 and head_dim <= 32
    return head_dim <= 64 and longest <= (256 if head_dim == 64 and not walks else 64)


def fits(q, k, v, *, terms=False):
    """Whether (B, H, N, D), (B, H, M, D) are for this file: a group in one tile, equal head counts, unit last strides,
    nothing empty."""
    (batch, heads, queries, head_dim), keys = q.shape, k.shape[2]
    if min(batch, heads, queries, keys, head_dim) == 0 or k.shape[1] != heads or v.shape[3] != head_dim:
        return False
    if max(queries, keys) > short_columns(arch_of(q)):
        return False
    return all(x.stride(3) == 1 for x in (q, k, v)) and short_takes(queries, keys, head_dim, q.element_size(), terms)


def short_forward(q, k, v, out, *, scale, lse=None, bias=None, score=scores.plain, score_args=()):
    """Dense attention where `fits` holds.

    Args:
        q, out: (B, H, N, D); k, v: (B, H, M, D); any strides with a last one of 1. ``out`` is written.
        scale: factor of q . k.
        lse: (B, H, N) float32 contiguous, written when given: natural log, -inf for a fully masked row.
        bias: broadcastable to (B, H, N, M), added to the scores.
        score, score_args: score hook and its argument.
    """
    problem = dense_problem(q, k, scale, score, score_args)
    run_forward(problem, *(dense_rows(x) for x in (q, k, v, out)), lse=lse, bias=dense_bias(bias, problem))
