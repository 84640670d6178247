"""Additive attention as the plain formula: scores of a perceptron with one hidden layer (Bahdanau et al., Neural
Machine Translation by Jointly Learning to Align and Translate, arXiv 1409.0473, appendix A.1.2)."""

import math

import torch
from torch import Tensor

from vitkern.reference.attention import _softmax, read_back
from vitkern.reference.rounding import rounded


def additive_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    *,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """The definition of `vitkern.ops.additive_attention.additive_attention`, with the same arguments.

    Computes in float64 when ``q`` is float64, else in float32, and holds N x M x F hidden features. ``low_precision``
    gives the ideal kernel of that dtype: the weights are rounded where they are operands of products.
    """
    dtype = q.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    q, k, v = (rounded(t.to(wide), low_precision) for t in (q, k, v))
    hidden = torch.tanh(q[:, :, :, None] + k[:, :, None])  # (B, H, N, M, F)
    scores = torch.einsum("bhnmf,hf->bhnm", hidden, weight.to(wide))
    if key_padding_mask is not None:
        scores = scores.masked_fill(~key_padding_mask[:, None, None, :], -math.inf)
    _, total, weights = _softmax(scores)
    if dropout_p > 0.0:
        weights = torch.nn.functional.dropout(weights, dropout_p)
    exact = weights
    if low_precision is not None:
        weights = weights + (weights.to(low_precision).to(wide) - weights).detach()
    out = rounded(weights @ v, low_precision).to(dtype)
    if low_precision is not None and out.requires_grad:
        out = read_back(out, exact @ v, total.masked_fill(total == 0.0, 1.0).log())
    return out
