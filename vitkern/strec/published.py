"""STRec and its dense backbone computed step by step as the authors' code does, to measure against.

The scores, their softmax and each step of GELU are tensors of their own; the dense backbone computes every row in every
layer, adds a mask of zero, and holds the output of all layers (github.com/ChengxiLi5/STRec, Backbone.py and models.py
at d0e4304, on RecBole's TransformerEncoder).
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.strec import FeedForward, SampledAttention
from vitkern.strec.model import STRec
from vitkern.strec.sampling import sampled_order


class AsPublished(nn.Module):
    """The network of ``model`` in eval mode, with its weights and its results, for sequences without padding.

    Raises:
        ValueError: the model's form has no projections.
    """

    def __init__(self, model: STRec):
        super().__init__()
        if not model.form.projections:
            raise ValueError("AsPublished: the form has no projections: got the paper's; expected official or log.")
        self.model = model

    def item_table(self) -> Tensor:
        return self.model.item_table()

    def forward(self, seq: Tensor, timestamps: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, N) int64, (B, N) seconds and (B, N) -> (B, d), as `STRec.forward`."""
        model, length = self.model, seq.shape[1]
        positions = torch.arange(model.max_len - length, model.max_len, device=seq.device).expand_as(seq)
        x = _norm(model.LayerNorm, model.item_embedding(seq) + model.position_embedding(positions))
        layers = model.trm_encoder["layer"]
        if model.dense:
            outputs, mask = [x], x.new_zeros(1)
            for layer in layers:
                x = outputs[-1]
                outputs.append(_feed_forward(layer.feed_forward, _attend(layer.multi_head_attention, x, x, mask)))
            return outputs[-1][:, -1]
        order = sampled_order(seq, model.score(seq, timestamps, noise))
        rows = x.gather(1, order[:, : model.ks[0], None].expand(-1, -1, x.shape[2]))
        for layer, k in zip(layers, (*model.ks[1:], 1), strict=True):
            x = _feed_forward(layer.feed_forward, _attend(layer.multi_head_attention, rows, x))
            rows = x[:, :k]
        return x[:, 0]


def _attend(part: SampledAttention, rows: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, K, C) and (B, M, C) -> (B, K, C)."""
    q, k, v = (
        projection(t).unflatten(-1, (part.heads, -1)).transpose(1, 2).contiguous()  # (B, H, K or M, D)
        for projection, t in ((part.query, rows), (part.key, x), (part.value, x))
    )
    scores = q @ k.transpose(2, 3)  # (B, H, K, M)
    scores = scores / math.sqrt(q.shape[3])
    scores = scores if mask is None else scores + mask
    weights = scores.softmax(-1)
    context = (weights @ v).transpose(1, 2).contiguous().flatten(2)
    return _norm(part.LayerNorm, part.dense(context) + rows)


def _feed_forward(part: FeedForward, x: Tensor) -> Tensor:
    hidden = part.dense_1(x)
    hidden = hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0)))
    return _norm(part.LayerNorm, part.dense_2(hidden) + x)


def _norm(norm: LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
