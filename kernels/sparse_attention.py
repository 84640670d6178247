"""Attention of sampled queries over the keys of a short sequence, with gates that a sampler learns (STRec, Li et al.,
CIKM 2023, sections 3.2.1 and 3.2.2).

    S = scale * q k^T + strength * g_i (h_j - max h)     P = softmax(S)     out = P v
    dS = P (dP - rowsum(P dP))     dg_i = strength * sum_j dS_ij h_j     dh_j = strength * sum_i dS_ij g_i

The gates g of queries and h of keys are the rank-one mask (g_i h_j - 1) * strength, shifted in each row so that
float32 holds the scores beside it. Legend: B sequences, H heads, N rows of q, of which K attend, M keys, D head dim.
BLOCK_N >= M and BLOCK_D >= D are powers of two: a row of scores is in one tile, and neither scores nor mask reach
memory. Gradients of gates are partial per head and added afterwards in a fixed order. A row of q that attends twice
has the sum of both gradients, added in their order by the one program of its sequence and head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .loop.problem import aligned, dense_rows, unit_last
from .machine.architecture import arch_of
from .machine.blocks import dot_precision, head_tile
from .machine.choices import choice
from .machine.launch import launch
from .machine.tiles import LOG2E, load_rows, store_rows
from .tile.blocks import short_columns, sparse_backward_config, sparse_forward_config


@triton.jit
def _weights(
    product, query_gate, key_gate, key_mask, sequence, qi, ki, K, M, scale, strength
):  # fmt: skip
    """[BLOCK_M, BLOCK_N] of q k^T -> softmax, gates of the queries [BLOCK_M] and keys [BLOCK_N], less the largest."""
    allowed = ki < M
    if key_mask is not None:
        allowed = tl.load(key_mask + sequence.to(tl.int64) * M + ki, mask=allowed, other=0) != 0
    s = product * (scale * LOG2E)
    g, h = tl.zeros_like(qi), tl.zeros_like(ki)
    if query_gate is not None:
        g = tl.load(query_gate + sequence.to(tl.int64) * K + qi, mask=qi < K, other=0.0).to(tl.float32)
        h = tl.load(key_gate + sequence.to(tl.int64) * M + ki, mask=ki < M, other=0.0).to(tl.float32)
        largest = tl.max(tl.where(allowed, h, float("-inf")), 0)
        h = tl.where(allowed, h - largest, 0.0)
        s += (strength * LOG2E) * (g[:, None] * h[None, :])
    s = tl.where(allowed[None, :], s, float("-inf"))
    top = tl.max(s, 1)
    p = tl.exp2(s - tl.where(top == float("-inf"), 0.0, top)[:, None])  # no key at all: exp2(-inf - 0) = 0
    total = tl.sum(p, 1)
    return p * (1.0 / tl.where(total == 0.0, 1.0, total))[:, None], g, h


@triton.jit
def _places(index, sequence, qi, K):
    """Rows of q that the queries ``qi`` are."""
    place = qi.to(tl.int64)
    if index is not None:
        place = tl.load(index + sequence.to(tl.int64) * K + qi, mask=qi < K, other=0)
    return place


@triton.jit
def _sparse_fwd(
    q, k, v, out, index, key_mask, query_gate, key_gate, q_strides, k_strides, v_strides, out_strides,
    heads, K, M, scale, strength,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    ROW_BLOCKS: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    head, row = pid % heads, pid // heads
    sequence = row // ROW_BLOCKS
    qi = row % ROW_BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    ki = tl.arange(0, BLOCK_N)
    q_at = _rows_of(q_strides, sequence, head, _places(index, sequence, qi, K))
    q_rows = load_rows(q, q_at, qi < K, HEAD_DIM, ALIGN, 0, BLOCK_D)
    k_rows = load_rows(k, _rows_of(k_strides, sequence, head, ki), ki < M, HEAD_DIM, ALIGN, 0, BLOCK_D)
    v_rows = load_rows(v, _rows_of(v_strides, sequence, head, ki), ki < M, HEAD_DIM, ALIGN, 0, BLOCK_D)
    product = tl.dot(q_rows, tl.trans(k_rows), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    p = _weights(product, query_gate, key_gate, key_mask, sequence, qi, ki, K, M, scale, strength)[0]
    o = tl.dot(p.to(v_rows.dtype), v_rows, input_precision=PRECISION)  # [BLOCK_M, BLOCK_D]
    store_rows(out, _rows_of(out_strides, sequence, head, qi), o, qi < K, HEAD_DIM, ALIGN, 0, BLOCK_D)


@triton.jit
def _rows_of(strides, sequence, head, i):
    """Places of rows ``i`` in units of ALIGN; strides (head, (sequence, row))."""
    start = sequence.to(tl.int64) * strides[1][0] + head.to(tl.int64) * strides[0]
    return start + i.to(tl.int64) * strides[1][1]


@triton.jit
def _repeats(index, place, sequence, qi, block, K, BLOCK_M: tl.constexpr):
    """[BLOCK_M], 1 where an earlier query is the same row of q."""
    found = tl.zeros_like(qi)
    for earlier in tl.range(0, block + 1):
        other = earlier * BLOCK_M + tl.arange(0, BLOCK_M)
        same = place[:, None] == _places(index, sequence, other, K)[None, :]
        found = tl.maximum(found, tl.max((same & (other[None, :] < qi[:, None])).to(tl.int32), 1))
    return tl.where(qi < K, found, 0)


@triton.jit
def _add_rows(
    pointer, at, rows, chosen, HEAD_DIM: tl.constexpr, ALIGN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Adds the ``chosen`` rows to memory one after the other: some may be one place, which this program has written."""
    for row in tl.range(0, BLOCK_M):
        tl.debug_barrier()  # what other threads have stored there is seen
        this = (tl.arange(0, BLOCK_M) == row) & chosen
        held = load_rows(pointer, at, this, HEAD_DIM, ALIGN, 0, BLOCK_D)
        tl.debug_barrier()  # several threads may hold an element, one stores it
        store_rows(pointer, at, held + rows, this, HEAD_DIM, ALIGN, 0, BLOCK_D)


@triton.jit
def _sparse_bwd(
    q, k, v, grad, dq, dk, dv, dquery_gate, dkey_gate, index, key_mask, query_gate, key_gate,
    q_strides, k_strides, v_strides, grad_strides, dq_strides, dk_strides, dv_strides,
    heads, K, M, scale, strength,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    ROW_BLOCKS: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    head, sequence = pid % heads, pid // heads
    ki = tl.arange(0, BLOCK_N)
    k_rows = load_rows(k, _rows_of(k_strides, sequence, head, ki), ki < M, HEAD_DIM, ALIGN, 0, BLOCK_D)
    v_rows = load_rows(v, _rows_of(v_strides, sequence, head, ki), ki < M, HEAD_DIM, ALIGN, 0, BLOCK_D)
    dk_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    if query_gate is not None:
        dh_sum = tl.zeros([BLOCK_N], tl.float32)
    for block in tl.range(0, ROW_BLOCKS):
        qi = block * BLOCK_M + tl.arange(0, BLOCK_M)
        place = _places(index, sequence, qi, K)
        q_rows = load_rows(q, _rows_of(q_strides, sequence, head, place), qi < K, HEAD_DIM, ALIGN, 0, BLOCK_D)
        g_rows = load_rows(grad, _rows_of(grad_strides, sequence, head, qi), qi < K, HEAD_DIM, ALIGN, 0, BLOCK_D)
        product = tl.dot(q_rows, tl.trans(k_rows), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        p, g, h = _weights(product, query_gate, key_gate, key_mask, sequence, qi, ki, K, M, scale, strength)
        dv_sum += tl.dot(tl.trans(p.to(g_rows.dtype)), g_rows, input_precision=PRECISION)
        dp = tl.dot(g_rows, tl.trans(v_rows), input_precision=PRECISION)
        ds = p * (dp - tl.sum(p * dp, 1)[:, None])  # zero in rows past K, which have no gradient
        if query_gate is not None:
            row = (sequence.to(tl.int64) * heads + head) * K + qi
            tl.store(dquery_gate + row, strength * tl.sum(ds * h[None, :], 1), mask=qi < K)
            dh_sum += tl.sum(ds * g[:, None], 0)
        low = ds.to(q_rows.dtype)
        dk_sum += tl.dot(tl.trans(low), q_rows, input_precision=PRECISION)
        dq_rows = tl.dot(low, k_rows, input_precision=PRECISION) * scale
        dq_at = _rows_of(dq_strides, sequence, head, place)
        if index is None:
            store_rows(dq, dq_at, dq_rows, qi < K, HEAD_DIM, ALIGN, 0, BLOCK_D)
        else:
            again = _repeats(index, place, sequence, qi, block, K, BLOCK_M)
            store_rows(dq, dq_at, dq_rows, (qi < K) & (again == 0), HEAD_DIM, ALIGN, 0, BLOCK_D)
            if tl.max(again, 0) > 0:
                _add_rows(dq, dq_at, dq_rows, again > 0, HEAD_DIM, ALIGN, BLOCK_M, BLOCK_D)
    dk_at, dv_at = _rows_of(dk_strides, sequence, head, ki), _rows_of(dv_strides, sequence, head, ki)
    store_rows(dk, dk_at, dk_sum * scale, ki < M, HEAD_DIM, ALIGN, 0, BLOCK_D)
    store_rows(dv, dv_at, dv_sum, ki < M, HEAD_DIM, ALIGN, 0, BLOCK_D)
    if query_gate is not None:
        row = (sequence.to(tl.int64) * heads + head) * M + ki
        tl.store(dkey_gate + row, strength * dh_sum, mask=ki < M)


@choice
def sparse_takes(keys, head_dim, itemsize, arch):
    """Whether registers hold a row of scores and, in the backward, two gradients of all keys: where the kernels compile
    without spills, which the tests hold them to."""
    if itemsize == 4:
        return keys <= 64 and head_dim <= 32
    return head_dim <= 64 and keys <= min(short_columns(arch), 256 if head_dim <= 32 else 128)


def fits(q, k):
    """Whether the kernels take these operands."""
    return sparse_takes(k.shape[2], q.shape[3], q.element_size(), arch_of(q))


def _tiles(q, k, index, config):
    """(queries, keys, row blocks) and the constants of both kernels."""
    queries, keys = q.shape[2] if index is None else index.shape[1], k.shape[2]
    row_blocks = -(-queries // config.block_m)
    constants = dict(
        HEAD_DIM=q.shape[3],
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_D=head_tile(q.shape[3]),
        ROW_BLOCKS=row_blocks,
        PRECISION=dot_precision(q.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return queries, keys, row_blocks, constants


def sparse_attention_outputs(q, k, v, index, key_mask, query_gate, key_gate, scale, strength):
    """(B, K, H, D), contiguous."""
    batch, heads, queries, head_dim = q.shape
    return q.new_empty((batch, queries if index is None else index.shape[1], heads, head_dim))


def sparse_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    key_mask: Tensor | None,
    query_gate: Tensor | None,
    key_gate: Tensor | None,
    scale: float,
    strength: float,
) -> Tensor:
    """q (B, H, N, D), k and v (B, H, M, D) of any strides; index (B, K) int64; key_mask (B, M) bool;
    query_gate (B, K), key_gate (B, M) -> (B, K, H, D)."""
    out = sparse_attention_outputs(q, k, v, index, key_mask, query_gate, key_gate, scale, strength)
    q, k, v = unit_last(q), unit_last(k), unit_last(v)
    index, key_mask, query_gate, key_gate = map(_contiguous, (index, key_mask, query_gate, key_gate))
    config = sparse_forward_config(out.shape[1], k.shape[2], q.shape[3], q.element_size(), arch_of(q))
    queries, keys, row_blocks, constants = _tiles(q, k, index, config)
    rows = [dense_rows(x) for x in (q, k, v, out.transpose(1, 2))]
    align = aligned(*rows)
    launch(
        _sparse_fwd, (q.shape[0] * row_blocks * q.shape[1],),
        q, k, v, out, index, key_mask, query_gate, key_gate, *(x.strides_over(align) for x in rows),
        q.shape[1], queries, keys, scale, strength, ALIGN=align, **constants,
    )  # fmt: skip
    return out


def sparse_attention_gradients(grad, out, q, k, v, index, key_mask, query_gate, key_gate, scale, strength, needs):
    """(dq, dk, dv, dquery_gate, dkey_gate), each like its input; empty where there is no such input."""
    tensors = (q, k, v, query_gate, key_gate)
    return tuple(q.new_empty(0) if x is None else x.new_empty(x.shape) for x in tensors)


def sparse_attention_backward(
    grad: Tensor,
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None,
    key_mask: Tensor | None,
    query_gate: Tensor | None,
    key_gate: Tensor | None,
    scale: float,
    strength: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `sparse_attention_forward`, recomputed from its inputs; deterministic."""
    dq = q.new_empty(q.shape) if index is None else q.new_zeros(q.shape)  # rows that do not attend have none
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    gates = run_backward(grad, q, k, v, dq, dk, dv, index, key_mask, query_gate, key_gate, scale, strength)
    return (
        dq,
        dk,
        dv,
        *(
            q.new_empty(0) if gate is None else partial.sum(1).to(gate.dtype)
            for gate, partial in zip((query_gate, key_gate), gates, strict=True)
        ),
    )


def run_backward(grad, q, k, v, dq, dk, dv, index, key_mask, query_gate, key_gate, scale, strength):
    """Fills dq, dk, dv; returns the gates' gradients of each head: (B, H, K), (B, H, M) float32, or None twice."""
    batch, heads = q.shape[:2]
    q, k, v, grad = (unit_last(x) for x in (q, k, v, grad))
    index, key_mask, query_gate, key_gate = map(_contiguous, (index, key_mask, query_gate, key_gate))
    config = sparse_backward_config(grad.shape[1], k.shape[2], q.shape[3], q.element_size(), arch_of(q))
    queries, keys, _, constants = _tiles(q, k, index, config)
    dquery_gate = dkey_gate = None
    if query_gate is not None:
        dquery_gate, dkey_gate = (
            torch.empty(batch, heads, size, dtype=torch.float32, device=q.device) for size in (queries, keys)
        )
    rows = [dense_rows(x) for x in (q, k, v, grad.transpose(1, 2), dq, dk, dv)]
    align = aligned(*rows)
    launch(
        _sparse_bwd, (batch * heads,),
        q, k, v, grad, dq, dk, dv, dquery_gate, dkey_gate, index, key_mask, query_gate, key_gate,
        *(x.strides_over(align) for x in rows), heads, queries, keys, scale, strength, ALIGN=align, **constants,
    )  # fmt: skip
    return dquery_gate, dkey_gate


def _contiguous(x):
    return None if x is None else x.contiguous()
