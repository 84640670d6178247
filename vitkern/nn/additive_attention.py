"""Additive attention as a module (Bahdanau et al., arXiv 1409.0473, appendix A.1.2)."""

import torch.nn as nn
from torch import Tensor

from vitkern.ops.additive_attention import additive_attention


class AdditiveAttention(nn.Module):
    """softmax(w_v^T tanh(W_q query + W_k key)) value, for queries and keys of any two widths; named as in *Dive into
    Deep Learning*, section 11.3, of whose ``AdditiveAttention`` it takes weights.

    Args:
        query_dim: channels of a query.
        key_dim: channels of a key.
        hidden_dim: hidden features F.
        dropout: of the attention weights, 0 <= p < 1, in training.
    """

    def __init__(self, query_dim: int, key_dim: int, hidden_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.W_q = nn.Linear(query_dim, hidden_dim, bias=False)
        self.W_k = nn.Linear(key_dim, hidden_dim, bias=False)
        self.w_v = nn.Linear(hidden_dim, 1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, N, query_dim), (B, M, key_dim), (B, M, D), and ``mask`` (B, M) bool, True attends -> (B, N, D). Keys are
        the queries by default, values the keys."""
        key = query if key is None else key
        value = key if value is None else value
        q, k = self.W_q(query), self.W_k(key)
        out = additive_attention(
            q[:, None],
            k[:, None],
            value[:, None],
            self.w_v.weight,
            key_padding_mask=mask,
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        return out.squeeze(1)
