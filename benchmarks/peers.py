"""What else computes the same: PyTorch's attention backends, FlexAttention, the eager formula, and torch.compile of it.

Each peer is a function of the tensors of a case, by name, and returns the output; differentiable, so that the backward
is timed alike.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cases import Attention, LayerNorm, Mlp, Window
from vitkern.reference.window_attention import regions, relative_position_index

BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}


def peers_of(case, options: dict, device: torch.device, *, compiled: bool) -> dict[str, Callable]:
    """Name -> peer. ``compiled`` adds torch.compile of the eager formula, and FlexAttention on a GPU."""
    match case:
        case Attention():
            eager = _eager_attention
            peers = {name: functools.partial(_sdpa, backend) for name, backend in BACKENDS.items()}
            if compiled and device.type == "cuda":
                peers["FlexAttention"] = _flex(case)
        case Window():
            eager = _eager_window(options, device)
            peers = {} if case.cosine else {"SDPA on windows": functools.partial(eager, fused=True)}
        case LayerNorm():
            eager, peers = functools.partial(_eager_layernorm, **options), {}
        case Mlp():
            eager, peers = functools.partial(_eager_mlp, **options), {}
        case _:
            raise TypeError(f"peers_of: no peer for {type(case).__name__}")
    peers = {"eager": eager} | peers
    if compiled:
        peers["torch.compile"] = torch.compile(eager, dynamic=False)
    return peers


def _eager_attention(q, k, v, bias=None):
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def _sdpa(backend, q, k, v, bias=None):
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _flex(case) -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def run(q, k, v, bias=None):
        if bias is None:
            return compiled(q, k, v)
        return compiled(q, k, v, score_mod=lambda score, b, h, i, j: score + bias[0, h, i, j])

    return run


def _eager_window(options: dict, device: torch.device) -> Callable:
    """Swin's forward as its authors write it, from the packed projection on: roll, partition, softmax, reverse."""
    (window, _), shift, heads = options["window"], options["shift"], options["num_heads"]
    index = relative_position_index(options["window"]).to(device)
    tokens = window * window

    def run(qkv, table, logit_scale=None, fused=False):
        batch, side, _, packed = qkv.shape
        rows = side // window
        x = qkv.roll((-shift[0], -shift[1]), (1, 2)) if shift[0] else qkv
        x = (
            x.view(batch, rows, window, rows, window, packed)
            .transpose(2, 3)
            .reshape(-1, tokens, 3, heads, packed // 3 // heads)
        )
        q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)  # (B windows, H, N, D)
        bias = table[index.view(-1)].view(tokens, tokens, heads).permute(2, 0, 1)
        if shift[0]:
            bias = bias + _mask(side, window, shift, bias).unsqueeze(1)  # (windows, H, N, N)
        if fused:
            bias = bias.expand(rows * rows, -1, -1, -1).repeat(batch, 1, 1, 1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            if logit_scale is None:
                scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
            else:
                scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
                scores = scores * logit_scale.view(-1, 1, 1).clamp(max=4.6051702).exp()
            scores = scores.view(batch, rows * rows, heads, tokens, tokens) + bias
            out = scores.softmax(-1).view(-1, heads, tokens, tokens) @ v
        out = out.transpose(1, 2).reshape(batch, rows, rows, window, window, packed // 3).transpose(2, 3)
        out = out.reshape(batch, side, side, packed // 3)
        return out.roll(shift, (1, 2)) if shift[0] else out

    masks = {}

    def _mask(side, window, shift, like):
        """(windows, N, N): -100 between tokens of different regions; made once, as the model's buffer is."""
        if (side, like.dtype) not in masks:
            region = regions((side, side), (window, window), shift)
            region = region.view(side // window, window, side // window, window).transpose(1, 2).reshape(-1, tokens)
            mask = (region[:, :, None] != region[:, None, :]).to(device, like.dtype) * -100.0
            masks[side, like.dtype] = mask.detach()
        return masks[side, like.dtype]

    return run


def _eager_layernorm(x, weight, bias, eps, residual=None):
    if residual is None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    total = x + residual
    return F.layer_norm(total, weight.shape, weight, bias, eps), total


def _eager_mlp(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, post_norm=False):
    y = x if post_norm else F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias, eps)
    y = F.linear(F.gelu(F.linear(y, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)
    return x + (F.layer_norm(y, norm_weight.shape, norm_weight, norm_bias, eps) if post_norm else y)
