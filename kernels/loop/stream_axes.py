"""Streaming attention, gradient of decomposed positions: dS summed over the columns, and over the rows, of a region.

    logit = ... + h[query, row of the key] + w[query, column of the key]   (MViTv2, arXiv 2112.01526, equation 4)

One program owns BLOCK_M queries of one (group, head) and walks their keys, as in the backward of q; the sums are matrix
products with a one-hot matrix, so that nothing is atomic. Legend: see stream.py.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..machine.architecture import arch_of
from ..machine.blocks import head_tile
from ..machine.launch import launch
from ..machine.numbers import plain
from ..machine.tiles import LOG2E, key_range, load_pivot, load_scalars, visible
from .blocks import ragged_config
from .constants import constants
from .heads import load_head, products
from .problem import Problem, Rows, aligned
from .weighing import logit_slope


@triton.jit
def _store_sums(
    operand, args, sums, group, head, qi, first, extent, count,
    TOKENS: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """sums [BLOCK_M, BLOCK] by place within the region -> ``extent`` numbers of each query, from ``first`` [BLOCK_M]
    on; operand (pointer, 0, strides (image, y, x, head)), disguised."""
    pointer, _, strides = operand
    offsets, inside = TOKENS(group, qi, strides, args)
    j = tl.arange(0, BLOCK)[None, :] - first[:, None]
    mask = (qi < count)[:, None] & (j >= 0) & (j < extent)
    if PADDED:
        mask = mask & inside[:, None]
    where = pointer + (offsets + head.to(tl.int64) * plain(strides[3]))[:, None] + j
    tl.store(where, sums.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["extent_h", "extent_w"])
def _stream_bwd_axes(
    q, k, v, grad, lse, delta, dh, dw, args, padding, heads, N, M, extent_h, extent_w, scale,
    FIRST: tl.constexpr, PLACE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, NORM: tl.constexpr, LOGIT: tl.constexpr, PREPARE: tl.constexpr,
    SCORE: tl.constexpr, WEIGH: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """PLACE(ki, args) tells the row and the column of key ki within the region; FIRST(group, qi, args) those that are
    the first of query qi."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_M)
    block, row = pid % blocks, pid // blocks
    group, head = row // heads, row % heads
    qi = block * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)

    queries = load_head(
        q, args.q, padding, head, group, head, qi, N,
        Q_TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_N, LOOP.PADDED,
    )  # fmt: skip
    queries = NORM(queries, LOOP.QK.DIM)
    grads = load_head(
        grad, args.q, None, 0, group, head, qi, N,
        Q_TOKENS, LOOP.V, LOOP.OUT_ALIGN, not LOOP.EVEN_N, LOOP.PADDED,
    )  # fmt: skip
    deltas = load_scalars((delta, lse[1], lse[2]), args.q, group, head, qi, N, 0.0, Q_TOKENS, LOOP.PADDED)
    pivot = load_pivot(lse, args.q, group, head, qi, N, Q_TOKENS, LOOP.PADDED)
    state = PREPARE(group, qi[:, None], args.score)

    acc_h = tl.zeros([LOOP.BLOCK_M, BLOCK_H], tl.float32)
    acc_w = tl.zeros([LOOP.BLOCK_M, BLOCK_W], tl.float32)
    _, end = key_range(block, N, M, LOOP.BLOCK_M, LOOP.BLOCK_N, LOOP.CAUSAL)
    for start in tl.range(0, end, LOOP.BLOCK_N):
        ki = start + tl.arange(0, LOOP.BLOCK_N)
        keys = load_head(
            k, args.k, padding, heads + head, group, head, ki, M,
            K_TOKENS, LOOP.QK, LOOP.ALIGN, not LOOP.EVEN_M, LOOP.PADDED,
        )  # fmt: skip
        values = load_head(
            v, args.k, padding, 2 * heads + head, group, head, ki, M,
            K_TOKENS, LOOP.V, LOOP.ALIGN, not LOOP.EVEN_M, LOOP.PADDED,
        )  # fmt: skip
        s = products(queries, NORM(keys, LOOP.QK.DIM), LOOP.PRECISION)  # [BLOCK_M, BLOCK_N]
        s = LOGIT(s * (scale * LOG2E), args.logit)
        s = SCORE(s, group, head, qi[:, None], ki[None, :], args.score, state)
        s = visible(s, qi[:, None], ki[None, :], N, M, LOOP.CAUSAL, not LOOP.EVEN_M)
        weights = tl.math.exp2(s - pivot[:, None])
        counted, used = WEIGH(weights, group, head, qi[:, None], ki[None, :], args.weigh)
        slope = products(grads, values, LOOP.PRECISION)
        slope = logit_slope(counted, used, slope, deltas[:, None], LOOP.WEIGHED).to(q[0].dtype.element_ty)
        key_row, key_column = PLACE(ki, args.k)
        rows = (key_row[:, None] == tl.arange(0, BLOCK_H)[None, :]).to(q[0].dtype.element_ty)  # [BLOCK_N, BLOCK_H]
        columns = (key_column[:, None] == tl.arange(0, BLOCK_W)[None, :]).to(q[0].dtype.element_ty)
        acc_h = tl.dot(slope, rows, acc_h, input_precision=LOOP.PRECISION)
        acc_w = tl.dot(slope, columns, acc_w, input_precision=LOOP.PRECISION)

    first_h, first_w = FIRST(group, qi, args.q)
    _store_sums(dh, args.q, acc_h, group, head, qi, first_h, extent_h, N, Q_TOKENS, BLOCK_H, LOOP.PADDED)
    _store_sums(dw, args.q, acc_w, group, head, qi, first_w, extent_w, N, Q_TOKENS, BLOCK_W, LOOP.PADDED)


def stream_axes_gradient(
    s: Problem, q: Rows, k: Rows, v: Rows, grad: Rows, lse: Rows, delta: Tensor, dh: Rows, dw: Rows, first, place,
    region: tuple[int, int],
) -> None:  # fmt: skip
    """Fill ``dh`` and ``dw``, whose last dimension is the rows, or columns, that a query sees. ``delta`` is that of
    `stream_dq`; ``first`` and ``place`` are FIRST and PLACE of the kernel; ``region``: its rows and columns."""
    sides = (max(64, *region),) * 2 if s.multiple else region  # so that there are few kernels
    config = ragged_config(s.head_dim, q.tensor.element_size(), arch_of(q.tensor), True)
    align, grad_align = aligned(q, k, v), aligned(grad)
    launch(
        _stream_bwd_axes, (triton.cdiv(s.n, config.block_m) * s.groups * s.heads,),
        q.over(align), k.over(align), v.over(align), grad.over(grad_align), lse.over(1), delta, dh.over(1),
        dw.over(1), s.args, s.padding, s.heads, s.n, s.m, dh.tensor.shape[-1], dw.tensor.shape[-1],
        s.scale, FIRST=first, PLACE=place, BLOCK_H=head_tile(sides[0]), BLOCK_W=head_tile(sides[1]),
        **constants(s, q, config, align, grad_align),
    )  # fmt: skip
