"""Maps of attention by the formula: the weights, and what of a gradient goes through each (Chefer et al., arXiv
2103.15679, equation 5). They hold the map of every head."""

import torch
from torch import Tensor

from vitkern.reference.attention import attention


def attention_map(q: Tensor, k: Tensor, **terms) -> Tensor:
    """The weights of each head (B, H, N, M): what attention gives where the values are the rows of the identity."""
    keys = k.shape[2]
    one_hot = torch.eye(keys, dtype=k.dtype, device=k.device).expand(*k.shape[:2], keys, keys)
    return attention(q, k, one_hot, **terms)


def attention_relevance(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, **terms) -> Tensor:
    """max(0, P dP) of each head (B, H, N, M), dP = grad v^T."""
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return (attention_map(q, k, **terms) * (grad @ v.mT)).clamp(min=0)
