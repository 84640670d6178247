"""Sampled cross-attention of STRec as the plain formula: few queries, and a soft rank-one mask while the sampler is
trained (Li et al., Sparse Transformer for Sequential Recommendation, CIKM 2023, sections 3.2.1 and 3.2.2).
"""

import math

import torch
from torch import Tensor

from vitkern.reference.attention import _softmax
from vitkern.reference.rounding import rounded


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    index: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    query_gate: Tensor | None = None,
    key_gate: Tensor | None = None,
    strength: float = 1e8,
    scale: float | None = None,
    dropout_p: float = 0.0,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """The definition of `vitkern.ops.sparse_attention.sparse_attention`, with the same arguments.

    Computes in float64 when ``q`` is float64, else in float32. The gates' logit (query_gate_i * key_gate_j - 1) *
    strength is shifted by its largest value over the keys that may be attended to: the softmax is the same, and 1e8
    does not drown q . k in float32. ``low_precision`` gives the ideal kernel of that dtype.
    """
    dtype = q.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if index is not None:
        q = q.gather(2, index[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
    q, k, v = (rounded(t.to(wide), low_precision) for t in (q, k, v))
    product = q @ k.transpose(-1, -2)  # (B, H, K, M)
    if low_precision is not None and product.requires_grad:
        product.register_hook(lambda grad: grad.to(low_precision).to(wide))
    scores = product * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if query_gate is not None:
        keys = key_gate.to(wide)
        allowed = keys if key_padding_mask is None else keys.masked_fill(~key_padding_mask, -math.inf)
        top = allowed.detach().amax(-1, keepdim=True) if keys.shape[-1] else keys.new_zeros(keys.shape[0], 1)
        below = keys - top.masked_fill(top == -math.inf, 0.0)
        scores = scores + strength * (query_gate.to(wide)[:, None, :, None] * below[:, None, None, :])
    if key_padding_mask is not None:
        scores = scores.masked_fill(~key_padding_mask[:, None, None, :], -math.inf)
    weights = _softmax(scores)[2]
    if dropout_p > 0.0:
        weights = torch.nn.functional.dropout(weights, dropout_p)
    if low_precision is not None:
        weights = weights + (weights.to(low_precision).to(wide) - weights).detach()
    return rounded(weights @ v, low_precision).to(dtype)
