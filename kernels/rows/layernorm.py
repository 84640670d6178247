"""The LayerNorm of rows; several rows per program.

T rows (tokens), C channels. Statistics are float32 and two-pass, mean first. ``s`` is x, or x + residual.
    forward    y = normalised(s) * weight + bias
    backward   ds = rstd * (g - mean(g) - normalised * mean(g * normalised)) with g = dy * weight;
               dweight = sum over rows of dy * normalised, dbias = sum of dy: one partial per program, then one sum.
               No atomics.
"""

import torch
import triton
import triton.language as tl

from ..machine.architecture import arch_of
from ..machine.launch import launch
from .blocks import layernorm_backward_config, layernorm_config, layernorm_programs
from .tiles import load_channels, load_tile, store_tile


@triton.jit
def statistics(x, channels, eps, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr):
    """Mean [BLOCK_M], 1 / standard deviation [BLOCK_M] and x normalised [BLOCK_M, BLOCK_C], zero past the channels
    as x is.
    """
    mean = tl.sum(x, 1) / channels
    centred = x - mean[:, None]
    if not EVEN_C:
        centred = tl.where((tl.arange(0, BLOCK_C) < channels)[None, :], centred, 0.0)
    rstd = tl.math.rsqrt(tl.sum(centred * centred, 1) / channels + eps)
    return mean, rstd, centred * rstd[:, None]


@triton.jit
def _layernorm_fwd(
    x, residual, weight, bias, base, layer_scale, row_scale, y, total, mean, rstd,
    x_stride, residual_stride, base_stride, rows, channels, sample_rows, eps,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr,
):  # fmt: skip
    """Pointers may be None. ``base`` + row_scale * layer_scale * (...) follows the norm: the residual of a post-norm
    branch.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask = row < rows
    s = load_tile(x, row, x_stride, row_mask, channels, BLOCK_C, EVEN_C)
    if residual is not None:
        s += load_tile(residual, row, residual_stride, row_mask, channels, BLOCK_C, EVEN_C)
        s = s.to(total.dtype.element_ty).to(tl.float32)  # what the backward will read: its mean must be that of these
        store_tile(total, row, channels, s, row_mask, channels, BLOCK_C, EVEN_C)
    row_mean, row_rstd, normalised = statistics(s, channels, eps, BLOCK_C, EVEN_C)
    out = normalised * load_channels(weight, 1.0, channels, BLOCK_C, EVEN_C)[None, :]
    out += load_channels(bias, 0.0, channels, BLOCK_C, EVEN_C)[None, :]
    if layer_scale is not None:
        out *= load_channels(layer_scale, 1.0, channels, BLOCK_C, EVEN_C)[None, :]
    if row_scale is not None:
        out *= tl.load(row_scale + row // sample_rows, mask=row_mask, other=0.0).to(tl.float32)[:, None]
    if base is not None:
        out += load_tile(base, row, base_stride, row_mask, channels, BLOCK_C, EVEN_C)
    store_tile(y, row, channels, out, row_mask, channels, BLOCK_C, EVEN_C)
    if mean is not None:
        tl.store(mean + row, row_mean, mask=row_mask)
        tl.store(rstd + row, row_rstd, mask=row_mask)


@triton.jit
def _layernorm_bwd(
    dy, dtotal, s, mean, rstd, weight, bias, row_scale, dx, normed, dweight, dbias,
    dy_stride, dtotal_stride, s_stride, rows, channels, sample_rows,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr,
):  # fmt: skip
    """A program takes every num_programs-th block of rows and leaves one partial [C] of dweight and dbias.

    ``dtotal`` (or None) is added to dx. ``normed`` (or None) receives normalised(s) * weight + bias, which a caller
    did not keep.
    """
    scale = load_channels(weight, 1.0, channels, BLOCK_C, EVEN_C)
    sum_w = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    sum_b = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.num_programs(0)):
        row = block * BLOCK_M + tl.arange(0, BLOCK_M)
        row_mask = row < rows
        row_mean = tl.load(mean + row, mask=row_mask, other=0.0)
        row_rstd = tl.load(rstd + row, mask=row_mask, other=0.0)
        normalised = (load_tile(s, row, s_stride, row_mask, channels, BLOCK_C, EVEN_C) - row_mean[:, None]) * row_rstd[
            :, None
        ]
        grad = load_tile(
            dy, row, dy_stride, row_mask, channels, BLOCK_C, EVEN_C
        )  # zero outside, so the sums need no mask
        if row_scale is not None:
            grad *= tl.load(row_scale + row // sample_rows, mask=row_mask, other=0.0).to(tl.float32)[:, None]
        sum_w += grad * normalised
        sum_b += grad
        if normed is not None:
            out = normalised * scale[None, :] + load_channels(bias, 0.0, channels, BLOCK_C, EVEN_C)[None, :]
            store_tile(normed, row, channels, out, row_mask, channels, BLOCK_C, EVEN_C)
        grad *= scale[None, :]
        along = tl.sum(grad * normalised, 1) / channels
        level = tl.sum(grad, 1) / channels
        grad = (grad - level[:, None] - normalised * along[:, None]) * row_rstd[:, None]
        if dtotal is not None:
            grad += load_tile(dtotal, row, dtotal_stride, row_mask, channels, BLOCK_C, EVEN_C)
        store_tile(dx, row, channels, grad, row_mask, channels, BLOCK_C, EVEN_C)
    c = tl.arange(0, BLOCK_C)
    partial = tl.program_id(0).to(tl.int64) * channels + c
    tl.store(dweight + partial, tl.sum(sum_w, 0), mask=c < channels)
    tl.store(dbias + partial, tl.sum(sum_b, 0), mask=c < channels)


def _row_stride(rows):
    return 0 if rows is None else rows.stride(0)


def normalise_rows(
    x,
    weight,
    bias,
    eps,
    *,
    residual=None,
    base=None,
    layer_scale=None,
    row_scale=None,
    y,
    total=None,
    mean=None,
    rstd=None,
):
    """Launch the forward on rows (T, C). ``y`` and ``total`` are written, contiguous; so are ``mean`` and ``rstd``
    where given.

    With ``base``: y = base + row_scale * layer_scale * norm(x), row_scale having one entry per T / len(row_scale) rows.
    """
    count, channels = x.shape
    sample_rows = max(1, count // max(1, row_scale.numel())) if row_scale is not None else 1
    block_c, config = layernorm_config(channels, arch_of(x))
    launch(
        _layernorm_fwd, (triton.cdiv(count, config.block_m),),
        x, residual, weight, bias, base, layer_scale, row_scale, y, total, mean, rstd,
        _row_stride(x), _row_stride(residual), _row_stride(base), count, channels, sample_rows, eps,
        BLOCK_M=config.block_m, BLOCK_C=block_c, EVEN_C=block_c == channels, num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip


def normalise_rows_backward(dy, s, mean, rstd, weight, *, dtotal=None, bias=None, row_scale=None, dx, normed=None):
    """Launch the backward on rows (T, C); ``dx`` and ``normed`` are written.

    Returns dweight and dbias, (C,) float32.
    """
    count, channels = s.shape
    sample_rows = max(1, count // max(1, row_scale.numel())) if row_scale is not None else 1
    block_c, config = layernorm_backward_config(channels, arch_of(s))
    programs = min(triton.cdiv(count, config.block_m), layernorm_programs(arch_of(s)))
    dweight, dbias = (torch.empty(programs, channels, dtype=torch.float32, device=s.device) for _ in range(2))
    launch(
        _layernorm_bwd, (programs,),
        dy, dtotal, s, mean, rstd, weight, bias, row_scale, dx, normed, dweight, dbias,
        _row_stride(dy), _row_stride(dtotal), _row_stride(s), count, channels, sample_rows,
        BLOCK_M=config.block_m, BLOCK_C=block_c, EVEN_C=block_c == channels, num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    return dweight.sum(0), dbias.sum(0)
