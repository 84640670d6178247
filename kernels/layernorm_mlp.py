"""LayerNorm -> linear -> activation -> linear -> residual, by one of three plans.

T rows (tokens), C channels, F hidden channels.
pre = norm(x) fc1^T + b1; out = x + row_scale * layer_scale * (act(pre) fc2^T + b2).
    one     a single kernel, the hidden layer on chip: C <= 256, nothing kept for a backward
    two     one kernel per linear layer. Up to 256 channels the first holds whole rows and normalises them itself, once
            for all of F; wider rows are normalised by a kernel of their own, because each of the F / BLOCK_N blocks of
            columns would do it again
    split   cuBLAS, with one pointwise kernel after each product
A post-norm takes whole rows of the second product. The plan "one" has them in registers; the others store them in any
case, since the backward reads them, and normalise in a pass of its own.
"""

import torch
import triton
import triton.language as tl

from .layernorm import (
    as_rows,
    load_channels,
    load_tile,
    normalise_rows,
    normalise_rows_backward,
    statistics,
    store_tile,
)
from .machine.architecture import INTERPRETER, arch_of
from .machine.blocks import dot_precision, head_tile
from .machine.launch import launch
from .rows.activations import activate
from .rows.blocks import WHOLE_ROW, mlp_config, norm_linear_config
from .rows.epilogues import activate_and_store, activation_backward, add_residual, scale_gradient, store
from .rows.matmul import load_columns, multiply, pointwise, row_blocks


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


def mlp_plan(channels, hidden, dtype, arch, keep):
    """How `layernorm_mlp_forward` runs: "one", "two" or "split".

    Products above 512 channels are bound by tensor cores, where cuBLAS leads; full-precision float32 has no tensor
    cores to use; rows that do not start at multiples of 16 bytes have no wide loads. All this is reckoned: no GPU has
    timed one plan against another.
    """
    if arch != INTERPRETER and ((dtype == torch.float32 and dot_precision(dtype) == "ieee") or (channels | hidden) % 8):
        return "split"
    if channels <= WHOLE_ROW and not keep:
        return "one"
    return "two" if channels <= 512 else "split"


def whole_row(channels):
    """Constants of a kernel that holds whole rows."""
    block_c = head_tile(channels)
    return dict(BLOCK_C=block_c, EVEN_C=block_c == channels)


def blocks(config, hidden):
    return dict(BLOCK_M=config.block_m, BLOCK_N=config.block_n, EVEN_N=hidden % config.block_n == 0)


def _samples(rows, row_scale):
    """Rows per entry of ``row_scale``."""
    return 1 if row_scale is None else max(1, rows // max(1, row_scale.numel()))


def layernorm_mlp_outputs(
    x,
    norm_weight,
    norm_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    layer_scale,
    row_scale,
    eps,
    act,
    post_norm,
    plan,
    keep,
):
    """out; and, empty unless ``keep``, what a backward needs: pre (T, F), mean and rstd (T,), and with a post-norm
    fc2's result (T, C).
    """
    rows = x.numel() // x.shape[-1] if keep else 0
    branch_dtype = fc1_weight.dtype if plan == "split" else torch.float32
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty((rows, fc1_weight.shape[0]), dtype=fc1_weight.dtype, device=x.device),
        torch.empty((rows,), dtype=torch.float32, device=x.device),
        torch.empty((rows,), dtype=torch.float32, device=x.device),
        torch.empty((rows if post_norm else 0, x.shape[-1]), dtype=branch_dtype, device=x.device),
    )


def layernorm_mlp_forward(
    x,
    norm_weight,
    norm_bias,
    fc1_weight,
    fc1_bias,
    fc2_weight,
    fc2_bias,
    layer_scale,
    row_scale,
    eps,
    act,
    post_norm,
    plan,
    keep,
):
    """x (..., C) -> the outputs of `layernorm_mlp_outputs`. ``plan``: see the head of this file;
    "one" cannot ``keep``.
    """
    inputs = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, layer_scale, row_scale)
    out, pre, mean, rstd, branch = results = layernorm_mlp_outputs(*inputs, eps, act, post_norm, plan, keep)
    rows, fc1, fc2 = as_rows(x), fc1_weight.contiguous(), fc2_weight.contiguous()
    (count, channels), hidden_channels = rows.shape, fc1.shape[0]
    own, sample_rows, norm = plan != "split", _samples(count, row_scale), (norm_weight, norm_bias)
    kept = dict(mean=mean if keep else None, rstd=rstd if keep else None)
    constants = dict(
        ACT=act,
        EXACT=fc1.dtype == torch.float32,
        PRECISION=dot_precision(fc1.dtype),
        **whole_row(channels),
    )
    arch = arch_of(x)
    if plan == "one":
        config = mlp_config(channels, fc1.element_size(), arch)
        launch(
            _mlp_fwd, (triton.cdiv(count, config.block_m),),
            rows, *norm, fc1, fc1_bias, fc2, fc2_bias, layer_scale, row_scale, out,
            rows.stride(0), count, channels, hidden_channels, sample_rows, eps, POST_NORM=post_norm,
            **blocks(config, hidden_channels), **constants, num_warps=config.num_warps,
            num_stages=config.num_stages,
        )  # fmt: skip
        return results
    hidden = torch.empty((count, hidden_channels), dtype=fc1.dtype, device=x.device)
    first = (fc1_bias, pre if keep else None, hidden)
    if own and channels <= WHOLE_ROW:
        config = norm_linear_config(channels, fc1.element_size(), arch)
        launch(
            _norm_linear_fwd, (triton.cdiv(count, config.block_m),),
            rows, *norm, None if post_norm else kept["mean"], kept["rstd"], fc1, first,
            rows.stride(0), count, channels, hidden_channels, eps, NORM=not post_norm,
            **blocks(config, hidden_channels), **constants, num_warps=config.num_warps,
            num_stages=config.num_stages,
        )  # fmt: skip
    else:
        normed = rows.to(fc1.dtype)
        if not post_norm:
            normed = torch.empty((count, channels), dtype=fc1.dtype, device=x.device)
            normalise_rows(rows, *norm, eps, y=normed, **kept)
        multiply(normed, fc1.t(), activate_and_store, first, own=own, act=act)
    if not post_norm:
        multiply(
            hidden,
            fc2.t(),
            add_residual,
            (fc2_bias, layer_scale, row_scale, rows, rows.stride(0), sample_rows, out),
            own=own,
        )
        return results
    if not keep:
        branch = torch.empty((count, channels), dtype=branch.dtype, device=x.device)
    multiply(hidden, fc2.t(), store, (fc2_bias, branch), own=own)
    normalise_rows(branch, *norm, eps, base=rows, layer_scale=layer_scale, row_scale=row_scale, y=out, **kept)
    return results


def layernorm_mlp_gradients(grad, out, pre, mean, rstd, branch, *arguments):
    """Gradients of x, the norm's weight and bias, fc1's, fc2's and layer_scale; empty where not needed."""
    inputs, needs = arguments[:8], arguments[-1]
    return tuple(
        torch.empty(like.shape if needed else (0,), dtype=like.dtype if needed else grad.dtype, device=grad.device)
        for like, needed in zip(inputs, needs, strict=True)
    )


def layernorm_mlp_backward(
    grad, out, pre, mean, rstd, branch, x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
    layer_scale, row_scale,
    eps, act, post_norm, plan, keep, needs,
):  # fmt: skip
    """Gradients of `layernorm_mlp_forward`, which was asked to ``keep``. The activation is recomputed from ``pre``."""
    inputs = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, layer_scale)
    results = layernorm_mlp_gradients(grad, out, pre, mean, rstd, branch, *inputs, needs)
    rows, grad, fc1, fc2 = as_rows(x), as_rows(grad), fc1_weight.contiguous(), fc2_weight.contiguous()
    (count, channels), dtype, own = rows.shape, fc1.dtype, plan != "split"
    sample_rows = _samples(count, row_scale)
    found = dict.fromkeys(range(8))

    def fresh(width, like=dtype):
        return torch.empty((count, width), dtype=like, device=x.device)

    dbranch = grad  # the gradient of fc2's result, (T, C)
    if post_norm:
        scale = (
            norm_weight
            if layer_scale is None
            else layer_scale
            if norm_weight is None
            else norm_weight.float() * layer_scale.float()
        )
        dbranch = fresh(channels)
        along, level = normalise_rows_backward(grad, branch, mean, rstd, scale, row_scale=row_scale, dx=dbranch)
        found[1], found[2] = (s if layer_scale is None else s * layer_scale for s in (along, level))
        if needs[7]:
            found[7] = (along if norm_weight is None else along * norm_weight) + (
                0 if norm_bias is None else level * norm_bias
            )
    elif layer_scale is not None or row_scale is not None or grad.dtype != dtype:
        dbranch = fresh(channels)
        pointwise(grad.contiguous(), add_residual, (None, layer_scale, row_scale, None, 0, sample_rows, dbranch))
    hidden, dpre = fresh(fc1.shape[0]), fresh(fc1.shape[0])
    partial = torch.empty((row_blocks(count, dbranch, own), fc1.shape[0]), dtype=torch.float32, device=x.device)
    multiply(dbranch, fc2, activation_backward, (pre, hidden, dpre, partial), own=own, act=act, heavy=True)
    if needs[5]:
        found[5] = torch.mm(dbranch.t(), hidden)
    if needs[6]:
        found[6] = dbranch.sum(0, dtype=torch.float32)
    if needs[7] and not post_norm:
        scaled = torch.empty((row_blocks(count, hidden, own), channels), dtype=torch.float32, device=x.device)
        multiply(
            hidden, fc2.t(), scale_gradient, (fc2_bias, row_scale, grad, grad.stride(0), sample_rows, scaled), own=own
        )
        found[7] = scaled.sum(0)
    del hidden
    found[4] = partial.sum(0)
    dx = fresh(channels, x.dtype)
    normed = rows.to(dtype)
    if post_norm:
        multiply(dpre, fc1, add_residual, (None, None, None, grad, grad.stride(0), 1, dx), own=own)
    else:
        normed, dnormed = fresh(channels), fresh(channels, torch.float32 if own else dtype)
        if own:
            multiply(dpre, fc1, store, (None, dnormed), own=True)
        else:
            torch.mm(dpre, fc1, out=dnormed)
        found[1], found[2] = normalise_rows_backward(
            dnormed,
            rows,
            mean,
            rstd,
            norm_weight,
            dtotal=grad,
            bias=norm_bias,
            dx=dx,
            normed=normed if needs[3] else None,
        )
    found[0] = dx.view(x.shape)
    if needs[3]:
        found[3] = torch.mm(dpre.t(), normed)
    for slot, needed, result in zip(range(8), needs, results, strict=True):
        if needed:
            result.copy_(found[slot])
    return results
