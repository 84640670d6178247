"""Dense attention in PyTorch: scaled_dot_product_attention, with the terms merged into the mask that it takes."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.dispatch import is_transformed, no_autocast
from vitkern.ops.sizes import fixed
from vitkern.reference import attention as reference
from vitkern.reference.dropout import keep_mask

_VECTOR = 16  # below so many keys PyTorch's CPU kernel turns a query row of NaN into zeros, unless it has a mask


def attention_in_pytorch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    key_padding_mask: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    causal: bool,
    dropout_p: float,
    softcap: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """The checked arguments of `vitkern.ops.attention.attention` -> out (B, H, N, Dv), and lse where it is wanted. SDPA
    knows neither caps nor sinks: with these the formula runs, and holds all scores. So it does for few keys, whose
    second derivatives it has."""
    short = not q.is_cuda and _may_be_short(k.shape[2])
    if return_lse or softcap or sinks is not None or (short and _has_derivatives(q, k, v, bias, mask)):
        with no_autocast(q):
            out, lse = reference.attention(
                q, k, v, bias=bias, mask=mask, key_padding_mask=key_padding_mask,
                causal=causal, scale=scale, dropout_p=dropout_p, softcap=softcap, sinks=sinks, return_lse=True,
            )  # fmt: skip
        return out.transpose(1, 2).contiguous().transpose(1, 2), lse.float()
    if short and mask is None and bias is None and key_padding_mask is None:
        mask = torch.ones(1, 1, 1, k.shape[2], dtype=torch.bool, device=q.device)
    if key_padding_mask is not None:
        keys = key_padding_mask[:, None, None, :]
        mask = keys if mask is None else mask & keys if mask.dtype == torch.bool else mask.masked_fill(~keys, -math.inf)
    if causal and (mask is not None or bias is not None or q.shape[2] != k.shape[2]):
        n, m = q.shape[2], k.shape[2]
        past = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        mask = past if mask is None else mask & past if mask.dtype == torch.bool else mask.masked_fill(~past, -math.inf)
        causal = False
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(_term_dtype(q))
    if bias is not None:
        bias = bias.to(_term_dtype(q))
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else bias + mask
    grouped = False
    if q.shape[1] != k.shape[1]:  # an if, since graphs compare sizes to a tensor or a symbol
        grouped = True
    if grouped and torch.jit.is_tracing():  # ONNX has no grouped heads
        groups, grouped = fixed(q.shape[1]) // fixed(k.shape[1]), False
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=causal, scale=scale, enable_gqa=grouped
    )
    return out.transpose(1, 2).contiguous().transpose(1, 2), None


def kernel_in_pytorch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    key_mask: Tensor | None,
    sinks: Tensor | None,
    seed: Tensor | None,
    scale: float,
    causal: bool,
    dropout_p: float,
    softcap: float,
) -> tuple[Tensor, Tensor | None]:
    """What `vitkern.kernels.attention.attention_forward` returns, from its arguments: out (B, N, H, D) and lse. With
    dropout the same weights are dropped, so that either can follow the other in a backward pass."""
    if seed is not None:
        keep = keep_mask(seed, (q.shape[0], q.shape[1], q.shape[2], k.shape[2]), dropout_p)
        out = reference.attention(
            q, k, v, bias=bias, mask=mask, key_padding_mask=key_mask,
            causal=causal, scale=scale, dropout_p=dropout_p, softcap=softcap, sinks=sinks, keep=keep,
        )  # fmt: skip
    else:
        out, _ = attention_in_pytorch(q, k, v, bias, mask, key_mask, sinks, scale, causal, 0.0, softcap, False)
    if torch._C._are_functorch_transforms_active():
        return out.transpose(1, 2), None  # differentiated by the backward, which has lse no use for
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    for i in range(q.shape[0]):  # one sample's scores at a time in memory
        rows = slice(i, i + 1)
        own_bias, own_mask, own_keys = (t[rows] if t is not None and len(t) > 1 else t for t in (bias, mask, key_mask))
        lse[rows] = reference.attention(
            q[rows], k[rows], v[rows], bias=own_bias, mask=own_mask, key_padding_mask=own_keys,
            causal=causal, scale=scale, softcap=softcap, sinks=sinks, return_lse=True,
        )[1]  # fmt: skip
    return out.transpose(1, 2), lse


def packed_kernel_in_pytorch(qkv: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
    """`kernel_in_pytorch` for the packed launcher: qkv (B, N, 3, H, D)."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return kernel_in_pytorch(q, k, v, *arguments)


def _may_be_short(keys: int) -> bool:
    """In an exported graph of any length: unless no length of its range is. A guard would narrow that range."""
    if torch.compiler.is_exporting():
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy

        return not statically_known_true(keys >= _VECTOR)
    return keys < _VECTOR


def _has_derivatives(*terms: Tensor | None) -> bool:
    """In an exported graph they do not matter: whoever asks would narrow its lengths."""
    if torch.compiler.is_exporting():
        return False
    graded = torch.is_grad_enabled() and any(term is not None and term.requires_grad for term in terms)
    return graded or is_transformed()


def _term_dtype(q: Tensor) -> torch.dtype:
    """PyTorch's CPU kernel misreads a float32 mask beside float64; beside the half precisions float32 keeps a bias
    exact.
    """
    return q.dtype if q.is_cuda or q.dtype == torch.float64 else torch.float32
