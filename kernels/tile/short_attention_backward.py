"""The backward of `short_attention`: one launch, nothing saved by the forward but its inputs, deterministic.

    p = softmax(s)    dV = p^T dO    dP = dO V^T    dS = p (dP - rowsum(p dP))
    dQ = scale dS K   dK = scale dS^T Q   dbias = sum of dS over groups

A whole row of scores is in the tile, so p and rowsum(p dP) are recomputed in place: no output, no log-sum-exp, no
preprocessing kernel. One program owns a head and a chunk of groups. It walks the rows of a group in blocks with dK, dV
and the gradient of the bias in registers. Sums over groups (bias, padding vector, cosine scale) are partial per program
and added afterwards, in an order that is fixed on one GPU. Legend as in `short_attention`.
"""

import torch
import triton
import triton.language as tl

from ..loop import scores
from ..loop.problem import aligned, dense_rows
from ..machine.architecture import arch_of
from ..machine.blocks import dot_precision, head_tile
from ..machine.launch import launch
from ..machine.tiles import LOG2E, gather_rows, load_rows, normalize, normalize_backward, store_rows
from .blocks import bias_held, groups_per_program, short_backward_config, short_tile
from .short_attention import bias_tile, dense_bias, dense_problem, logits, shared_offsets


@triton.jit(do_not_specialize=["groups"], do_not_specialize_on_alignment=["chunk"])
def _short_bwd(
    q, k, v, grad, dq, dk, dv, dbias, dpadding, dcosine, bias, cosine, padding,
    q_strides, k_strides, v_strides, grad_strides, dq_strides, dk_strides, dv_strides, bias_strides,
    q_args, k_args, score_args,
    groups, heads, chunk, N, M, scale,
    Q_TOKENS: tl.constexpr, K_TOKENS: tl.constexpr, SCORE: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, ROW_BLOCKS: tl.constexpr,
    TILE_ROWS: tl.constexpr, ALIGN: tl.constexpr, BIAS: tl.constexpr, DBIAS: tl.constexpr,
    SHARED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    PADDED: tl.constexpr = padding is not None
    COSINE: tl.constexpr = cosine is not None
    pid = tl.program_id(0)
    head = pid % heads
    part = pid // heads
    first = part * chunk
    rows = tl.arange(0, BLOCK_M)
    ki = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    q += head.to(tl.int64) * q_strides[0] * ALIGN
    k += head.to(tl.int64) * k_strides[0] * ALIGN
    v += head.to(tl.int64) * v_strides[0] * ALIGN
    grad += head.to(tl.int64) * grad_strides[0] * ALIGN
    dq += head.to(tl.int64) * dq_strides[0] * ALIGN
    dk += head.to(tl.int64) * dk_strides[0] * ALIGN
    dv += head.to(tl.int64) * dv_strides[0] * ALIGN
    if COSINE:
        scale = tl.load(cosine + head)
        scale_sum = tl.zeros([BLOCK_M], tl.float32)
    if PADDED:
        pad_dk = tl.zeros([BLOCK_D], tl.float32)
        pad_dv = tl.zeros([BLOCK_D], tl.float32)
    held = None
    if BIAS == "held":
        held = bias_tile(bias, first, head, rows, ki, bias_strides, N, M, True, BLOCK_N)
    if DBIAS == "held":
        SLOTS: tl.constexpr = TILE_ROWS // BLOCK_M
        slots = tl.arange(0, SLOTS)[:, None, None]
        ds_sum = tl.zeros([SLOTS, BLOCK_M, BLOCK_N], tl.float32)
    for step in tl.range(0, tl.minimum(chunk, groups - first)):
        group = first + step
        k_at, k_inside = K_TOKENS(group, ki, k_strides[1], k_args)
        v_at = k_at if SHARED != "none" else K_TOKENS(group, ki, v_strides[1], k_args)[0]
        k_valid = k_inside & (ki < M)
        outside = (ki < M) & (k_inside == 0)
        k_rows = gather_rows(k, k_at, k_inside, ki < M, padding, heads + head, HEAD_DIM, ALIGN, 0, BLOCK_D)
        v_rows = gather_rows(v, v_at, k_inside, ki < M, padding, 2 * heads + head, HEAD_DIM, ALIGN, 0, BLOCK_D)
        if COSINE:
            k_unit, k_inverse = normalize(k_rows)
            k_rows = k_unit.to(k_rows.dtype)
        dk_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        dv_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for block in tl.range(0, ROW_BLOCKS):
            qi = block * BLOCK_M + rows
            if SHARED == "qkv":
                q_at, q_inside = k_at, k_inside
            else:
                q_at, q_inside = Q_TOKENS(group, qi, q_strides[1], q_args)
            grad_at = Q_TOKENS(group, qi, grad_strides[1], q_args)[0]
            q_valid = q_inside & (qi < N)
            q_rows = gather_rows(q, q_at, q_inside, qi < N, padding, head, HEAD_DIM, ALIGN, 0, BLOCK_D)
            g_rows = load_rows(grad, grad_at, q_valid, HEAD_DIM, ALIGN, 0, BLOCK_D)
            if COSINE:
                q_unit, q_inverse = normalize(q_rows)
                q_rows = q_unit.to(q_rows.dtype)
            product = tl.dot(q_rows, tl.trans(k_rows), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
            s = logits(
                product, held, bias, group, head, qi, ki, bias_strides, score_args, N, M, scale * LOG2E,
                SCORE, BIAS, BLOCK_N,
            )  # fmt: skip
            top = tl.max(s, 1)
            p = tl.exp2(s - tl.where(top == float("-inf"), 0.0, top)[:, None])
            total = tl.sum(p, 1)
            p *= (1.0 / tl.where(total == 0.0, 1.0, total))[:, None]
            dv_sum += tl.dot(tl.trans(p.to(g_rows.dtype)), g_rows, input_precision=PRECISION)  # [BLOCK_N, BLOCK_D]
            if ROW_BLOCKS == 1:  # at once, which frees the registers
                dv_at = k_at if SHARED != "none" else K_TOKENS(group, ki, dv_strides[1], k_args)[0]
                store_rows(dv, dv_at, dv_sum, k_valid, HEAD_DIM, ALIGN, 0, BLOCK_D)
                if PADDED:
                    pad_dv += tl.sum(tl.where(outside[:, None], dv_sum, 0.0), 0)
            dp = tl.dot(g_rows, tl.trans(v_rows), input_precision=PRECISION)
            ds = p * (dp - tl.sum(p * dp, 1)[:, None])  # zero in rows without a gradient: padding and rows past N
            if DBIAS == "held":
                if ROW_BLOCKS == 1:
                    ds_sum += ds[None, :, :]
                else:
                    ds_sum += tl.where(slots == block, ds[None, :, :], 0.0)
            elif DBIAS == "group":
                place = dbias + (group.to(tl.int64) * heads + head) * (TILE_ROWS * BLOCK_N)
                tl.store(place + qi[:, None] * BLOCK_N + ki[None, :], ds)
            low = ds.to(q_rows.dtype)
            dk_sum += tl.dot(tl.trans(low), q_rows, input_precision=PRECISION)
            dq_rows = tl.dot(low, k_rows, input_precision=PRECISION)  # [BLOCK_M, BLOCK_D]
            if COSINE:  # the unit rows once more: loading them again costs less than registers held since
                q_rows = gather_rows(q, q_at, q_inside, qi < N, padding, head, HEAD_DIM, ALIGN, 0, BLOCK_D)
                q_unit, q_inverse = normalize(q_rows)
                scale_sum += tl.sum(dq_rows * q_unit, 1)
                dq_rows = normalize_backward(dq_rows * scale, q_unit, q_inverse)
            else:
                dq_rows *= scale
            dq_at = q_at if SHARED == "qkv" else Q_TOKENS(group, qi, dq_strides[1], q_args)[0]
            store_rows(dq, dq_at, dq_rows, q_valid, HEAD_DIM, ALIGN, 0, BLOCK_D)
        if ROW_BLOCKS > 1:
            dv_at = k_at if SHARED != "none" else K_TOKENS(group, ki, dv_strides[1], k_args)[0]
            store_rows(dv, dv_at, dv_sum, k_valid, HEAD_DIM, ALIGN, 0, BLOCK_D)
            if PADDED:
                pad_dv += tl.sum(tl.where(outside[:, None], dv_sum, 0.0), 0)
        dk_sum *= scale
        if COSINE:
            k_rows = gather_rows(k, k_at, k_inside, ki < M, padding, heads + head, HEAD_DIM, ALIGN, 0, BLOCK_D)
            k_unit, k_inverse = normalize(k_rows)
            dk_sum = normalize_backward(dk_sum, k_unit, k_inverse)
        dk_at = k_at if SHARED != "none" else K_TOKENS(group, ki, dk_strides[1], k_args)[0]
        store_rows(dk, dk_at, dk_sum, k_valid, HEAD_DIM, ALIGN, 0, BLOCK_D)
        if PADDED:
            pad_dk += tl.sum(tl.where(outside[:, None], dk_sum, 0.0), 0)
    if PADDED:
        place = dpadding + (part.to(tl.int64) * 2 * heads + head) * HEAD_DIM + d
        tl.store(place, pad_dk, mask=d < HEAD_DIM)
        tl.store(place + heads * HEAD_DIM, pad_dv, mask=d < HEAD_DIM)
    if COSINE:
        tl.store(dcosine + part * heads + head, tl.sum(scale_sum, 0))
    if DBIAS == "held":
        place = dbias + (part.to(tl.int64) * heads + head) * (TILE_ROWS * BLOCK_N)
        places = (slots * BLOCK_M + rows[None, :, None]) * BLOCK_N + ki[None, None, :]
        tl.store(place + places, ds_sum)


def run_backward(problem, grad, q, k, v, dq, dk, dv, *, bias=None, bias_grad=False):
    """Launch the backward on `Rows`; writes ``dq``, ``dk``, ``dv``.

    Returns:
        (dbias, dpadding, dcosine), float32 and summed over groups, or None where there is nothing to sum: dbias
        (H, rows, columns) of the padded tile, (G, H, rows, columns) for a bias that differs between groups; dpadding
        (3, H, D), zero for q; dcosine (H,).
    """
    p = problem
    rows, columns = short_tile(p.n, p.m)
    arch = arch_of(q.tensor)
    config = short_backward_config(rows, columns, p.head_dim, q.tensor.element_size(), arch, p.cosine is not None)
    row_blocks = -(-p.n // config.block_m)
    walks = row_blocks == 1 or bias_grad or p.padding is not None or p.cosine is not None
    chunk = groups_per_program(p.groups, p.heads, arch) if walks else 1
    parts = -(-p.groups // chunk)
    align = aligned(q, k, v, grad, dq, dk, dv)
    kind = "none"
    if bias_grad:
        kind = "group" if bias.strides[0] else "held"
    sums = q.tensor.new_empty(0, dtype=torch.float32)
    dbias = sums.new_empty((p.groups if kind == "group" else parts, p.heads, rows, columns)) if bias_grad else None
    dpadding = None if p.padding is None else sums.new_empty((parts, 2, p.heads, p.head_dim))
    dcosine = None if p.cosine is None else sums.new_empty((parts, p.heads))
    operands = (q, k, v, grad, dq, dk, dv)
    # Offsets computed again cost less than those of many keys held in registers throughout the walk over rows.
    shared = shared_offsets(p, config.block_m, columns, (q, dq), (k, v, dk, dv)) if row_blocks == 1 else "none"
    bias_kind = bias.kind if bias else "none"
    if bias_kind == "held" and not bias_held(row_blocks, p.head_dim, p.padding is None and p.cosine is None):
        bias_kind = "baked"
    launch(
        _short_bwd, (parts * p.heads,),
        *(x.tensor for x in operands), dbias, dpadding, dcosine, bias and bias.tensor, p.cosine, p.padding,
        *(x.over(align) for x in operands), bias.strides if bias else (), p.q_args, p.k_args, p.score_args,
        p.groups, p.heads, chunk, p.n, p.m, p.scale,
        Q_TOKENS=p.q_tokens, K_TOKENS=p.k_tokens, SCORE=p.score, HEAD_DIM=p.head_dim,
        BLOCK_M=config.block_m, BLOCK_N=columns, BLOCK_D=head_tile(p.head_dim), ROW_BLOCKS=row_blocks, TILE_ROWS=rows,
        ALIGN=align, BIAS=bias_kind, DBIAS=kind, SHARED=shared,
        PRECISION=dot_precision(q.tensor.dtype), num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if dbias is not None and kind != "group":
        dbias = dbias.sum(0)
    if dpadding is not None:
        dpadding = torch.cat((torch.zeros_like(dpadding[0, :1]), dpadding.sum(0)))
    return dbias, dpadding, None if dcosine is None else dcosine.sum(0)


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
