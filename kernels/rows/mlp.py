"""Linear layers of an MLP whose kernels hold whole rows: C channels of at most `WHOLE_ROW`, F hidden channels.

_norm_linear_fwd    act(norm(x) fc1^T + b1)
_mlp_fwd            both layers, the norm before or after them, scales and the residual
"""

import torch
import triton
import triton.language as tl

from ..machine.architecture import arch_of
from ..machine.blocks import dot_precision, head_tile
from ..machine.launch import launch
from .activations import activate
from .blocks import mlp_config, norm_linear_config
from .epilogues import activate_and_store
from .layernorm import statistics
from .matmul import load_columns
from .tiles import load_channels, load_tile, store_tile


@triton.jit
def _normalised_rows(
    x, weight, bias, mean, rstd, x_stride, row, rows, channels, eps, dtype: tl.constexpr,
    NORM: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr,
):  # fmt: skip
    """The operand of the first product [BLOCK_M, BLOCK_C]; stores its statistics where ``mean`` is given."""
    tile = load_tile(x, row, x_stride, row < rows, channels, BLOCK_C, EVEN_C)
    if NORM:
        row_mean, row_rstd, tile = statistics(tile, channels, eps, BLOCK_C, EVEN_C)
        tile = tile * load_channels(weight, 1.0, channels, BLOCK_C, EVEN_C)[None, :]
        tile += load_channels(bias, 0.0, channels, BLOCK_C, EVEN_C)[None, :]
        if mean is not None:
            tl.store(mean + row, row_mean, mask=row < rows)
            tl.store(rstd + row, row_rstd, mask=row < rows)
    return tile.to(dtype)


@triton.jit
def _load_weight(pointer, outer, inner, outers, inners, EVEN_OUTER: tl.constexpr, EVEN_INNER: tl.constexpr):
    """Entries (outer, inner) of a contiguous weight (outers, inners), as [inner, outer]."""
    where = pointer + outer.to(tl.int64)[None, :] * inners + inner[:, None]
    if EVEN_OUTER:
        if EVEN_INNER:
            return tl.load(where)
        return tl.load(where, mask=(inner < inners)[:, None], other=0.0)
    if EVEN_INNER:
        return tl.load(where, mask=(outer < outers)[None, :], other=0.0)
    return tl.load(where, mask=(outer < outers)[None, :] & (inner < inners)[:, None], other=0.0)


@triton.jit
def _norm_linear_fwd(
    x, norm_weight, norm_bias, mean, rstd, fc1, args, x_stride, rows, channels, hidden, eps,
    ACT: tl.constexpr, EXACT: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, EVEN_N: tl.constexpr,
):  # fmt: skip
    """A block of whole rows, normalised once, against all columns of the first layer.

    Args: those of `activate_and_store`.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dtype = fc1.dtype.element_ty
    a = _normalised_rows(
        x, norm_weight, norm_bias, mean, rstd, x_stride, row, rows, channels, eps, dtype, NORM, BLOCK_C, EVEN_C
    )
    c = tl.arange(0, BLOCK_C)
    for start in range(0, hidden, BLOCK_N):
        col = start + tl.arange(0, BLOCK_N)
        w = _load_weight(fc1, col, c, hidden, channels, EVEN_N, EVEN_C)  # [BLOCK_C, BLOCK_N]
        acc = tl.dot(a, w, input_precision=PRECISION)
        activate_and_store(acc, row, col, 0, rows, hidden, args, ACT, EXACT)


@triton.jit
def _mlp_fwd(
    x, norm_weight, norm_bias, fc1, fc1_bias, fc2, fc2_bias, layer_scale, row_scale, out,
    x_stride, rows, channels, hidden, sample_rows, eps,
    ACT: tl.constexpr, EXACT: tl.constexpr, POST_NORM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, EVEN_C: tl.constexpr, EVEN_N: tl.constexpr,
):  # fmt: skip
    """Plan "one": hidden blocks of BLOCK_N columns are made, activated and multiplied on in registers."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    dtype = fc1.dtype.element_ty
    a = _normalised_rows(
        x, norm_weight, norm_bias, None, None, x_stride, row, rows, channels, eps, dtype, not POST_NORM, BLOCK_C, EVEN_C
    )
    c = tl.arange(0, BLOCK_C)
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    for start in range(0, hidden, BLOCK_N):
        col = start + tl.arange(0, BLOCK_N)
        w1 = _load_weight(fc1, col, c, hidden, channels, EVEN_N, EVEN_C)  # [BLOCK_C, BLOCK_N]
        pre = tl.dot(a, w1, input_precision=PRECISION)
        pre += load_columns(fc1_bias, 0.0, col, hidden)[None, :]
        w2 = _load_weight(fc2, c, col, channels, hidden, EVEN_C, EVEN_N)  # [BLOCK_N, BLOCK_C]
        acc = tl.dot(activate(pre, ACT, EXACT).to(dtype), w2, acc, input_precision=PRECISION)
    acc += load_channels(fc2_bias, 0.0, channels, BLOCK_C, EVEN_C)[None, :]
    if POST_NORM:
        _, _, acc = statistics(acc, channels, eps, BLOCK_C, EVEN_C)
        acc = acc * load_channels(norm_weight, 1.0, channels, BLOCK_C, EVEN_C)[None, :]
        acc += load_channels(norm_bias, 0.0, channels, BLOCK_C, EVEN_C)[None, :]
    if layer_scale is not None:
        acc *= load_channels(layer_scale, 1.0, channels, BLOCK_C, EVEN_C)[None, :]
    if row_scale is not None:
        acc *= tl.load(row_scale + row // sample_rows, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    # The policy also keeps the compiler from taking this for the first load and holding the tile in registers all
    # the way.
    acc += load_tile(x, row, x_stride, row < rows, channels, BLOCK_C, EVEN_C, True)
    store_tile(out, row, channels, acc, row < rows, channels, BLOCK_C, EVEN_C)


def _constants(config, fc1, act):
    """What both kernels have in common when they are launched."""
    hidden, channels = fc1.shape
    block_c = head_tile(channels)
    return dict(
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        EVEN_N=hidden % config.block_n == 0,
        ACT=act,
        EXACT=fc1.dtype == torch.float32,
        PRECISION=dot_precision(fc1.dtype),
        BLOCK_C=block_c,
        EVEN_C=block_c == channels,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def norm_linear(rows, weight, bias, mean, rstd, fc1, args, eps, *, act, norm):
    """Launch the first layer on rows (T, C), normalised if ``norm``; ``mean`` and ``rstd`` are written where given.

    ``fc1`` (F, C), contiguous. args: those of `activate_and_store`.
    """
    (count, channels), hidden = rows.shape, fc1.shape[0]
    config = norm_linear_config(channels, fc1.element_size(), arch_of(rows))
    launch(
        _norm_linear_fwd, (triton.cdiv(count, config.block_m),),
        rows, weight, bias, mean, rstd, fc1, args, rows.stride(0), count, channels, hidden, eps,
        NORM=norm, **_constants(config, fc1, act),
    )  # fmt: skip


def whole_mlp(
    rows, weight, bias, fc1, fc1_bias, fc2, fc2_bias, layer_scale, row_scale, out, sample_rows, eps, *, act, post_norm
):
    """Launch both layers on rows (T, C); ``out``, contiguous, is written. ``row_scale`` has an entry for each
    ``sample_rows`` rows.
    """
    (count, channels), hidden = rows.shape, fc1.shape[0]
    config = mlp_config(channels, fc1.element_size(), arch_of(rows))
    launch(
        _mlp_fwd, (triton.cdiv(count, config.block_m),),
        rows, weight, bias, fc1, fc1_bias, fc2, fc2_bias, layer_scale, row_scale, out,
        rows.stride(0), count, channels, hidden, sample_rows, eps, POST_NORM=post_norm, **_constants(config, fc1, act),
    )  # fmt: skip
