"""The backward of `short_attention`: one launch, nothing saved by the forward but its inputs, deterministic.

    p = softmax(s)    dV = p^T dO    dP = dO V^T    dS = p (dP - rowsum(p dP))
    dQ = scale dS K   dK = scale dS^T Q   dbias = sum of dS over groups

A whole row of scores is in the tile, so p and rowsum(p dP) are recomputed in place: no output, no log-sum-exp, no
preprocessing kernel. One program owns a head and a chunk of groups. It walks the rows of a group in blocks with dK, dV
and the gradient of the bias in registers. Sums over groups (bias, padding vector, scale of a head) are partial per
program and added afterwards, in an order that is fixed on one GPU. Legend as in `short_attention`.
"""

import torch
import triton
import triton.language as tl

from ..loop import scores
from ..loop.problem import PLAIN_ROWS, aligned, dense_rows
from ..machine.architecture import arch_of
from ..machine.blocks import dot_precision, head_tile
from ..machine.launch import launch
from ..machine.tiles import LOG2E, load_rows, store_rows
from .blocks import bias_held, groups_per_program, short_backward_config, short_tile
from .short_attention import (
    bias_tile,
    dense_bias,
    dense_problem,
    logits,
    of_head,
    shared_offsets,
    tile_of,
    tile_rows,
)


@triton.jit(do_not_specialize=["groups"], do_not_specialize_on_alignment=["chunk"])
def _short_bwd(
    q, k, v, grad, dq, dk, dv, dbias, dpadding, dscale, bias, args, padding, head_scale,
    groups, heads, chunk, N, M, scale,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, NORM: tl.constexpr, SCORE: tl.constexpr,
    NORM_BACKWARD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    PADDED: tl.constexpr = padding is not None
    pid = tl.program_id(0)
    head = pid % heads
    part = pid // heads
    first = part * chunk
    rows = tl.arange(0, TILE.BLOCK_M)
    ki = tl.arange(0, TILE.BLOCK_N)
    d = tl.arange(0, TILE.BLOCK_D)
    queries, keys, values = of_head(q, head, TILE.ALIGN), of_head(k, head, TILE.ALIGN), of_head(v, head, TILE.ALIGN)
    grads, dqs = of_head(grad, head, TILE.ALIGN), of_head(dq, head, TILE.ALIGN)
    dks, dvs = of_head(dk, head, TILE.ALIGN), of_head(dv, head, TILE.ALIGN)
    if head_scale is not None:
        scale = tl.load(head_scale + head)
        scale_sum = tl.zeros([TILE.BLOCK_M], tl.float32)
    if PADDED:
        pad_dk = tl.zeros([TILE.BLOCK_D], tl.float32)
        pad_dv = tl.zeros([TILE.BLOCK_D], tl.float32)
    held = None
    if TILE.BIAS == "held":
        held = bias_tile(bias, first, head, rows, ki, N, M, True, TILE.BLOCK_N)
    if TILE.DBIAS == "held":
        SLOTS: tl.constexpr = TILE.TILE_ROWS // TILE.BLOCK_M
        slots = tl.arange(0, SLOTS)[:, None, None]
        ds_sum = tl.zeros([SLOTS, TILE.BLOCK_M, TILE.BLOCK_N], tl.float32)
    for step in tl.range(0, tl.minimum(chunk, groups - first)):
        group = first + step
        k_at, k_inside = K_TOKENS(group, ki, k[2], args.k)
        v_at = k_at if TILE.SHARED != "none" else K_TOKENS(group, ki, v[2], args.k)[0]
        k_valid = k_inside & (ki < M)
        outside = (ki < M) & (k_inside == 0)
        k_rows = tile_rows(keys, k_at, k_inside, ki < M, padding, heads + head, TILE)
        v_rows = tile_rows(values, v_at, k_inside, ki < M, padding, 2 * heads + head, TILE)
        k_rows = NORM((k_rows,), TILE.HEAD_DIM)[0]
        dk_sum = tl.zeros([TILE.BLOCK_N, TILE.BLOCK_D], tl.float32)
        dv_sum = tl.zeros([TILE.BLOCK_N, TILE.BLOCK_D], tl.float32)
        for block in tl.range(0, TILE.ROW_BLOCKS):
            qi = block * TILE.BLOCK_M + rows
            if TILE.SHARED == "qkv":
                q_at, q_inside = k_at, k_inside
            else:
                q_at, q_inside = Q_TOKENS(group, qi, q[2], args.q)
            grad_at = Q_TOKENS(group, qi, grad[2], args.q)[0]
            q_valid = q_inside & (qi < N)
            q_raw = tile_rows(queries, q_at, q_inside, qi < N, padding, head, TILE)
            g_rows = load_rows(grads, grad_at, q_valid, TILE.HEAD_DIM, TILE.ALIGN, 0, TILE.BLOCK_D)
            q_rows = NORM((q_raw,), TILE.HEAD_DIM)[0]
            product = tl.dot(q_rows, tl.trans(k_rows), input_precision=TILE.PRECISION)  # [BLOCK_M, BLOCK_N]
            s = logits(product, held, bias, group, head, qi, ki, args.score, N, M, scale * LOG2E, SCORE, TILE)
            top = tl.max(s, 1)
            p = tl.exp2(s - tl.where(top == float("-inf"), 0.0, top)[:, None])
            total = tl.sum(p, 1)
            p *= (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]
            dv_sum += tl.dot(tl.trans(p.to(g_rows.dtype)), g_rows, input_precision=TILE.PRECISION)  # [BLOCK_N, BLOCK_D]
            if TILE.ROW_BLOCKS == 1:  # at once, which frees the registers
                dv_at = k_at if TILE.SHARED != "none" else K_TOKENS(group, ki, dv[2], args.k)[0]
                store_rows(dvs, dv_at, dv_sum, k_valid, TILE.HEAD_DIM, TILE.ALIGN, 0, TILE.BLOCK_D)
                if PADDED:
                    pad_dv += tl.sum(tl.where(outside[:, None], dv_sum, 0.0), 0)
            dp = tl.dot(g_rows, tl.trans(v_rows), input_precision=TILE.PRECISION)
            ds = p * (dp - tl.sum(p * dp, 1)[:, None])  # zero in rows without a gradient: padding and rows past N
            if TILE.DBIAS == "held":
                if TILE.ROW_BLOCKS == 1:
                    ds_sum += ds[None, :, :]
                else:
                    ds_sum += tl.where(slots == block, ds[None, :, :], 0.0)
            elif TILE.DBIAS == "group":
                place = dbias + (group.to(tl.int64) * heads + head) * (TILE.TILE_ROWS * TILE.BLOCK_N)
                tl.store(place + qi[:, None] * TILE.BLOCK_N + ki[None, :], ds)
            low = ds.to(q_rows.dtype)
            dk_sum += tl.dot(tl.trans(low), q_rows, input_precision=TILE.PRECISION)
            dq_rows = tl.dot(low, k_rows, input_precision=TILE.PRECISION)  # [BLOCK_M, BLOCK_D]
            if TILE.NORMED:  # once more: loading them again costs less than registers held since
                q_raw = tile_rows(queries, q_at, q_inside, qi < N, padding, head, TILE)
                q_rows = NORM((q_raw,), TILE.HEAD_DIM)[0]
            if head_scale is not None:
                scale_sum += tl.sum(dq_rows * q_rows.to(tl.float32), 1)
            dq_rows = NORM_BACKWARD((dq_rows * scale,), (q_raw,), TILE.HEAD_DIM)[0]
            dq_at = q_at if TILE.SHARED == "qkv" else Q_TOKENS(group, qi, dq[2], args.q)[0]
            store_rows(dqs, dq_at, dq_rows, q_valid, TILE.HEAD_DIM, TILE.ALIGN, 0, TILE.BLOCK_D)
        if TILE.ROW_BLOCKS > 1:
            dv_at = k_at if TILE.SHARED != "none" else K_TOKENS(group, ki, dv[2], args.k)[0]
            store_rows(dvs, dv_at, dv_sum, k_valid, TILE.HEAD_DIM, TILE.ALIGN, 0, TILE.BLOCK_D)
            if PADDED:
                pad_dv += tl.sum(tl.where(outside[:, None], dv_sum, 0.0), 0)
        dk_sum *= scale
        if TILE.NORMED:
            k_raw = tile_rows(keys, k_at, k_inside, ki < M, padding, heads + head, TILE)
            dk_sum = NORM_BACKWARD((dk_sum,), (k_raw,), TILE.HEAD_DIM)[0]
        dk_at = k_at if TILE.SHARED != "none" else K_TOKENS(group, ki, dk[2], args.k)[0]
        store_rows(dks, dk_at, dk_sum, k_valid, TILE.HEAD_DIM, TILE.ALIGN, 0, TILE.BLOCK_D)
        if PADDED:
            pad_dk += tl.sum(tl.where(outside[:, None], dk_sum, 0.0), 0)
    if PADDED:
        place = dpadding + (part.to(tl.int64) * 2 * heads + head) * TILE.HEAD_DIM + d
        tl.store(place, pad_dk, mask=d < TILE.HEAD_DIM)
        tl.store(place + heads * TILE.HEAD_DIM, pad_dv, mask=d < TILE.HEAD_DIM)
    if head_scale is not None:
        tl.store(dscale + part * heads + head, tl.sum(scale_sum, 0))
    if TILE.DBIAS == "held":
        place = dbias + (part.to(tl.int64) * heads + head) * (TILE.TILE_ROWS * TILE.BLOCK_N)
        places = (slots * TILE.BLOCK_M + rows[None, :, None]) * TILE.BLOCK_N + ki[None, None, :]
        tl.store(place + places, ds_sum)


def run_backward(problem, grad, q, k, v, dq, dk, dv, *, bias=None, bias_grad=False):
    """Launch the backward on `Rows`; writes ``dq``, ``dk``, ``dv``.

    Returns:
        (dbias, dpadding, dscale), float32 and summed over groups, or None where there is nothing to sum: dbias
        (H, rows, columns) of the padded tile, (G, H, rows, columns) for a bias that differs between groups; dpadding
        (3, H, D), zero for q; dscale (H,).
    """
    p = problem
    rows, columns = short_tile(p.n, p.m)
    arch = arch_of(q.tensor)
    config = short_backward_config(rows, columns, p.head_dim, q.tensor.element_size(), arch, p.head_scale is not None)
    row_blocks = -(-p.n // config.block_m)
    walks = row_blocks == 1 or bias_grad or p.padding is not None or p.head_scale is not None
    chunk = groups_per_program(p.groups, p.heads, arch) if walks else 1
    parts = -(-p.groups // chunk)
    align = aligned(q, k, v, grad, dq, dk, dv)
    kind = "none"
    if bias_grad:
        kind = "group" if bias.strides[0] else "held"
    sums = q.tensor.new_empty(0, dtype=torch.float32)
    dbias = sums.new_empty((p.groups if kind == "group" else parts, p.heads, rows, columns)) if bias_grad else None
    dpadding = None if p.padding is None else sums.new_empty((parts, 2, p.heads, p.head_dim))
    dscale = None if p.head_scale is None else sums.new_empty((parts, p.heads))
    operands = (q, k, v, grad, dq, dk, dv)
    # Offsets computed again cost less than those of many keys held in registers throughout the walk over rows.
    shared = shared_offsets(p, config.block_m, columns, (q, dq), (k, v, dk, dv)) if row_blocks == 1 else "none"
    bias_kind = bias.kind if bias else "none"
    if bias_kind == "held" and not bias_held(row_blocks, p.head_dim, p.padding is None and p.head_scale is None):
        bias_kind = "baked"
    tile = tile_of(
        HEAD_DIM=p.head_dim, BLOCK_M=config.block_m, BLOCK_N=columns, BLOCK_D=head_tile(p.head_dim),
        ROW_BLOCKS=row_blocks, TILE_ROWS=rows, ALIGN=align, NORMED=p.norm is not PLAIN_ROWS, BIAS=bias_kind, DBIAS=kind,
        SHARED=shared, PRECISION=dot_precision(q.tensor.dtype),
    )  # fmt: skip
    launch(
        _short_bwd, (parts * p.heads,),
        *(x.over(align) for x in operands), dbias, dpadding, dscale, bias and bias[:2], p.args, p.padding,
        p.head_scale, p.groups, p.heads, chunk, p.n, p.m, p.scale,
        Q_TOKENS=p.q_tokens, K_TOKENS=p.k_tokens, NORM=p.norm.forward, SCORE=p.score, NORM_BACKWARD=p.norm.backward,
        TILE=tile, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if dbias is not None and kind != "group":
        dbias = dbias.sum(0)
    if dpadding is not None:
        dpadding = torch.cat((torch.zeros_like(dpadding[0, :1]), dpadding.sum(0)))
    return dbias, dpadding, None if dscale is None else dscale.sum(0)


def short_backward(grad, q, k, v, dq, dk, dv, *, scale, bias=None, bias_grad=False, score=scores.plain, score_args=()):
    """Dense attention's gradients, where `fits` holds.

    Args:
        grad: gradient of the output, (B, H, N, D) with a last stride of 1.
        dq, dk, dv: like q, k, v; written.
        bias_grad: whether the gradient of ``bias`` is wanted.

    Returns:
        The gradient of ``bias`` in its shape, float32, or None.
    """
    problem = dense_problem(q, k, scale, score, score_args)
    operands = [dense_rows(x) for x in (grad, q, k, v, dq, dk, dv)]
    if bias_grad and bias.shape[0] > 1 and bias.stride(0) == 0:
        bias = bias.contiguous()  # expanded by the caller, who wants a gradient for each entry
    dbias = run_backward(problem, *operands, bias=dense_bias(bias, problem), bias_grad=bias_grad)[0]
    if dbias is None:
        return None
    dbias = dbias if dbias.dim() == 4 else dbias[None]
    return dbias[..., : q.shape[2], : k.shape[2]].sum_to_size(bias.shape)
