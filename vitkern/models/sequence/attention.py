"""Attention of sequence models: over the tokens so far, and from a decoder to its encoder (Vaswani et al. 2017, arXiv
1706.03762, section 3.2.3)."""

import torch.nn as nn
from torch import Tensor

from vitkern.models.sequence.cache import KeyValues
from vitkern.nn.attention import Attention
from vitkern.nn.heads import head_dim
from vitkern.ops.attention import attention, attention_qkvpacked


def _attend(q: Tensor, rows: Tensor, mask: Tensor | None, causal: bool, dropout_p: float) -> Tensor:
    """q (B, N, H, D) over keys and values (B, M, 2, H, D) -> (B, N, C). One query is the last: it sees all keys."""
    k, v = rows.permute(2, 0, 3, 1, 4)  # (B, H, M, D) each
    causal = causal and q.shape[1] > 1
    out = attention(q.transpose(1, 2), k, v, key_padding_mask=mask, causal=causal, dropout_p=dropout_p)
    return out.transpose(1, 2).flatten(2)


class SelfAttention(Attention):
    """`vitkern.nn.Attention` with padding, in causal order, and with a cache.

    Args:
        causal: a token attends to itself and those before it.
        dim, num_heads: as in `vitkern.nn.Attention`. attn_drop: too, but read, not called: its hooks do not run.
    """

    def __init__(self, dim: int, num_heads: int, *, causal: bool = False, attn_drop: float = 0.0) -> None:
        super().__init__(dim, num_heads, attn_drop=attn_drop)
        self.causal = causal

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KeyValues | None = None) -> Tensor:
        """x (B, N, C), mask (B, M) bool over all M tokens so far, True is no padding -> (B, N, C)."""
        dropout_p = self.attn_drop.p if self.training else 0.0
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, D)
        if cache is None:
            out = attention_qkvpacked(qkv, key_padding_mask=mask, causal=self.causal, dropout_p=dropout_p).flatten(2)
        else:
            out = _attend(qkv[:, :, 0], cache.append(qkv[:, :, 1:]), mask, self.causal, dropout_p)
        return self.proj(out)


class CrossAttention(nn.Module):
    """Queries of a decoder over the tokens of an encoder.

    Args:
        dim: channels C of both; ``num_heads`` divides it.
        attn_drop: dropout of the attention weights, 0 <= p < 1, in training. Read, not called: its hooks do not run.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, *, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim("CrossAttention", dim, num_heads)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None, cache: KeyValues | None = None) -> Tensor:
        """x (B, N, C), memory (B, M, C), its mask (B, M) bool, True is no padding -> (B, N, C).

        With a cache ``memory`` is projected in the first call alone.
        """
        q = self.q(x).unflatten(-1, (self.num_heads, self.head_dim))  # (B, N, H, D)
        if cache is not None and cache.length:
            rows = cache.rows
        else:
            rows = self.kv(memory).unflatten(-1, (2, self.num_heads, self.head_dim))  # (B, M, 2, H, D)
            rows = rows if cache is None else cache.append(rows)
        return self.proj(_attend(q, rows, mask, False, self.attn_drop.p if self.training else 0.0))
