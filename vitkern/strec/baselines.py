"""What STRec is compared with: SASRec, BERT4Rec, GRU4Rec and popularity, behind the same interface.

A recommender has ``forward(seq, timestamps, noise=None) -> (B, d)``, the state of a right-aligned sequence (B, N) whose
product with ``item_table()`` (n_items, d) scores the next item. The dense backbone is `vitkern.strec.model.STRec` with
every k_l = N.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class Recommender(nn.Module):
    """An item table and dropout."""

    def __init__(self, n_items: int, max_len: int, d: int, dropout: float, extra_items: int = 0):
        super().__init__()
        self.n_items, self.max_len = n_items, max_len
        self.item_embedding = nn.Embedding(n_items + extra_items, d, padding_idx=0)
        self.drop = nn.Dropout(dropout)

    def item_table(self) -> Tensor:
        return self.item_embedding.weight[: self.n_items]


class Positional(Recommender):
    """Adds position embeddings, which count from the right (the newest is the last), and LayerNorm."""

    def __init__(self, n_items: int, max_len: int, d: int, dropout: float, positions: int, extra_items: int = 0):
        super().__init__(n_items, max_len, d, dropout, extra_items)
        self.position_embedding = nn.Embedding(positions, d)
        self.LayerNorm = nn.LayerNorm(d, eps=1e-12)

    def embed(self, seq: Tensor) -> Tensor:
        positions = self.position_embedding.weight[-seq.shape[1] :]
        return self.drop(self.LayerNorm(self.item_embedding(seq) + positions))

    def initialise(self) -> None:
        """Normal of deviation 0.02 for embeddings and linear layers, as in RecBole; biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "padding_idx", None) is not None:
                nn.init.zeros_(module.weight[0].detach())


def _encoder(
    d: int, layers: int, heads: int, hidden: int, dropout: float, attention_dropout: float
) -> nn.TransformerEncoder:
    """RecBole's post-norm GELU blocks: dropout of both branches, none between the two linear layers."""
    layer = nn.TransformerEncoderLayer(d, heads, hidden, dropout, F.gelu, 1e-12, batch_first=True)
    layer.dropout, layer.self_attn.dropout = nn.Identity(), attention_dropout
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def _last_row(layer: nn.TransformerEncoderLayer, x: Tensor, padding: Tensor) -> Tensor:
    """The last row of ``layer(x)`` alone: (B, N, d), and (B, N) True at padding -> (B, d)."""
    row = x[:, -1:]
    branch = layer.self_attn(row, x, x, key_padding_mask=padding, need_weights=False)[0]
    row = layer.norm1(row + layer.dropout1(branch))
    branch = layer.linear2(layer.activation(layer.linear1(row)))
    return layer.norm2(row + layer.dropout2(branch))[:, 0]


class SASRec(Positional):
    """Causal self-attention (Kang and McAuley, ICDM 2018) with the post-norm GELU blocks of RecBole."""

    def __init__(
        self, n_items, max_len, d=64, n_layers=2, n_heads=2, *, hidden=None, dropout=0.5, attention_dropout=0.5
    ):
        super().__init__(n_items, max_len, d, dropout, positions=max_len)
        self.encoder = _encoder(d, n_layers, n_heads, hidden or 4 * d, dropout, attention_dropout)
        self.heads = n_heads
        self.initialise()

    def forward(self, seq: Tensor, timestamps: Tensor, noise: Tensor | None = None) -> Tensor:
        length = seq.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=seq.device).tril()
        attended = causal & (seq != 0)[:, None, :] | torch.eye(length, dtype=torch.bool, device=seq.device)
        mask = ~attended.repeat_interleave(self.heads, 0)  # (B H, N, N), True is not attended to
        *layers, final = self.encoder.layers
        x = self.embed(seq)
        for layer in layers:
            x = layer(x, src_mask=mask)
        return _last_row(final, x, seq == 0)


class BERT4Rec(Positional):
    """Bidirectional self-attention trained to fill masked items (Sun et al., CIKM 2019).

    In training each real item is masked with probability ``mask_ratio``; in half of the samples the last alone is, as
    it is when serving.
    """

    def __init__(
        self, n_items, max_len, d=64, n_layers=2, n_heads=2, *,
        hidden=None, dropout=0.5, attention_dropout=0.5, mask_ratio=0.2,
    ):  # fmt: skip
        super().__init__(n_items, max_len, d, dropout, positions=max_len + 1, extra_items=1)
        self.encoder = _encoder(d, n_layers, n_heads, hidden or 4 * d, dropout, attention_dropout)
        self.dense, self.norm, self.mask_ratio = nn.Linear(d, d), nn.LayerNorm(d, eps=1e-12), mask_ratio
        self.initialise()

    def _states(self, seq: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(self.encoder(self.embed(seq), src_key_padding_mask=seq == 0))))

    def forward(self, seq: Tensor, timestamps: Tensor, noise: Tensor | None = None) -> Tensor:
        return self._states(F.pad(seq, (0, 1), value=self.n_items))[:, -1]

    def cloze(self, seq: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """States (M, d) and items (M,) of all that was masked in the sequences with their targets at the end."""
        seq = torch.cat([seq, target[:, None]], dim=1)
        masked = (torch.rand(seq.shape, device=seq.device) < self.mask_ratio) & (seq != 0)
        last_alone = torch.rand(len(seq), 1, device=seq.device) < 0.5
        masked = masked & ~last_alone
        masked[:, -1] |= last_alone[:, 0] | ~masked.any(1)
        return self._states(seq.masked_fill(masked, self.n_items))[masked], seq[masked]


class GRU4Rec(Recommender):
    """A gated recurrent network (Hidasi et al., ICLR 2016; RecBole's form, one layer and a linear output)."""

    def __init__(self, n_items, max_len, d=64, n_layers=1, n_heads=0, *, hidden=None, dropout=0.3):
        super().__init__(n_items, max_len, d, dropout)
        self.gru = nn.GRU(d, hidden or 2 * d, n_layers, bias=False, batch_first=True)
        self.dense = nn.Linear(hidden or 2 * d, d)
        nn.init.xavier_normal_(self.item_embedding.weight)
        nn.init.zeros_(self.item_embedding.weight[0].detach())

    def forward(self, seq: Tensor, timestamps: Tensor, noise: Tensor | None = None) -> Tensor:
        length = (seq != 0).sum(1)
        # Aligned to the left: the network starts at the first item, not at padding.
        index = (torch.arange(seq.shape[1], device=seq.device) + (seq.shape[1] - length)[:, None]) % seq.shape[1]
        states, _ = self.gru(self.drop(self.item_embedding(seq.gather(1, index))))
        return self.dense(states[torch.arange(len(seq), device=seq.device), length - 1])


class Popularity(nn.Module):
    """Every sequence gets the items in the order of how often they are in training."""

    def __init__(self, n_items: int, max_len: int):
        super().__init__()
        self.n_items, self.max_len = n_items, max_len
        self.register_buffer("count", torch.zeros(n_items, 1))

    def forward(self, seq: Tensor, timestamps: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.count.new_ones(len(seq), 1)

    def item_table(self) -> Tensor:
        return self.count
