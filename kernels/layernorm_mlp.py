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

from typing import NamedTuple

import torch

from .machine.architecture import INTERPRETER
from .machine.blocks import dot_precision
from .rows.blocks import WHOLE_ROW
from .rows.epilogues import activate_and_store, activation_backward, add_residual, scale_gradient, store
from .rows.layernorm import normalise_rows, normalise_rows_backward
from .rows.matmul import multiply, pointwise, row_blocks
from .rows.mlp import norm_linear, whole_mlp
from .rows.residual import as_gradients, gradients_like, rows_per_factor
from .rows.tiles import as_rows


class Inputs(NamedTuple):
    """What has a gradient: the tensors, their gradients, or whether those are needed."""

    x: object
    norm_weight: object
    norm_bias: object
    fc1_weight: object
    fc1_bias: object
    fc2_weight: object
    fc2_bias: object
    layer_scale: object


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
    own, sample_rows, norm = plan != "split", rows_per_factor(count, row_scale), (norm_weight, norm_bias)
    kept = dict(mean=mean if keep else None, rstd=rstd if keep else None)
    if plan == "one":
        tensors = (fc1, fc1_bias, fc2, fc2_bias, layer_scale, row_scale, out)
        whole_mlp(rows, *norm, *tensors, sample_rows, eps, act=act, post_norm=post_norm)
        return results
    hidden = torch.empty((count, hidden_channels), dtype=fc1.dtype, device=x.device)
    first = (fc1_bias, pre if keep else None, hidden)
    if own and channels <= WHOLE_ROW:
        statistics = (None if post_norm else kept["mean"], kept["rstd"])
        norm_linear(rows, *norm, *statistics, fc1, first, eps, act=act, norm=not post_norm)
    else:
        normed = rows.to(fc1.dtype)
        if not post_norm:
            normed = torch.empty((count, channels), dtype=fc1.dtype, device=x.device)
            normalise_rows(rows, *norm, eps, y=normed, **kept)
        multiply(normed, fc1.t(), activate_and_store, first, own=own, act=act)
    if not post_norm:
        args = (fc2_bias, layer_scale, row_scale, rows, rows.stride(0), sample_rows, out)
        multiply(hidden, fc2.t(), add_residual, args, own=own)
        return results
    if not keep:
        branch = torch.empty((count, channels), dtype=branch.dtype, device=x.device)
    multiply(hidden, fc2.t(), store, (fc2_bias, branch), own=own)
    normalise_rows(branch, *norm, eps, base=rows, layer_scale=layer_scale, row_scale=row_scale, y=out, **kept)
    return results


def layernorm_mlp_gradients(grad, out, pre, mean, rstd, branch, *arguments):
    """Gradients of x, the norm's weight and bias, fc1's, fc2's and layer_scale; empty where not needed."""
    return gradients_like(arguments[:8], arguments[-1])


def layernorm_mlp_backward(
    grad, out, pre, mean, rstd, branch, x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
    layer_scale, row_scale,
    eps, act, post_norm, plan, keep, needs,
):  # fmt: skip
    """Gradients of `layernorm_mlp_forward`, which was asked to ``keep``. The activation is recomputed from ``pre``."""
    inputs = Inputs(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, layer_scale)
    needs, found = Inputs(*needs), {}
    rows, grad, fc1, fc2 = as_rows(x), as_rows(grad), fc1_weight.contiguous(), fc2_weight.contiguous()
    (count, channels), dtype, own = rows.shape, fc1.dtype, plan != "split"
    sample_rows = rows_per_factor(count, row_scale)

    def fresh(width, like=dtype):
        return torch.empty((count, width), dtype=like, device=x.device)

    dbranch = grad  # the gradient of fc2's result, (T, C)
    if post_norm:
        scale = layer_scale if norm_weight is None else norm_weight
        if norm_weight is not None and layer_scale is not None:
            scale = norm_weight.float() * layer_scale.float()
        dbranch = fresh(channels)
        along, level = normalise_rows_backward(grad, branch, mean, rstd, scale, row_scale=row_scale, dx=dbranch)
        found.update(norm_weight=along, norm_bias=level)
        if layer_scale is not None:
            found.update(norm_weight=along * layer_scale, norm_bias=level * layer_scale)
        if needs.layer_scale:
            found["layer_scale"] = along if norm_weight is None else along * norm_weight
            found["layer_scale"] = found["layer_scale"] + (0 if norm_bias is None else level * norm_bias)
    elif layer_scale is not None or row_scale is not None or grad.dtype != dtype:
        dbranch = fresh(channels)
        pointwise(grad.contiguous(), add_residual, (None, layer_scale, row_scale, None, 0, sample_rows, dbranch))
    hidden, dpre = fresh(fc1.shape[0]), fresh(fc1.shape[0])
    partial = torch.empty((row_blocks(count, dbranch, own), fc1.shape[0]), dtype=torch.float32, device=x.device)
    multiply(dbranch, fc2, activation_backward, (pre, hidden, dpre, partial), own=own, act=act, heavy=True)
    found["fc1_bias"] = partial.sum(0)
    if needs.fc2_weight:
        found["fc2_weight"] = torch.mm(dbranch.t(), hidden)
    if needs.fc2_bias:
        found["fc2_bias"] = dbranch.sum(0, dtype=torch.float32)
    if needs.layer_scale and not post_norm:
        scaled = torch.empty((row_blocks(count, hidden, own), channels), dtype=torch.float32, device=x.device)
        args = (fc2_bias, row_scale, grad, grad.stride(0), sample_rows, scaled)
        multiply(hidden, fc2.t(), scale_gradient, args, own=own)
        found["layer_scale"] = scaled.sum(0)
    del hidden
    dx, normed = fresh(channels, x.dtype), rows.to(dtype)
    if post_norm:
        multiply(dpre, fc1, add_residual, (None, None, None, grad, grad.stride(0), 1, dx), own=own)
    else:
        normed, dnormed = fresh(channels), fresh(channels, torch.float32 if own else dtype)
        if own:
            multiply(dpre, fc1, store, (None, dnormed), own=True)
        else:
            torch.mm(dpre, fc1, out=dnormed)
        along, level = normalise_rows_backward(
            dnormed, rows, mean, rstd, norm_weight, dtotal=grad, bias=norm_bias, dx=dx,
            normed=normed if needs.fc1_weight else None,
        )  # fmt: skip
        found.update(norm_weight=along, norm_bias=level)
    found["x"] = dx.view(x.shape)
    if needs.fc1_weight:
        found["fc1_weight"] = torch.mm(dpre.t(), normed)
    return as_gradients([found.get(name) for name in Inputs._fields], inputs, needs, grad.dtype)
