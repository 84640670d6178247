"""Norm -> gated linear unit -> linear -> residual, by one of two plans.

T rows (tokens), C channels, F hidden channels.
gate, value = norm(x) fc1^T + b1; out = x + row_scale * layer_scale * ((act(gate) * value) fc2^T + b2).
    two     a kernel of its own for each linear layer, after one for the norm; the first has two accumulators
    split   cuBLAS, with one pointwise kernel after each product
Which of the two, `layernorm_mlp.mlp_plan` says.

Launches forward: "two" 3, and "split" 5, or 6 of two weights. Elements of the hidden layer that "two" moves, in units
of T F: 2 without gradients, where hidden is written and read, which is the floor of two products; 4 with them, for pre.
One operator after the other moves 8: pre, the activation and the product, written and read. "split" moves 6.
Compiled for sm_90 in bfloat16 (Triton 3.9) nothing spills: the gated product has 124 registers, the one of its backward
218, the pointwise kernels 48 and 134.
"""

from typing import NamedTuple

import torch

from .rows.epilogues import add_residual, scale_gradient, store
from .rows.gated_matmul import gated_multiply
from .rows.gates import gate_backward, gate_rows
from .rows.layernorm import normalise_rows, normalise_rows_backward
from .rows.matmul import multiply, pointwise, row_blocks
from .rows.residual import as_gradients, gradients_like, rows_per_factor
from .rows.tiles import as_rows


class Inputs(NamedTuple):
    """What has a gradient: the tensors, their gradients, or whether those are needed. Without ``value_weight`` fc1
    holds gate and value, (2 F, C); else the gate alone."""

    x: object
    norm_weight: object
    norm_bias: object
    fc1_weight: object
    fc1_bias: object
    value_weight: object
    value_bias: object
    fc2_weight: object
    fc2_bias: object
    layer_scale: object


def _halves(packed, value, gate_last):
    """Gate and value, of one tensor or of two."""
    if value is not None or packed is None:
        return packed, value
    first, last = packed.chunk(2)
    return (last, first) if gate_last else (first, last)


def _joined(first, last):
    return first if last is None else torch.cat([first, last])


def _places(hidden, gate_last):
    """Columns of ``pre`` where gate and value begin."""
    return (hidden, 0) if gate_last else (0, hidden)


def layernorm_glu_outputs(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, value_weight, value_bias, fc2_weight, fc2_bias, layer_scale,
    row_scale, eps, act, norm, gate_last, plan, keep,
):  # fmt: skip
    """out; and, empty unless ``keep``, what a backward needs: pre (T, 2 F); mean and rstd (T,), of a norm."""
    rows = x.numel() // x.shape[-1] if keep else 0

    def statistic(there):
        return torch.empty((rows if there else 0,), dtype=torch.float32, device=x.device)

    pre = torch.empty((rows, 2 * fc2_weight.shape[1]), dtype=fc1_weight.dtype, device=x.device)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return out, pre, statistic(norm == "layer"), statistic(norm != "none")


def layernorm_glu_forward(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, value_weight, value_bias, fc2_weight, fc2_bias, layer_scale,
    row_scale, eps, act, norm, gate_last, plan, keep,
):  # fmt: skip
    """x (..., C) -> the outputs of `layernorm_glu_outputs`. ``norm``: "layer", "rms" or "none"."""
    out, pre, mean, rstd = results = layernorm_glu_outputs(
        x, norm_weight, norm_bias, fc1_weight, fc1_bias, value_weight, value_bias, fc2_weight, fc2_bias, layer_scale,
        row_scale, eps, act, norm, gate_last, plan, keep,
    )  # fmt: skip
    rows, fc1, fc2 = as_rows(x), fc1_weight.contiguous(), fc2_weight.contiguous()
    (count, channels), hidden_channels, own = rows.shape, fc2.shape[1], plan != "split"
    values = None if value_weight is None else value_weight.contiguous()
    places = _places(hidden_channels, gate_last)

    def fresh(width):
        return torch.empty((count, width), dtype=fc1.dtype, device=x.device)

    if norm == "none":
        normed = rows.to(fc1.dtype)
    else:
        normed, layer = fresh(channels), norm == "layer"
        kept = dict(mean=mean if keep and layer else None, rstd=rstd if keep else None)
        normalise_rows(rows, norm_weight, norm_bias, eps, y=normed, centred=layer, **kept)
    hidden = fresh(hidden_channels)
    if own:
        weights, biases = _halves(fc1, values, gate_last), _halves(fc1_bias, value_bias, gate_last)
        gated_multiply(normed, *weights, (*biases, pre if keep else None, *places, hidden), act=act)
    else:
        pre = pre if keep else fresh(2 * hidden_channels)
        _linear(normed, fc1, fc1_bias, pre[:, : fc1.shape[0]])
        if values is not None:
            _linear(normed, values, value_bias, pre[:, hidden_channels:])
        gate_rows(pre, *places, hidden, act=act, exact=fc1.dtype == torch.float32)
    args = (fc2_bias, layer_scale, row_scale, rows, rows.stride(0), rows_per_factor(count, row_scale), out)
    multiply(hidden, fc2.t(), add_residual, args, own=own)
    return results


def _linear(rows, weight, bias, out):
    """By cuBLAS, into columns of a matrix."""
    with torch.no_grad():
        if bias is None:
            torch.mm(rows, weight.t(), out=out)
        else:
            torch.addmm(bias, rows, weight.t(), out=out)


def layernorm_glu_gradients(grad, out, pre, mean, rstd, *arguments):
    """Gradients of the fields of `Inputs`; empty where not needed."""
    return gradients_like(arguments[: len(Inputs._fields)], arguments[-1])


def layernorm_glu_backward(
    grad, out, pre, mean, rstd,
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, value_weight, value_bias, fc2_weight, fc2_bias, layer_scale,
    row_scale, eps, act, norm, gate_last, plan, keep, needs,
):  # fmt: skip
    """Gradients of `layernorm_glu_forward`, which was asked to ``keep``. The gate is recomputed from ``pre``."""
    inputs = Inputs(
        x, norm_weight, norm_bias, fc1_weight, fc1_bias, value_weight, value_bias, fc2_weight, fc2_bias, layer_scale
    )
    needs, found = Inputs(*needs), {}
    rows, grad, fc2 = as_rows(x), as_rows(grad), fc2_weight.contiguous()
    fc1 = _joined(fc1_weight, value_weight).contiguous()  # as pre lies
    (count, channels), dtype, own = rows.shape, fc1.dtype, plan != "split"
    split, sample_rows = fc1_weight.shape[0], rows_per_factor(count, row_scale)

    def fresh(width, like=dtype):
        return torch.empty((count, width), dtype=like, device=x.device)

    dbranch = grad  # the gradient of fc2's result, (T, C)
    if layer_scale is not None or row_scale is not None or grad.dtype != dtype:
        dbranch = fresh(channels)
        pointwise(grad.contiguous(), add_residual, (None, layer_scale, row_scale, None, 0, sample_rows, dbranch))
    hidden, dpre = fresh(fc2.shape[1]), fresh(fc1.shape[0])
    partial = torch.empty((row_blocks(count, dbranch, own), fc1.shape[0]), dtype=torch.float32, device=x.device)
    args = (pre, *_places(fc2.shape[1], gate_last), hidden, dpre, partial)
    multiply(dbranch, fc2, gate_backward, args, own=own, act=act, heavy=True)
    found.update(fc1_bias=partial[:, :split].sum(0), value_bias=partial[:, split:].sum(0))
    if needs.fc2_weight:
        found["fc2_weight"] = torch.mm(dbranch.t(), hidden)
    if needs.fc2_bias:
        found["fc2_bias"] = dbranch.sum(0, dtype=torch.float32)
    if needs.layer_scale:
        scaled = torch.empty((row_blocks(count, hidden, own), channels), dtype=torch.float32, device=x.device)
        args = (fc2_bias, row_scale, grad, grad.stride(0), sample_rows, scaled)
        multiply(hidden, fc2.t(), scale_gradient, args, own=own)
        found["layer_scale"] = scaled.sum(0)
    del hidden
    dx = fresh(channels, x.dtype)
    if norm == "none":
        normed = rows.to(dtype)
        multiply(dpre, fc1, add_residual, (None, None, None, grad, grad.stride(0), 1, dx), own=own)
    else:
        dnormed = fresh(channels, torch.float32 if own else dtype)
        if own:
            multiply(dpre, fc1, store, (None, dnormed), own=True)
        else:
            _linear(dpre, fc1.t(), None, dnormed)
        weighs = needs.fc1_weight or needs.value_weight
        normed = fresh(channels) if weighs else None
        along, level = normalise_rows_backward(
            dnormed, rows, mean if norm == "layer" else None, rstd, norm_weight,
            dtotal=grad, bias=norm_bias, dx=dx, normed=normed,
        )  # fmt: skip
        found.update(norm_weight=along, norm_bias=level)
    found["x"] = dx.view(x.shape)
    if needs.fc1_weight:
        found["fc1_weight"] = torch.mm(dpre[:, :split].t(), normed)
    if needs.value_weight:
        found["value_weight"] = torch.mm(dpre[:, split:].t(), normed)
    return as_gradients([found.get(name) for name in Inputs._fields], inputs, needs, grad.dtype)
