"""LayerNorm, then an MLP over the tokens of each channel, and the residual (MLP-Mixer, Tolstikhin et al.,
arXiv 2105.01601, equation 1), without a transpose.

B images, N tokens, C channels, S hidden tokens.
pre = fc1 norm(x) + b1 per image, (S, N) (N, C); out = x + row_scale * (fc2 act(pre) + b2).

Launches: forward 3, the norm and two products; backward 5, two of products, two of gradients of weights and the norm's,
beside sums and copies by PyTorch; one more each way for each weight whose rows are not whole lines of 16 elements.
Bytes, in units of a tensor (B, N, C): forward 5 + 2 S / N (norm 2, product 1 + S / N, product S / N + 2), where the
floor is 2 and pre, kept for a backward, is S / N more. Both weights stay in L2.
Compiled for sm_90 in bfloat16 (Triton 3.9) nothing spills: products 80 and 77 registers forward, 150 and 70 backward,
gradients of weights 71 and 94.
"""

from typing import NamedTuple

import torch

from .rows.epilogues import add_residual
from .rows.layernorm import normalise_rows, normalise_rows_backward
from .rows.matmul import pointwise
from .rows.mixing import (
    activate_tokens,
    activation_backward,
    add_tokens,
    in_whole_lines,
    mix_tokens,
    mix_weight_backward,
    mixed_parts,
)
from .rows.residual import as_gradients, gradients_like


class Inputs(NamedTuple):
    """What has a gradient: the tensors, their gradients, or whether those are needed."""

    x: object
    norm_weight: object
    norm_bias: object
    fc1_weight: object
    fc1_bias: object
    fc2_weight: object
    fc2_bias: object


def token_mixing_outputs(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, row_scale, eps, act, keep
):
    """out; and, empty unless ``keep``, what a backward needs: pre (B, S, C), mean and rstd (B * N,)."""
    batch, tokens, channels = x.shape
    kept = batch if keep else 0
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty((kept, fc1_weight.shape[0], channels), dtype=fc1_weight.dtype, device=x.device),
        torch.empty((kept * tokens,), dtype=torch.float32, device=x.device),
        torch.empty((kept * tokens,), dtype=torch.float32, device=x.device),
    )


def token_mixing_forward(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, row_scale, eps, act, keep
):
    """x (B, N, C) -> the outputs of `token_mixing_outputs`."""
    inputs = (x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, row_scale, eps, act, keep)
    out, pre, mean, rstd = results = token_mixing_outputs(*inputs)
    x = x.contiguous()
    normed = torch.empty(x.shape, dtype=fc1_weight.dtype, device=x.device)
    kept = dict(mean=mean if keep else None, rstd=rstd if keep else None)
    normalise_rows(x.flatten(0, 1), norm_weight, norm_bias, eps, y=normed, **kept)
    hidden = normed.new_empty(x.shape[0], fc1_weight.shape[0], x.shape[2])
    fc1, fc2 = in_whole_lines(fc1_weight), in_whole_lines(fc2_weight)
    args = (fc1_bias, pre if keep else None, hidden)
    mix_tokens(fc1, normed, activate_tokens, args, rows=hidden.shape[1], act=act)
    mix_tokens(fc2, hidden, add_tokens, (fc2_bias, row_scale, x, out), rows=x.shape[1])
    return results


def token_mixing_gradients(grad, out, pre, mean, rstd, *arguments):
    """Gradients of the fields of `Inputs`; empty where not needed."""
    return gradients_like(arguments[: len(Inputs._fields)], arguments[-1])


def token_mixing_backward(
    grad, out, pre, mean, rstd, x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, row_scale, eps,
    act, keep, needs,
):  # fmt: skip
    """Gradients of `token_mixing_forward`, which was asked to ``keep``; deterministic."""
    inputs = Inputs(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
    needs, found = Inputs(*needs), {}
    x, grad, dtype = x.contiguous(), grad.contiguous(), fc1_weight.dtype
    dbranch = grad  # the gradient of fc2's result, (B, N, C)
    if row_scale is not None or grad.dtype != dtype:
        dbranch = torch.empty(grad.shape, dtype=dtype, device=grad.device)
        args = (None, None, row_scale, None, 0, x.shape[1], dbranch)
        pointwise(grad.flatten(0, 1), add_residual, args)
    hidden, dpre = torch.empty_like(pre), torch.empty_like(pre)
    partial = torch.empty(mixed_parts(dbranch), pre.shape[1], dtype=torch.float32, device=x.device)
    fc1, fc2 = in_whole_lines(fc1_weight), in_whole_lines(fc2_weight)
    args = (pre, hidden, dpre, partial)
    mix_tokens(fc2.t(), dbranch, activation_backward, args, rows=hidden.shape[1], act=act)
    found["fc1_bias"] = partial.sum(0)
    if needs.fc2_weight:
        found["fc2_weight"] = mix_weight_backward(dbranch, hidden)
    if needs.fc2_bias:
        found["fc2_bias"] = dbranch.sum((0, 2), dtype=torch.float32)
    dnormed = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    mix_tokens(fc1.t(), dpre, add_tokens, (None, None, None, dnormed), rows=x.shape[1])
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    normed = torch.empty(x.shape, dtype=dtype, device=x.device) if needs.fc1_weight else None
    along, level = normalise_rows_backward(
        dnormed.flatten(0, 1), x.flatten(0, 1), mean, rstd, norm_weight,
        dtotal=grad.flatten(0, 1), bias=norm_bias, dx=dx, normed=normed,
    )  # fmt: skip
    found.update(x=dx, norm_weight=along, norm_bias=level)
    if needs.fc1_weight:
        found["fc1_weight"] = mix_weight_backward(dpre, normed)
    return as_gradients([found.get(name) for name in Inputs._fields], inputs, needs, grad.dtype)
