"""Softmax attention as the plain formula: out = softmax(q k^T * scale + bias + mask) v (Vaswani et al., arXiv
1706.03762, equation 1).
"""

import math
from typing import TYPE_CHECKING, Literal, TypedDict, overload

import torch
from torch import Tensor

from vitkern.reference.rounding import rounded

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Terms(TypedDict, total=False):
    """The arguments of `attention` that change weights, not what is returned."""

    bias: Tensor | None
    mask: Tensor | None
    key_padding_mask: Tensor | None
    causal: bool
    scale: float | None
    dropout_p: float
    softcap: float | None
    sinks: Tensor | None


class _Terms(Terms, total=False):
    low_precision: torch.dtype | None
    keep: Tensor | None


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[False] = False, **terms: "Unpack[_Terms]"
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[True], **terms: "Unpack[_Terms]"
) -> tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    low_precision: torch.dtype | None = None,
    keep: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `vitkern.ops.attention.attention`, with the same arguments. Materialises the (B, H, N, M)
    scores.

    Computes in float64 when ``q`` is float64, else in float32, and returns ``q``'s dtype. ``low_precision`` gives the
    ideal kernel of that dtype: q, k, v, the probabilities, the gradient of the product q k^T and the output, which
    its backward reads as stored, are rounded to it, everything else is not. ``keep``: (B, H, N, M) bool, the weights
    that dropout keeps, drawn at random where it is None.
    """
    dtype = q.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v = (rounded(t.to(wide), low_precision) for t in (q, k, v))
    repeats = q.shape[1] // max(k.shape[1], 1)
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale

    product = q @ k.transpose(-1, -2)  # (B, H, N, M)
    if low_precision is not None and product.requires_grad:
        product.register_hook(lambda grad: grad.to(low_precision).to(wide))
    scores = product * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.to(wide)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.to(wide)
    if key_padding_mask is not None:
        scores = scores.masked_fill(~key_padding_mask[:, None, None, :], -math.inf)
    if causal:
        n, m = scores.shape[-2:]
        allowed = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        scores = scores.masked_fill(~allowed, -math.inf)

    pivot, total, weights = _softmax(scores, None if sinks is None else sinks.to(wide).view(-1, 1, 1))
    log_total = total.masked_fill(total == 0.0, 1.0).log()
    if dropout_p > 0.0:
        weights = torch.nn.functional.dropout(weights, dropout_p) if keep is None else weights * keep / (1 - dropout_p)
    exact = weights
    if low_precision is not None:
        weights = weights + (weights.to(low_precision).to(wide) - weights).detach()  # rounded, its gradient is not
    out = rounded(weights @ v, low_precision).to(dtype)
    if low_precision is not None and out.requires_grad:
        out = read_back(out, exact @ v, log_total)
    if not return_lse:
        return out
    return out, (pivot + total.log()).squeeze(-1).detach().to(wide)


def read_back(out: Tensor, exact: Tensor, log_total: Tensor) -> Tensor:
    """``out`` (..., D) with the gradient of a kernel whose backward reads it as stored, where ``exact`` is the output
    before rounding and ``log_total`` (..., 1) the logarithm of the softmax denominator.

    The gradient of a logit is its weight times (d weight - sum(d out * out)), and log_total's is the weight.
    """
    lost = (exact - out).detach()
    return out + (log_total - log_total.detach()) * lost.masked_fill(~lost.isfinite(), 0.0)


def _softmax(scores: Tensor, sinks: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Pivot (..., 1), sum of the exponentials (..., 1) and softmax; a row that is -inf throughout, or empty, gets
    zeros. ``sinks``, broadcast to (..., 1), are one more logit in the sum.
    """
    if scores.shape[-1] == 0:
        pivot = scores.new_full((*scores.shape[:-1], 1), -math.inf)
    else:
        pivot = scores.detach().amax(-1, keepdim=True)
    if sinks is not None:
        pivot = torch.maximum(pivot, sinks.detach())
    pivot = pivot.masked_fill(pivot == -math.inf, 0.0)
    exponentials = (scores - pivot).exp()
    total = exponentials.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + (sinks - pivot).exp()
    return pivot, total, exponentials / total.masked_fill(total == 0.0, 1.0)
