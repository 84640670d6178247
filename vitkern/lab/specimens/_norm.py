"""Norms of rows: what the specimens of LayerNorm and RMSNorm have in common."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import ClassVar

import torch

import vitkern
from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.addressing.offset_case import scaled
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.layer import Layer, leaf
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import OPERAND_LAYOUTS, SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.problem import Problem, normal, only, without
from vitkern.lab.proving.sizes import norm_sizes

CHANNELS = (1, 3, 7, 8, 16, 31, 32, 33, 48, 96, 100, 127, 128, 129, 192, 255, 256, 257, 384, 640, 768, 1000, 1280, 3072)
INFINITIES = (INF, "-inf")
SHAPES = ((1,), (2,), (17,), (64,), (65,), (3, 5), (2, 33), (2, 4, 9), (1, 1, 1), (3, 1, 7))


@dataclass(frozen=True)
class Norm:
    """op: ``f(x, *parameters, eps, residual)``. parameters: "weight" first. spread: rows (..., C) -> (...,), what they
    are divided by, squared and less eps."""

    op: str
    parameters: tuple[str, ...]
    spread: Callable[[torch.Tensor], torch.Tensor]

    def problem(
        self,
        name: str,
        rows: int | tuple,
        channels: int,
        *,
        residual: bool = False,
        offset: float = 0.0,
        eps: float = 1e-6,
    ) -> Problem:
        """``rows`` may be a tuple: all dimensions before the channels."""
        shape = (*(rows if isinstance(rows, tuple) else (rows,)), channels)

        def inputs(generator):
            tensors = dict(x=offset + normal(generator, *shape), weight=1 + normal(generator, channels, std=0.2))
            tensors |= {other: normal(generator, channels) for other in self.parameters[1:]}
            return tensors | (dict(residual=normal(generator, *shape)) if residual else {})

        names, outputs = ("x", *self.parameters) + ("residual",) * residual, ("out",) + ("sum",) * residual
        options = dict(outputs=outputs, differentiable=len(outputs), sizes=partial(norm_sizes, spread=self.spread))
        return Problem(self.op, name, inputs, names, dict(eps=eps), **options)


@dataclass(frozen=True, kw_only=True)
class NormCase(Case):
    """``shape``: all dimensions before the channels."""

    norm: ClassVar[Norm]
    shape: tuple[int, ...] = (1,)
    channels: int = 1
    residual: bool = False
    offset: float = 0.0
    eps: float = 1e-5

    def base(self) -> Problem:
        options = dict(residual=self.residual, offset=self.offset, eps=self.eps)
        return self.norm.problem("case", tuple(self.shape), self.channels, **options)

    @property
    def tiles(self) -> int:
        return -(-math.prod(self.shape) * self.channels // 8192)


def draw(kind: type[NormCase], rng: Random) -> NormCase:
    shape, residual, parameters = rng.choice(SHAPES), chance(rng, 0.4), kind.norm.parameters
    left_out = tuple(name for name in parameters if chance(rng, 0.1))
    names = tuple(name for name in ("x", *parameters) if name not in left_out) + ("residual",) * residual
    drawn = common(rng, names, arch_share=0.3)
    thawed(drawn, names)
    kept = parameters if drawn["dtype"] != "fp32" and chance(rng, 0.3) else ()
    drawn |= dict(wide=tuple(name for name in kept if name in names), without=left_out)
    if residual and chance(rng, 0.5) and "grad out" in drawn["layouts"]:
        drawn["layouts"]["grad sum"] = rng.choice(OPERAND_LAYOUTS)
    if chance(rng, SPECIAL):
        index = tuple(rng.randrange(size) for size in shape)
        drawn["values"] = {rng.choice(("x",) + ("residual",) * residual): ((index, rng.choice((NAN, INF))),)}
    eps, offset = rng.choice((1e-6, 1e-5, 1e-12, 1e-3)), rng.choice((0.0, 0.0, 1.0))
    return kind(**drawn, shape=shape, channels=rng.choice(CHANNELS), residual=residual, offset=offset, eps=eps)


def edge(kind: type[NormCase], name: str, *expected, **fields) -> Edge:
    return Edge(f"{kind.norm.op}: {name}", kind(**dict(shape=(5,), channels=24) | fields), tuple(expected))


def edges(kind: type[NormCase]) -> Iterator[Edge]:
    """Those that any norm has."""
    parameters, of = kind.norm.parameters, partial(edge, kind)
    yield of("no rows", shape=(0,))
    yield of("no rows, residual", shape=(2, 0), residual=True)
    yield of("one row", shape=(1,))
    for channels in (15, 16, 17, 127, 128, 129, 8191, 8192):
        yield of(f"{channels} channels", channels=channels)
    for rows in (127, 128, 129):
        yield of(f"{rows} rows", shape=(rows,))
    yield of("zero rows", *zero("dweight"), values={"x": (((), 0),)})
    for eps in (1e-12, 1.0, 1e6):
        yield of(f"eps {eps:g}", eps=eps)
    yield of("eps 0", eps=0.0)
    yield of("values of 1e15", factors={"x": 1e15}, backward=False)
    yield of("values of 1e-15", factors={"x": 1e-15}, eps=1e-5, backward=False)
    yield of("denormals", factors={"x": 1e-40}, backward=False)
    yield of("nan in a row", nan_only("out", (2,)), values={"x": (((2, 3), NAN),)})
    for value in (NAN, *INFINITIES):
        yield of(f"{value} in the residual", residual=True, values={"residual": (((2, 3), value),)})
    yield of("NaN in the weight", nan_only("out", ((0, 5), 3)), values={"weight": (((3,), NAN),)}, backward=False)
    yield of("neither weight nor bias" if "bias" in parameters else "no weight", without=parameters)
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping", "packed"):
        layouts = dict.fromkeys(("x", *parameters, "residual", "grad out", "grad sum"), layout)
        yield of(f"{layout} operands", shape=(2, 5), residual=True, layouts=layouts)
    yield of("a constant gradient", layouts={"grad out": "constant"})


def gradients(norm: Norm) -> Iterator[GradientCase]:
    residual = norm.problem("5 rows of 6, residual", 5, 6, residual=True)
    bare = without(norm.problem("6 rows of 5", 6, 5), *norm.parameters)
    yield GradientCase(norm.problem("6 rows of 5, mean 3", 6, 5, offset=3.0), full=True)
    yield GradientCase(residual, full=True, sample=True)
    yield GradientCase(norm.problem("(2, 3) rows of 16, eps 0.1", (2, 3), 16, eps=0.1), full=True)
    yield GradientCase(bare, full=True)
    yield GradientCase(norm.problem("75 rows of 3, residual", 75, 3, residual=True), seeds=2, ordered=True)
    yield GradientCase(norm.problem("35 rows of 65", 35, 65), seeds=2)
    tied = norm.problem("x is its residual", 5, 6, residual=True)
    yield GradientCase(tied, full=True, tied=dict(residual="x"))
    yield from (GradientCase(only(residual, name)) for name in ("x", *norm.parameters, "residual"))


def _forward_beyond(tensors, size, *, channels: int, centred: bool):
    from vitkern.kernels.rows import layernorm

    x, residual, base, y, total = (tensors(lambda s: (s, channels)) for _ in range(5))
    weight, bias, layer_scale = (tensors(lambda s: (channels,)) for _ in range(3))
    mean, rstd, row_scale = (tensors(lambda s: (s,), torch.float32) for _ in range(3))
    layernorm.normalise_rows(
        x, weight, bias, 1e-6, residual=residual, base=base, layer_scale=layer_scale, row_scale=row_scale, y=y,
        total=total, mean=mean if centred else None, rstd=rstd, centred=centred,
    )  # fmt: skip


def _backward_beyond(tensors, size, *, channels: int, centred: bool):
    from vitkern.kernels.rows import layernorm

    dy, s, dtotal, dx, normed = (tensors(lambda s: (s, channels)) for _ in range(5))
    weight, bias = (tensors(lambda s: (channels,)) for _ in range(2))
    mean, rstd, row_scale = (tensors(lambda s: (s,), torch.float32) for _ in range(3))
    layernorm.normalise_rows_backward(
        dy, s, mean if centred else None, rstd, weight, dtotal=dtotal, bias=bias, row_scale=row_scale, dx=dx,
        normed=normed,
    )  # fmt: skip


def offsets(which: str = "", *, centred: bool) -> list[OffsetCase]:
    many = {"layernorm_programs": lambda arch: 2**40}
    partial_sums = f"rows{which}, each with partial sums of its own"
    wide = dict(blocks=many, channels=2048, centred=centred)
    return [
        scaled("_layernorm_fwd", f"rows{which}", _forward_beyond, 5, 2**27, channels=16, centred=centred),
        scaled("_layernorm_bwd", partial_sums, _backward_beyond, 5, 2**20, **wide),
    ]


@dataclass(frozen=True)
class NormLayer(Layer):
    """``tokens`` rows of C an image; ``residual``: added first, the sum returned too. ``steps``: operations for each
    element, about."""

    norm: ClassVar[Norm]
    steps: ClassVar[int] = 8
    tokens: int
    channels: int
    residual: bool = False

    def problem(self, batch):
        return self.norm.problem(self.layer, batch * self.tokens, self.channels, residual=self.residual)

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        shape = batch, self.tokens, self.channels
        x = leaf(*shape[:2], self.channels + spare, dtype=dtype)[..., : self.channels]
        parameters = [leaf(self.channels, dtype=dtype) for _ in self.norm.parameters]
        with torch.set_grad_enabled(trained):
            residual = leaf(*shape, dtype=dtype) if self.residual else None
            out = getattr(vitkern, self.op)(x, *parameters, 1e-6, residual)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        unit = batch * self.tokens * self.channels
        tensors = (4 if self.residual else 3) if backward else (4 if self.residual else 2)
        return itemsize * unit * tensors, self.steps * unit

    def __str__(self) -> str:
        return f"{self.layer} {self.tokens} x C{self.channels}{' + residual' if self.residual else ''}"
