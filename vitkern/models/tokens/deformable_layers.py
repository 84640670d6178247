"""Encoder and decoder of Deformable DETR (Zhu et al. 2020, arXiv 2010.04159, section 4). Named as in transformers."""

from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.backbone import Checkpointed
from vitkern.models.tokens.pyramid import Pyramid
from vitkern.nn.deformable_attention import DeformableAttention
from vitkern.nn.heads import head_dim
from vitkern.nn.layernorm import LayerNorm, add_norm
from vitkern.nn.layernorm_mlp import ReluMlp
from vitkern.ops.attention import attention


class QueryAttention(nn.Module):
    """Attention among queries, whose positions count for where they look and not for what they say."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        head_dim("QueryAttention", dim, num_heads)
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """x, position (B, Q, C) -> (B, Q, C)."""
        placed = x + position
        rows = self.q_proj(placed), self.k_proj(placed), self.v_proj(x)
        q, k, v = (row.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for row in rows)  # (B, H, Q, D) each
        return self.o_proj(attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """What follows attention in both: norm(x + dropout(attention)), then norm(x + FFN)."""

    def __init__(self, dim: int, hidden_dim: int, drop: float) -> None:
        super().__init__()
        self.self_attn_layer_norm = LayerNorm(dim, eps=1e-5)
        self.mlp = ReluMlp(dim, hidden_dim, drop)
        self.final_layer_norm = LayerNorm(dim, eps=1e-5)
        self.drop = nn.Dropout(drop)

    def add_mlp(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return add_norm(x, self.mlp(x), self.final_layer_norm)


class EncoderLayer(Layer):
    """Each pixel looks at a few places of every map (figure 2)."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, levels: int, points: int, drop: float) -> None:
        super().__init__(dim, hidden_dim, drop)
        self.self_attn = DeformableAttention(dim, levels, num_heads, points)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, maps: Pyramid) -> Tensor:
        """x (B, S, C), position (B or 1, S, C), reference (B or 1, S, L or 1, 2) -> (B, S, C)."""
        found = self.self_attn(x + position, reference, x, maps.shapes, None, maps.padding)
        return self.add_mlp(add_norm(x, self.drop(found), self.self_attn_layer_norm))


class DecoderLayer(Layer):
    """Queries look at each other, then each at a few places of every map."""

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, levels: int, points: int, drop: float) -> None:
        super().__init__(dim, hidden_dim, drop)
        self.self_attn = QueryAttention(dim, num_heads)
        self.encoder_attn = DeformableAttention(dim, levels, num_heads, points)
        self.encoder_attn_layer_norm = LayerNorm(dim, eps=1e-5)

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, memory: Tensor, maps: Pyramid) -> Tensor:
        """x, position (B, Q, C), reference (B, Q, L or 1, 2 or 4), memory (B, S, C) -> (B, Q, C)."""
        x = add_norm(x, self.drop(self.self_attn(x, position)), self.self_attn_layer_norm)
        found = self.encoder_attn(x + position, reference, memory, maps.shapes, None, maps.padding)
        return self.add_mlp(add_norm(x, self.drop(found), self.encoder_attn_layer_norm))


class Encoder(Checkpointed):
    """``depth`` layers; other arguments are those of `EncoderLayer`."""

    def __init__(self, depth: int, drop: float, **layer: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer(drop=drop, **layer) for _ in range(depth)])
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, position: Tensor, maps: Pyramid) -> Tensor:
        """(B, S, C) -> (B, S, C)."""
        x, reference = self.drop(x), maps.on_maps(maps.centres)
        for layer in self.layers:
            x = self.run(layer, x, position, reference, maps)
        return x


class Decoder(Checkpointed):
    """``depth`` layers; other arguments are those of `DecoderLayer`.

    refine: each layer looks where the one before has placed its box (section 4, iterative bounding box refinement).
    """

    def __init__(self, depth: int, refine: bool, **layer: Any) -> None:
        super().__init__()
        self.refine = refine
        self.layers = nn.ModuleList([DecoderLayer(**layer) for _ in range(depth)])

    def forward(
        self, x: Tensor, position: Tensor, reference: Tensor, memory: Tensor, maps: Pyramid, heads: nn.ModuleList
    ) -> list[tuple[Tensor, Tensor]]:
        """x, position (B, Q, C), reference (B, Q, 2 or 4) -> of each layer, or in evaluation of the last: queries
        (B, Q, C) and boxes (B, Q, 4), centre, width and height in [0, 1], by ``heads``."""
        found = []
        for index, layer in enumerate(self.layers):
            x = self.run(layer, x, position, maps.on_maps(reference), memory, maps)
            if self.training or self.refine or index == len(self.layers) - 1:
                start = logits_of(reference)
                boxes = (heads[index](x) + F.pad(start, (0, 4 - start.shape[2]))).sigmoid()
                found.append((x, boxes))
                reference = boxes.detach() if self.refine else reference
        return found


def logits_of(x: Tensor, eps: float = 1e-5) -> Tensor:
    """The inverse of the sigmoid, of numbers that are kept in [eps, 1 - eps]."""
    x = x.clamp(0.0, 1.0)
    return (x.clamp(min=eps) / (1.0 - x).clamp(min=eps)).log()
