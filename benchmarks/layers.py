"""Layers that the benchmarks time: their sizes per image, the problem that checks them, and the work they cannot avoid.

Work counts inputs read once, results written once and no padding. The backward of attention counts the recomputed
scores: 10 B H N M D, as is the custom.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vitkern.lab.proving import problems

SCORES = 2**27  # elements of a score matrix, of all heads, that float64 has room for several times over


class Work(NamedTuple):
    moved: int  # bytes
    flops: int


def without(problem: problems.Problem, name: str) -> problems.Problem:
    """``problem`` less one of its operands."""

    def inputs(generator):
        return {key: value for key, value in problem.inputs(generator).items() if key != name}

    return replace(problem, inputs=inputs, gradients=tuple(key for key in problem.gradients if key != name))


@dataclass(frozen=True)
class Layer:
    """``batch``: images of a call on a GPU; ``quick``: the small case of its operator."""

    layer: str
    batch: int = field(default=64, kw_only=True)
    quick: bool = field(default=False, kw_only=True)
    op = ""

    @property
    def scores(self) -> int:
        """Elements of the score matrices of an image."""
        return 0

    @property
    def operator(self) -> str:
        """The registered operator that launches kernels for ``op``."""
        return self.op

    def problem(self, batch: int) -> problems.Problem:
        """The case as ``python -m vitkern check`` sees it: inputs, operator, reference."""
        raise NotImplementedError

    def checked(self, images: int) -> problems.Problem:
        """What is verified in place of a batch: ``images`` images."""
        return self.problem(images)

    def _work(self, batch: int, itemsize: int, backward: bool) -> tuple[int, int]:
        raise NotImplementedError

    def work(self, batch: int, itemsize: int, mode: str) -> Work:
        """Of one call in ``mode``: "forward", "backward" or "training", which is both."""
        passes = {"forward": (False,), "backward": (True,), "training": (False, True)}[mode]
        return Work(*map(sum, zip(*(self._work(batch, itemsize, backward) for backward in passes), strict=True)))


@dataclass(frozen=True)
class Attention(Layer):
    """heads H, tokens N, head dim D; ``keys`` M where it is not N; ``bias``: learned, (H, N, M), shared by the batch;
    ``masked``: the last keys of most images are padding."""

    heads: int
    tokens: int
    head_dim: int
    keys: int = 0
    bias: bool = False
    masked: bool = False
    op = "attention"

    @property
    def scores(self) -> int:
        return self.heads * self.tokens * (self.keys or self.tokens)

    def problem(self, batch: int, queries: int = 0, heads: int = 0):
        n, m, h = queries or self.tokens, self.keys or self.tokens, heads or self.heads
        options = dict(keys=m, bias=(1, h, n, m) if self.bias else None)
        if self.masked:
            options["extra"] = problems.key_padding(batch, m)
        return problems.attention_problem(self.layer, (batch, h, n, self.head_dim), **options)

    def checked(self, images: int):
        """Of very long sequences one head, and no more queries than float64 has room for."""
        if self.scores <= SCORES:
            return self.problem(images)
        return self.problem(1, max(1, min(self.tokens, SCORES // (self.keys or self.tokens))), heads=1)

    def _work(self, batch, itemsize, backward):
        n, m = self.tokens, self.keys or self.tokens
        width = self.heads * self.head_dim
        bias = self.bias * self.heads * n * m * (1 + backward)
        # Forward: q, out and k, v. Backward: q, dout, dq and k, v, dk, dv.
        moved = batch * width * (3 * n + 4 * m if backward else 2 * (n + m)) + bias
        return itemsize * moved, (10 if backward else 4) * batch * width * n * m

    def __str__(self) -> str:
        keys = f" M{self.keys}" if self.keys else ""
        terms = " learned bias" * self.bias + " key mask" * self.masked
        return f"{self.layer} H{self.heads} N{self.tokens}{keys} D{self.head_dim}{terms}"


@dataclass(frozen=True)
class Window(Layer):
    """A square image of ``side`` tokens, C channels; head dim is C / H; ``cosine``: the scores of SwinV2; ``table``: of
    biases."""

    side: int
    channels: int
    heads: int
    window: int
    shift: int = 0
    cosine: bool = False
    table: bool = True
    op = "window_attention"

    @property
    def scores(self) -> int:
        return self.heads * self.side**2 * self.window**2

    def problem(self, batch: int):
        sizes = dict(
            heads=self.heads, dim=self.channels // self.heads, batch=batch, shift=(self.shift,) * 2, cosine=self.cosine
        )
        found = problems.window_problem(self.layer, (self.side,) * 2, (self.window,) * 2, **sizes)
        return found if self.table else without(found, "table")

    def _work(self, batch, itemsize, backward):
        unit = batch * self.side**2 * self.channels
        return itemsize * unit * (7 if backward else 4), (10 if backward else 4) * unit * self.window**2

    def __str__(self) -> str:
        terms = (f" shift {self.shift}" if self.shift else "") + ("" if self.table else " no bias")
        return f"{self.layer} {self.side}x{self.side} C{self.channels} window {self.window}{terms}"


@dataclass(frozen=True)
class Sampled(Layer):
    """``sampled`` of N items of a user's history attend to all of them (0: every one does, with gates)."""

    heads: int
    tokens: int
    head_dim: int
    sampled: int = 0
    op = "sparse_attention"

    def problem(self, batch: int):
        shape = batch, self.heads, self.tokens, self.tokens, self.head_dim
        return problems.sparse_problem(self.layer, *shape, sampled=self.sampled, gated=not self.sampled)

    def _work(self, batch, itemsize, backward):
        queries, width = self.sampled or self.tokens, self.heads * self.head_dim
        moved = batch * width * (3 * queries + 4 * self.tokens if backward else 2 * (queries + self.tokens))
        return itemsize * moved, (10 if backward else 4) * batch * width * queries * self.tokens

    def __str__(self) -> str:
        which = f"{self.sampled} of {self.tokens}" if self.sampled else f"{self.tokens} gated"
        return f"{self.layer} H{self.heads} {which} D{self.head_dim}"


@dataclass(frozen=True)
class LayerNorm(Layer):
    """``tokens`` rows of C an image; ``residual``: added first, the sum returned too."""

    tokens: int
    channels: int
    residual: bool = False
    op = "layernorm"

    def problem(self, batch: int):
        return problems.layernorm_problem(self.layer, batch * self.tokens, self.channels, residual=self.residual)

    def _work(self, batch, itemsize, backward):
        unit = batch * self.tokens * self.channels
        tensors = (4 if self.residual else 3) if backward else (4 if self.residual else 2)
        return itemsize * unit * tensors, 8 * unit

    def __str__(self) -> str:
        return f"{self.layer} {self.tokens} x C{self.channels}{' + residual' if self.residual else ''}"


@dataclass(frozen=True)
class Mlp(Layer):
    """``tokens`` rows of C an image, hidden width 4 C, exact GELU; ``post_norm``: the block of SwinV2."""

    tokens: int
    channels: int
    post_norm: bool = False
    op = "layernorm_mlp"

    def problem(self, batch: int):
        options = dict(post_norm=True) if self.post_norm else {}
        return problems.mlp_problem(self.layer, batch, self.tokens, self.channels, 4 * self.channels, **options)

    def _work(self, batch, itemsize, backward):
        unit, weights = batch * self.tokens * self.channels, 8 * self.channels**2
        flops = (32 if backward else 16) * unit * self.channels
        return itemsize * (unit * (3 if backward else 2) + weights * (2 if backward else 1)), flops

    def __str__(self) -> str:
        return f"{self.layer} {self.tokens} x C{self.channels}{' post-norm' if self.post_norm else ''}"
