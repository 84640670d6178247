"""The parts of STRec: a sampler that scores items by their age, and a transformer layer whose queries are a few of its
rows (Li et al., Sparse Transformer for Sequential Recommendation, CIKM 2023, section 3.2).

Parameters are named as in the authors' code, so their checkpoints load with strict=True.
"""

import functools

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.layernorm import LayerNorm
from vitkern.ops.layernorm import layernorm
from vitkern.ops.sparse_attention import sparse_attention

SAMPLERS = ("mlp", "hash", "position", "random")
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}
CLOCKS = ("seconds", "log")
# The authors' table in place of the MLP: an item younger than so many seconds gains so much.
_HASH_BASE, _HASH_STEPS = -0.7824, ((1000, 0.015), (600, 0.06), (400, 0.1544), (250, 0.17), (150, 0.22), (70, 0.2))


def ages(timestamps: Tensor, real: Tensor, dtype: torch.dtype) -> Tensor:
    """t_i - t_N in seconds, 0 or less in a sorted sequence and 0 at padding (section 3.2.2).

    Args:
        timestamps: (B, N), seconds. int64 or float64: float32 has steps of 128 s for dates after 2004.
        real: (B, N) bool, False at padding.
        dtype: of the result. The difference is taken before the cast.
    """
    wide = timestamps if not timestamps.is_floating_point() else timestamps.double()
    return (wide - wide[:, -1:]).masked_fill(~real, 0).to(dtype)


class Sampler(nn.Module):
    """How much each item of a sequence is wanted: a function of its age, before noise.

    Args:
        kind: "mlp" of the age (the paper's), "hash" (the authors' fixed table of ages), "position" (an MLP of the rank
            i - N) or "random" (no preference; the noise alone chooses).
        activation: "tanh" or "relu", of the MLP.
        clock: what the MLP sees of an age of t seconds: "seconds" t, or "log" -log(1 + |t|).
        normalise: scores of a sequence get mean 0 and variance 1 over its real items.

    Raises:
        ValueError: an unknown kind, activation or clock.
    """

    def __init__(
        self, kind: str = "mlp", *, activation: str = "tanh", clock: str = "seconds", normalise: bool = True
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("sampler", kind, SAMPLERS), ("activation", activation, tuple(ACTIVATIONS)), ("clock", clock, CLOCKS)
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"Sampler: unknown {name}: got {value!r}; expected one of {', '.join(known)}.")
        self.kind, self.clock, self.normalise = kind, clock, normalise
        self.activation = ACTIVATIONS[activation]
        if kind in ("mlp", "position"):
            self.dense_1 = nn.Linear(1, 32)
            self.dense_2 = nn.Linear(32, 1)

    def _perceptron(self, x: Tensor) -> Tensor:
        return self.dense_2(self.activation(self.dense_1(x[..., None])))[..., 0]

    def raw(self, age: Tensor) -> Tensor:
        """Scores before they are normalised: (B, N) seconds, 0 or less -> (B, N)."""
        if self.kind == "random":
            return torch.zeros_like(age)
        if self.kind == "hash":
            gains = [gain * (age > -limit).to(age.dtype) for limit, gain in _HASH_STEPS]
            return _HASH_BASE + functools.reduce(torch.add, gains)
        if self.kind == "position":
            positions = torch.arange(1 - age.shape[1], 1, device=age.device, dtype=age.dtype)
            return self._perceptron(positions.expand_as(age))
        return self._perceptron(age if self.clock == "seconds" else torch.log1p(age.abs()).neg())

    def forward(self, age: Tensor, real: Tensor) -> Tensor:
        """(B, N) seconds and (B, N) bool -> (B, N); what padding gets has no meaning."""
        score = self.raw(age)
        if not self.normalise:
            return score
        count = real.sum(-1, keepdim=True).clamp_min(1)
        centred = score - score.masked_fill(~real, 0).sum(-1, keepdim=True) / count
        variance = centred.masked_fill(~real, 0).square().sum(-1, keepdim=True) / count
        return centred * torch.rsqrt(variance + 1e-10)


class SampledAttention(nn.Module):
    """Attention of K query rows over M key rows, output projection, dropout, and LayerNorm of the residual sum.

    Args:
        dim: channels; ``heads`` divides it.
        projections: False for the bare softmax(q k^T) v of the paper's equation: no weights, no 1 / sqrt(D).
        strength: of the gates, see `vitkern.ops.sparse_attention.sparse_attention`.
        drop: dropout of the branch, in training.
        attention_drop: dropout of the attention weights, in training; above 0 PyTorch runs in the kernel's place.
    """

    query: nn.Module
    key: nn.Module
    value: nn.Module
    dense: nn.Module

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        projections: bool,
        strength: float,
        drop: float,
        attention_drop: float,
        eps: float,
    ) -> None:
        super().__init__()
        for name in ("query", "key", "value", "dense"):
            setattr(self, name, nn.Linear(dim, dim) if projections else nn.Identity())
        self.LayerNorm = LayerNorm(dim, eps)
        self.heads, self.strength, self.drop, self.attention_drop = heads, strength, drop, attention_drop
        self.scale = None if projections else 1.0

    def forward(
        self, rows: Tensor, x: Tensor, mask: Tensor | None, query_gate: Tensor | None, key_gate: Tensor | None
    ) -> Tensor:
        """rows (B, K, C), x (B, M, C), mask (B, M) True attends, gates (B, K) and (B, M) -> (B, K, C)."""
        q, k, v = (
            projection(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, K or M, D)
            for projection, t in ((self.query, rows), (self.key, x), (self.value, x))
        )
        out = sparse_attention(
            q, k, v, key_padding_mask=mask, query_gate=query_gate, key_gate=key_gate,
            strength=self.strength, scale=self.scale, dropout_p=self.attention_drop if self.training else 0.0,
        )  # fmt: skip
        branch = F.dropout(self.dense(out.transpose(1, 2).flatten(2)), self.drop, self.training)
        return layernorm(branch, self.LayerNorm.weight, self.LayerNorm.bias, self.LayerNorm.eps, residual=rows)[0]


class FeedForward(nn.Module):
    """dense_2(gelu(dense_1(x))), dropout, and LayerNorm of the residual sum; GELU by erf."""

    def __init__(self, dim: int, hidden: int, *, drop: float, eps: float) -> None:
        super().__init__()
        self.dense_1 = nn.Linear(dim, hidden)
        self.dense_2 = nn.Linear(hidden, dim)
        self.LayerNorm = LayerNorm(dim, eps)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        branch = F.dropout(self.dense_2(F.gelu(self.dense_1(x))), self.drop, self.training)
        return layernorm(branch, self.LayerNorm.weight, self.LayerNorm.bias, self.LayerNorm.eps, residual=x)[0]


class SparseTransformerLayer(nn.Module):
    """One layer of STRec: `SampledAttention`, then `FeedForward`, both post-norm (section 3.2.1).

    Args:
        dim: channels C. heads: H, a divisor of it. hidden: width of the feed-forward part.
        projections, strength: see `SampledAttention`.
        drop: dropout of both branches. attention_drop: of the attention weights. eps: of both norms.

    Raises:
        ValueError: ``heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        projections: bool = True,
        strength: float = 1e8,
        drop: float = 0.0,
        attention_drop: float = 0.0,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"SparseTransformerLayer: channels do not split into heads: got dim={dim}, heads={heads}; "
                "expected a divisor."
            )
        self.multi_head_attention = SampledAttention(
            dim,
            heads,
            projections=projections,
            strength=strength,
            drop=drop,
            attention_drop=attention_drop,
            eps=eps,
        )
        self.feed_forward = FeedForward(dim, hidden, drop=drop, eps=eps)

    def forward(
        self,
        rows: Tensor,
        x: Tensor,
        mask: Tensor | None = None,
        query_gate: Tensor | None = None,
        key_gate: Tensor | None = None,
    ) -> Tensor:
        """K sampled rows against all M rows of the layer before.

        Args:
            rows: (B, K, C). x: (B, M, C).
            mask: (B, M) bool, True attends; None: all do.
            query_gate, key_gate: (B, K) and (B, M), both or neither.

        Returns:
            (B, K, C).
        """
        return self.feed_forward(self.multi_head_attention(rows, x, mask, query_gate, key_gate))
