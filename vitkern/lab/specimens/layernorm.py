"""LayerNorm of rows, and of the sum with a residual."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import torch

import vitkern
from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.addressing.offset_case import scaled
from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, Layer, compiled, leaf
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import OPERAND_LAYOUTS, SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.integration import Integration
from vitkern.lab.proving.problem import Problem, normal, only, without
from vitkern.lab.specimen import Specimen

CHANNELS = (1, 3, 7, 8, 16, 31, 32, 33, 48, 96, 100, 127, 128, 129, 192, 255, 256, 257, 384, 640, 768, 1000, 1280, 3072)
SHAPES = ((1,), (2,), (17,), (64,), (65,), (3, 5), (2, 33), (2, 4, 9), (1, 1, 1), (3, 1, 7))


def problem(
    name: str, rows: int | tuple, channels: int, *, residual: bool = False, offset: float = 0.0, eps: float = 1e-6
) -> Problem:
    """``rows`` may be a tuple: all dimensions before the channels."""
    shape = (*(rows if isinstance(rows, tuple) else (rows,)), channels)

    def inputs(generator):
        tensors = dict(
            x=offset + normal(generator, *shape),
            weight=1 + normal(generator, channels, std=0.2),
            bias=normal(generator, channels),
        )
        return tensors | (dict(residual=normal(generator, *shape)) if residual else {})

    names, outputs = ("x", "weight", "bias") + ("residual",) * residual, ("out",) + ("sum",) * residual
    return Problem("layernorm", name, inputs, names, dict(eps=eps), outputs=outputs, differentiable=len(outputs))


@dataclass(frozen=True, kw_only=True)
class LayerNormCase(Case):
    """``shape``: all dimensions before the channels."""

    shape: tuple[int, ...] = (1,)
    channels: int = 1
    residual: bool = False
    offset: float = 0.0
    eps: float = 1e-5

    def base(self) -> Problem:
        options = dict(residual=self.residual, offset=self.offset, eps=self.eps)
        return problem("case", tuple(self.shape), self.channels, **options)


def draw(rng: Random) -> LayerNormCase:
    shape, residual = rng.choice(SHAPES), chance(rng, 0.4)
    left_out = tuple(name for name in ("weight", "bias") if chance(rng, 0.1))
    names = tuple(name for name in ("x", "weight", "bias") if name not in left_out) + ("residual",) * residual
    drawn = common(rng, names, arch_share=0.3)
    thawed(drawn, names)
    kept = ("weight", "bias") if drawn["dtype"] != "fp32" and chance(rng, 0.3) else ()
    drawn |= dict(wide=tuple(name for name in kept if name in names), without=left_out)
    if residual and chance(rng, 0.5) and "grad out" in drawn["layouts"]:
        drawn["layouts"]["grad sum"] = rng.choice(OPERAND_LAYOUTS)
    if chance(rng, SPECIAL):
        index = tuple(rng.randrange(size) for size in shape)
        drawn["values"] = {rng.choice(("x",) + ("residual",) * residual): ((index, rng.choice((NAN, INF))),)}
    eps, offset = rng.choice((1e-6, 1e-5, 1e-12, 1e-3)), rng.choice((0.0, 0.0, 1.0))
    return LayerNormCase(**drawn, shape=shape, channels=rng.choice(CHANNELS), residual=residual, offset=offset, eps=eps)


def _edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"layernorm: {name}", LayerNormCase(**dict(shape=(5,), channels=24) | fields), tuple(expected))

    yield edge("no rows", shape=(0,))
    yield edge("no rows, residual", shape=(2, 0), residual=True)
    yield edge("one row", shape=(1,))
    yield edge("one channel", *zero("dx", "dweight"), channels=1)
    yield edge("two channels", channels=2, backward=False)
    for channels in (15, 16, 17, 127, 128, 129, 8191, 8192):
        yield edge(f"{channels} channels", channels=channels)
    for rows in (127, 128, 129):
        yield edge(f"{rows} rows", shape=(rows,))
    yield edge("zero rows", *zero("dweight"), values={"x": (((), 0),)})
    yield edge("constant rows", *zero("dweight"), values={"x": (((), 3.0),)})
    for dtype in ("fp16", "bf16"):
        constant = dict(residual=True, values={"x": (((), 1.0),), "residual": (((), 2.003),)})
        yield edge(f"constant sums in {dtype}", *zero("dweight"), dtype=dtype, **constant)
    for eps in (1e-12, 1.0, 1e6):
        yield edge(f"eps {eps:g}", eps=eps)
    yield edge("eps 0", eps=0.0)
    yield edge("constant rows, eps 0", values={"x": (((1,), 3.0),)}, eps=0.0, backward=False)
    yield edge("a mean of 1e3", offset=1e3, backward=False)
    yield edge("values of 1e15", factors={"x": 1e15}, backward=False)
    yield edge("values of 1e-15", factors={"x": 1e-15}, eps=1e-5, backward=False)
    yield edge("denormals", factors={"x": 1e-40}, backward=False)
    for value in (NAN, INF, "-inf"):
        yield edge(f"{value} in a row", nan_only("out", (2,)), values={"x": (((2, 3), value),)})
        yield edge(f"{value} in the residual", residual=True, values={"residual": (((2, 3), value),)})
    yield edge("NaN in the weight", nan_only("out", ((0, 5), 3)), values={"weight": (((3,), NAN),)}, backward=False)
    yield edge("neither weight nor bias", without=("weight", "bias"))
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping", "packed"):
        layouts = dict.fromkeys(("x", "weight", "bias", "residual", "grad out", "grad sum"), layout)
        yield edge(f"{layout} operands", shape=(2, 5), residual=True, layouts=layouts)
    yield edge("a constant gradient", layouts={"grad out": "constant"})


def _gradients() -> Iterator[GradientCase]:
    residual = problem("5 rows of 6, residual", 5, 6, residual=True)
    bare = without(problem("6 rows of 5", 6, 5), "weight", "bias")
    yield GradientCase(problem("6 rows of 5, mean 3", 6, 5, offset=3.0), full=True)
    yield GradientCase(residual, full=True, sample=True)
    yield GradientCase(problem("(2, 3) rows of 16, eps 0.1", (2, 3), 16, eps=0.1), full=True)
    yield GradientCase(bare, full=True)
    yield GradientCase(problem("75 rows of 3, residual", 75, 3, residual=True), seeds=2, ordered=True)
    yield GradientCase(problem("35 rows of 65", 35, 65), seeds=2)
    yield GradientCase(problem("x is its residual", 5, 6, residual=True), full=True, tied=dict(residual="x"))
    yield from (GradientCase(only(residual, name)) for name in ("x", "weight", "bias", "residual"))


def _forward_beyond(tensors, size, *, channels):
    from vitkern.kernels.rows import layernorm

    x, residual, base, y, total = (tensors(lambda s: (s, channels)) for _ in range(5))
    vectors = [tensors(lambda s: (channels,)) for _ in range(3)]
    mean, rstd, row_scale = (tensors(lambda s: (s,), torch.float32) for _ in range(3))
    layernorm.normalise_rows(
        x, *vectors[:2], 1e-6, residual=residual, base=base, layer_scale=vectors[2], row_scale=row_scale, y=y,
        total=total, mean=mean, rstd=rstd,
    )  # fmt: skip


def _backward_beyond(tensors, size, *, channels):
    from vitkern.kernels.rows import layernorm

    dy, s, dtotal, dx, normed = (tensors(lambda s: (s, channels)) for _ in range(5))
    weight, bias = (tensors(lambda s: (channels,)) for _ in range(2))
    mean, rstd, row_scale = (tensors(lambda s: (s,), torch.float32) for _ in range(3))
    layernorm.normalise_rows_backward(
        dy, s, mean, rstd, weight, dtotal=dtotal, bias=bias, row_scale=row_scale, dx=dx, normed=normed
    )


def _offsets() -> list[OffsetCase]:
    many = {"layernorm_programs": lambda arch: 2**40}
    partial_sums = "rows, each with partial sums of its own"
    return [
        scaled("_layernorm_fwd", "rows", _forward_beyond, 5, 2**27, channels=16),
        scaled("_layernorm_bwd", partial_sums, _backward_beyond, 5, 2**20, channels=2048, blocks=many),
    ]


@dataclass(frozen=True)
class LayerNorm(Layer):
    """``tokens`` rows of C an image; ``residual``: added first, the sum returned too."""

    tokens: int
    channels: int
    residual: bool = False
    op = "layernorm"

    def problem(self, batch):
        return problem(self.layer, batch * self.tokens, self.channels, residual=self.residual)

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        shape = batch, self.tokens, self.channels
        x = leaf(*shape[:2], self.channels + spare, dtype=dtype)[..., : self.channels]
        weight, bias = (leaf(self.channels, dtype=dtype) for _ in range(2))
        with torch.set_grad_enabled(trained):
            out = vitkern.layernorm(x, weight, bias, 1e-6, leaf(*shape, dtype=dtype) if self.residual else None)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        unit = batch * self.tokens * self.channels
        tensors = (4 if self.residual else 3) if backward else (4 if self.residual else 2)
        return itemsize * unit * tensors, 8 * unit

    def __str__(self) -> str:
        return f"{self.layer} {self.tokens} x C{self.channels}{' + residual' if self.residual else ''}"


LAYERS = (
    LayerNorm("Swin-T stage 1", 3136, 96, compiled="layernorm-96", everywhere=True),
    LayerNorm("Swin-T stage 2", 784, 192),
    LayerNorm("Swin-T stage 3", 196, 384),
    LayerNorm("ViT-Ti", 197, 192, compiled="layernorm-192", timed=False),
    LayerNorm("ViT-S", 197, 384, quick=True),
    LayerNorm("ViT-B", 197, 768),
    LayerNorm("ViT-B", 197, 768, residual=True, compiled="layernorm-768", everywhere=True),
    LayerNorm("ViT-L", 197, 1024),
    LayerNorm("ViT-H", 257, 1280, compiled="layernorm-1280", everywhere=True),
    LayerNorm("DINOv2-g", 257, 1536),
    LayerNorm("narrow rows", 3136, 32, compiled="layernorm-32", everywhere=True, timed=False),
    LayerNorm("Swin-T merging, stage 4", 49, 3072, compiled="layernorm-3072", everywhere=True, timed=False),
)
_BASE = LayerNorm("ViT-B", 197, 768)
LAUNCHES = (
    *compiled(LAYERS),
    Launch("layernorm-512-fp16", LayerNorm("Swin-B stage 3", 196, 512), dict(dtype=torch.float16), everywhere=True),
    Launch("layernorm-fp32", _BASE, dict(dtype=torch.float32)),
    Launch("layernorm-one-row", LayerNorm("a class token", 1, 768), dict(batch=1)),
    Launch("layernorm-odd-strides", _BASE, dict(spare=3)),
)

_MEAN, _SEVENTY = problem("33 rows of 96, mean 3", 33, 96, offset=3.0), problem("70 rows of 64", 70, 64)
_SUM = problem("75 rows of 40, residual", 75, 40, residual=True, offset=1.0)


def _flat_rows(generator):
    """x + residual is one number in a row, which half precision does not hold: a mean of it must be of what is kept."""
    x = torch.arange(20.0, dtype=torch.float64)[:, None].expand(20, 64) / 7
    return _SEVENTY.inputs(generator) | dict(x=x, residual=torch.full_like(x, 40.3))


TRIALS = (
    *quick(SINGLE, _SUM, apart=1),
    *quick(SINGLE, _MEAN, _SEVENTY, without(_MEAN, "weight", "bias")),
    *quick(BRAIN, _SUM, _MEAN),
    *quick(HALF, _SUM, _MEAN),
    *quick(HALF, replace(problem("flat rows", 20, 64, residual=True), inputs=_flat_rows), pool=None),
)

SPECIMEN = Specimen(
    name="layernorm",
    check=(
        problem("33 rows of 96", 33, 96),
        problem("5 rows of 100, mean 3", 5, 100, offset=3.0),
        problem("17 rows of 768, residual", 17, 768, residual=True),
        problem("3 rows of 1280", 3, 1280),
    ),
    case=LayerNormCase,
    draw=draw,
    tiles=lambda case: -(-math.prod(case.shape) * case.channels // 8192),
    weight=3,
    edges=tuple(_edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=LAUNCHES,
    judges={
        **dict.fromkeys(("layernorm", "rows/layernorm", "rows/tiles"), Checks(TRIALS, (), ("test_layernorm.py",))),
        "rows/blocks": Checks(TRIALS[:3]),
    },
    integration={
        "layernorm": Integration(
            lambda x, weight, bias, residual: vitkern.layernorm(x, weight, bias, 1e-6, residual),
            lambda n: [(2, n, 32), (32,), (32,), (2, n, 32)],
            products=0,
            batched=(0, 3),
            under_autocast=(None, torch.float32),
        )
    },
    faults=(problem("rows", 6, 32), problem("rows, residual", 6, 32, residual=True)),
    bounded={"_layernorm_*.weight": "C elements", "_layernorm_*.bias": "C elements"},
    exceptions={
        ("layernorm-32", kernel, 942): Excuse(
            "widest global load is 64 bits",
            "32 rows of 32 channels are four elements for each of the 256 lanes of four warps",
        )
        for kernel in ("_layernorm_fwd", "_layernorm_bwd")
    },
    turns={"_layernorm_bwd": lambda a, programs: -(-a["rows"] // a["BLOCK_M"]) / programs},
    survivors={
        "layernorm._layernorm_fwd:drop-other:1": Survivor(
            "tl.load(row_scale + row // sample_rows, mask=row_mask, other=0.0) -> tl.load(row_scale + row // "
            "sample_rows, mask=row_mask)",
            "masked lanes are rows past the last, which the store at the end leaves out",
        ),
        "tiles.load_channels:narrow-accumulator:1": Survivor(
            "tl.float32 -> tl.float16",
            "the default is 0 or 1, exact in float16, and is only combined with float32 tiles, which keeps them so",
        ),
        "tiles.load_tile:wrong-constant:1": Survivor(
            "0.0 -> 1.0",
            "this branch loads the residual of the MLP kernel; what it gives outside the rows and channels is "
            "added and not stored",
        ),
    },
)
