"""Splits: where few programs would each walk many blocks, several walk a share, and what they leave is added up in a
fixed order (FlashAttention's split keys, arXiv 2311.01282).

Parts are dense and float32: those of share i of group g are group i G + g.
"""

import torch
import triton
import triton.language as tl

from ..machine.blocks import head_tile
from ..machine.launch import launch
from ..machine.tiles import LN2, LOG2E, load_rows, store_rows
from . import tokens
from .blocks import stream_splits
from .problem import Problem, Rows, aligned, dense_rows, per_token

BLOCK = 16  # rows of a program


@triton.jit
def split_share(number, splits, count, BLOCK_N: tl.constexpr):
    """First and end of share ``number`` of ``count`` in whole blocks of BLOCK_N."""
    share = tl.cdiv(tl.cdiv(count, BLOCK_N), splits) * BLOCK_N
    return tl.minimum(number * share, count), tl.minimum((number + 1) * share, count)


@triton.jit
def _place(count, BLOCK: tl.constexpr):
    """Row (group, head) of this program, and its tokens ``i`` [BLOCK]."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(count, BLOCK)
    return pid // blocks, pid % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _combine_softmax(
    parts, logs, out, lse, groups, heads, N, splits, DIM: tl.constexpr, BLOCK_D: tl.constexpr, OUT_ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """parts (splits, groups, H, N, D), logs (splits, groups, H, N), float32: outputs and natural logarithms of
    denominators of each share."""
    row, qi = _place(N, BLOCK_M)
    group, head = row // heads, row % heads
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for split in tl.range(0, splits):
        at = (split * groups * heads + row).to(tl.int64) * N + qi
        log = tl.load(logs + at, mask=qi < N, other=float("-inf")) * LOG2E
        rows = load_rows(parts, at * DIM, qi < N, DIM, 1, 0, BLOCK_D)
        new_maximum = tl.maximum(maximum, log)
        pivot = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        shrink, weight = tl.math.exp2(maximum - pivot), tl.math.exp2(log - pivot)
        acc = acc * shrink[:, None] + rows * weight[:, None]
        total = total * shrink + weight
        maximum = new_maximum
    total = tl.where(total == 0.0, 1.0, total)  # a row without keys
    out_at = group.to(tl.int64) * out[2][0] + qi.to(tl.int64) * out[2][1] + head.to(tl.int64) * out[1]
    store_rows(out[0], out_at, acc * (1.0 / total)[:, None], qi < N, DIM, OUT_ALIGN, 0, BLOCK_D)
    lse_at = group.to(tl.int64) * lse[2][0] + qi.to(tl.int64) * lse[2][1] + head.to(tl.int64) * lse[1]
    tl.store(lse[0] + lse_at, maximum * LN2 + tl.log(total), mask=qi < N)


@triton.jit
def _add_parts(
    parts, out, groups, heads, count, splits, DIM: tl.constexpr, BLOCK_D: tl.constexpr, OUT_ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """parts (splits, groups, heads, count, D) float32 -> their sum."""
    row, i = _place(count, BLOCK_M)
    group, head = row // heads, row % heads
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for split in tl.range(0, splits):
        at = (split * groups * heads + row).to(tl.int64) * count + i
        acc += load_rows(parts, at * DIM, i < count, DIM, 1, 0, BLOCK_D)
    out_at = group.to(tl.int64) * out[2][0] + i.to(tl.int64) * out[2][1] + head.to(tl.int64) * out[1]
    store_rows(out[0], out_at, acc, i < count, DIM, OUT_ALIGN, 0, BLOCK_D)


def splits_of(s: Problem, programs: int, turns: int, arch: int) -> int:
    """Shares of the ``turns`` of each of ``programs`` programs; dense tokens alone are split."""
    if programs == 0 or s.q_tokens is not tokens.dense or s.k_tokens is not tokens.dense:
        return 1
    return stream_splits(programs, turns, arch)


def parts_of(groups: int, *wholes: Rows) -> tuple[Rows, ...]:
    """A place for the parts of each of ``wholes``, (B, H, N, D) or, one number for each token, (B, H, N)."""
    found = []
    for whole in wholes:
        shape = (groups, *whole.tensor.shape[1:])
        tensor = torch.empty(shape, dtype=torch.float32, device=whole.tensor.device)
        found.append(dense_rows(tensor) if len(shape) == 4 else per_token(tensor))
    return tuple(found)


def _shared(splits: int, whole: Rows) -> tuple[tuple, tuple, dict]:
    """Grid, sizes and constants of a launch that fills ``whole``."""
    batch, heads, count, dim = whole.tensor.shape
    fixed = dict(DIM=dim, BLOCK_D=head_tile(dim), OUT_ALIGN=aligned(whole), BLOCK_M=BLOCK, num_warps=4, num_stages=1)
    return (triton.cdiv(count, BLOCK) * batch * heads,), (batch, heads, count, splits), fixed


def combine_softmax(splits: int, parts: Rows, logs: Rows, out: Rows, lse: Rows) -> None:
    """Fill ``out`` and ``lse`` from those of each share."""
    grid, sizes, fixed = _shared(splits, out)
    places = parts.tensor, logs.tensor, out.over(aligned(out)), lse.over(1)
    launch(_combine_softmax, grid, *places, *sizes, **fixed)


def add_parts(splits: int, parts: Rows, whole: Rows) -> None:
    """Fill ``whole`` with the sum of those of each share."""
    grid, sizes, fixed = _shared(splits, whole)
    launch(_add_parts, grid, parts.tensor, whole.over(aligned(whole)), *sizes, **fixed)
