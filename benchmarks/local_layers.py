"""Layers of local attention: which tokens of an image a token sees is a matter of where it lies."""

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from benchmarks import grouping
from benchmarks.layers import SCORES, Layer
from vitkern.lab.proving.problems import Problem, normal


@dataclass(frozen=True)
class Local(Layer):
    """A square image of ``side`` tokens, C channels; head dim is C / H."""

    side: int
    channels: int
    heads: int
    operator = "local_attention"
    vectors = 0  # learnt ones that a query is multiplied with, beside the keys
    scale: ClassVar[float | None] = None  # of the scores; D ** -0.5 by default

    @property
    def head_dim(self) -> int:
        return self.channels // self.heads

    @property
    def seen(self) -> float:
        """Keys of a query, in the mean."""
        raise NotImplementedError

    @property
    def keys(self) -> int:
        """Keys of a group, see `groups`."""
        return self.seen

    @property
    def scores(self) -> int:
        return self.heads * self.side**2 * self.keys

    def groups(self, **tensors) -> grouping.Groups:
        """The layer as queries in groups with copies of their keys; ``tensors`` are those of `problem`."""
        raise NotImplementedError

    def _problem(
        self, batch: int, options: dict, kind=Problem, function: str = "", tokens: int = 0, **learnt
    ) -> Problem:
        """On qkv, and on tensors of the shapes ``learnt``. ``tokens``: of a sequence in place of the image."""
        shapes = dict(qkv=(batch, *((tokens,) if tokens else (self.side,) * 2), 3 * self.channels)) | learnt

        def inputs(generator):
            std = self.head_dim**-0.5
            return {n: normal(generator, *shape, std=std if "rel" in n else 1.0) for n, shape in shapes.items()}

        def formula(low_precision=None, **arguments):
            from vitkern.reference.attention import attention

            of = self.groups(**{name: arguments[name] for name in shapes}, low_precision=low_precision)
            options = dict(scale=self.scale, low_precision=low_precision)
            return of.image(attention(of.q, of.k, of.v, bias=of.added(), **options))

        options = dict(num_heads=self.heads) | options
        return kind(self.op, self.layer, inputs, tuple(shapes), options, function, formula=formula)

    def _work(self, batch, itemsize, backward):
        unit = batch * self.side**2 * self.channels
        flops = unit * ((10 if backward else 4) * self.seen + (4 if backward else 2) * self.vectors)
        return itemsize * unit * (7 if backward else 4), round(flops)

    def __str__(self) -> str:
        return f"{self.layer} {self.side}x{self.side} C{self.channels} H{self.heads}"


@dataclass(frozen=True)
class Neighborhood(Local):
    """Each token sees kernel x kernel tokens around it, with a table of biases."""

    kernel: int
    dilation: int = 1
    op = "neighborhood_attention"

    @property
    def seen(self) -> int:
        return self.kernel**2

    def problem(self, batch: int):
        rows = 2 * self.kernel - 1

        def inputs(generator):
            qkv = normal(generator, batch, self.side, self.side, 3 * self.channels)
            return dict(qkv=qkv, table=normal(generator, self.heads, rows, rows))

        options = dict(num_heads=self.heads, kernel=(self.kernel,) * 2, dilation=(self.dilation,) * 2)
        return Problem(self.op, self.layer, inputs, ("qkv", "table"), options)

    def __str__(self) -> str:
        dilation = f" dilation {self.dilation}" if self.dilation > 1 else ""
        return f"{self.layer} {self.side}x{self.side} C{self.channels} kernel {self.kernel}{dilation}"


@dataclass(frozen=True)
class Halo(Local):
    """Each block of queries sees its own tokens and ``halo`` more on every side, with logits of learnt vectors."""

    block: int = 8
    halo: int = 3
    op = "halo_attention"

    @property
    def extent(self) -> int:
        return self.block + 2 * self.halo

    @property
    def seen(self) -> int:
        return self.extent**2

    @property
    def vectors(self) -> int:
        return 2 * self.extent

    def groups(self, **tensors):
        return grouping.halo(**tensors, num_heads=self.heads, block=self.block, halo=self.halo)

    def problem(self, batch: int):
        shape = 2 * self.extent - 1, self.head_dim
        options = dict(block=self.block, halo=self.halo)
        return self._problem(batch, options, function="halo_attention_qkvpacked", height_rel=shape, width_rel=shape)

    def __str__(self) -> str:
        return f"{super().__str__()} block {self.block} halo {self.halo}"


@dataclass(frozen=True)
class Standalone(Local):
    """Each token sees kernel x kernel tokens around it, zeros outside, with logits of learnt vectors."""

    kernel: int = 7
    op = "standalone_attention"
    scale = 1.0

    @property
    def seen(self) -> int:
        return self.kernel**2

    @property
    def vectors(self) -> int:
        return self.kernel  # 2 * kernel of half a head

    def groups(self, **tensors):
        return grouping.standalone(**tensors, num_heads=self.heads, kernel=(self.kernel,) * 2)

    def problem(self, batch: int):
        shape = self.heads, self.kernel, self.head_dim // 2
        return self._problem(batch, dict(kernel=(self.kernel,) * 2), rel_h=shape, rel_w=shape)

    def __str__(self) -> str:
        return f"{super().__str__()} kernel {self.kernel}"


@dataclass(frozen=True)
class Decomposed(Local):
    """Windows, or the image where ``window`` is 0, with logits of learnt vectors of rows and columns."""

    window: int = 0
    op = "decomposed_attention"

    @property
    def width(self) -> int:
        return self.window or self.side

    @property
    def seen(self) -> int:
        return self.width**2

    @property
    def vectors(self) -> int:
        return 2 * self.width

    def groups(self, **tensors):
        return grouping.decomposed(**tensors, num_heads=self.heads, width=self.width)

    def problem(self, batch: int):
        shape = 2 * self.width - 1, self.head_dim
        padding = dict(padding=(3 * self.channels,)) if self.side % self.width else {}
        options = dict(window=(self.window,) * 2) if self.window else {}
        return self._problem(batch, options, rel_pos_h=shape, rel_pos_w=shape, **padding)

    def checked(self, images: int):
        """Of large images as many heads as float64 has room for."""
        heads = max(1, min(self.heads, SCORES // (self.side**2 * self.seen)))
        if heads == self.heads:
            return self.problem(images)
        return replace(self, heads=heads, channels=heads * self.head_dim).problem(1)

    def __str__(self) -> str:
        return f"{super().__str__()} {f'window {self.window}' if self.window else 'global'}"


@dataclass(frozen=True)
class Grid(Local):
    """Each token sees size x size tokens spread evenly over the image, with a table of biases."""

    size: int = 7
    op = "local_attention"

    @property
    def seen(self) -> int:
        return self.size**2

    def groups(self, **tensors):
        return grouping.grid(**tensors, num_heads=self.heads, size=self.size)

    def problem(self, batch: int):
        sides = (2 * self.size - 1,) * 2
        options = dict(block=(self.size,) * 2, dilation=(self.side // self.size,) * 2)
        return self._problem(batch, options, table=(self.heads, *sides))

    def __str__(self) -> str:
        return f"{super().__str__()} grid {self.size}"


@functools.lru_cache(maxsize=4)
def _vil(channels: int, heads: int, window: int, num_global: int):
    from vitkern.nn import ViLAttention

    with torch.device("meta"):  # its projections are not run
        return ViLAttention(channels, heads, window, num_global=num_global, rel_pos=False)


@dataclass(frozen=True)
class ChunksProblem(Problem):
    """What `vitkern.nn.ViLAttention` does between its projections for the tokens of the image."""

    @property
    def run(self):
        def run(qkv, *, num_heads, side, window, num_global):
            return _vil(qkv.shape[-1] // 3, num_heads, window, num_global)._local(qkv, (side, side))

        return run


@dataclass(frozen=True)
class Chunks(Local):
    """Each token sees its chunk, the eight around it, and ``num_global`` tokens that come before those of the image."""

    window: int = 7
    num_global: int = 1
    op = "vil_attention"

    @property
    def seen(self) -> float:
        count = self.side // self.window
        return ((3 * count - 2) / count * self.window) ** 2 + self.num_global

    @property
    def keys(self) -> int:
        return 9 * self.window**2 + self.num_global

    def groups(self, **tensors):
        sizes = dict(side=self.side, window=self.window, num_global=self.num_global)
        return grouping.chunks(**tensors, num_heads=self.heads, **sizes)

    def problem(self, batch: int):
        options = dict(side=self.side, window=self.window, num_global=self.num_global)
        return self._problem(batch, options, ChunksProblem, tokens=self.num_global + self.side**2)

    def __str__(self) -> str:
        return f"{super().__str__()} chunks of {self.window}, {self.num_global} global"
