"""LayerNorm of rows, and of the sum with a residual."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

import vitkern
from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, compiled, with_many
from vitkern.lab.fuzzing.edge import Edge, nan_only, zero
from vitkern.lab.proving.integration import Integration, Module
from vitkern.lab.proving.problem import without
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens import _norm
from vitkern.lab.specimens._norm import Norm, NormCase, NormLayer

NORM = Norm("layernorm", ("weight", "bias"), lambda rows: rows.var(-1, correction=0))
problem = NORM.problem


@dataclass(frozen=True, kw_only=True)
class LayerNormCase(NormCase):
    norm = NORM


def _edges() -> Iterator[Edge]:
    edge = partial(_norm.edge, LayerNormCase)
    yield from _norm.edges(LayerNormCase)
    yield edge("one channel", *zero("dx", "dweight"), channels=1)
    yield edge("two channels", channels=2, backward=False)
    yield edge("constant rows", *zero("dweight"), values={"x": (((), 3.0),)})
    for dtype in ("fp16", "bf16"):
        constant = dict(residual=True, values={"x": (((), 1.0),), "residual": (((), 2.003),)})
        yield edge(f"constant sums in {dtype}", *zero("dweight"), dtype=dtype, **constant)
    yield edge("constant rows, eps 0", values={"x": (((1,), 3.0),)}, eps=0.0, backward=False)
    yield edge("a mean of 1e3", offset=1e3, backward=False)
    for value in _norm.INFINITIES:
        yield edge(f"{value} in a row", nan_only("out", (2,)), values={"x": (((2, 3), value),)})


@dataclass(frozen=True)
class LayerNorm(NormLayer):
    op, norm = "layernorm", NORM


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
_USUAL = (
    *compiled(LAYERS),
    Launch("layernorm-512-fp16", LayerNorm("Swin-B stage 3", 196, 512), dict(dtype=torch.float16), everywhere=True),
    Launch("layernorm-fp32", _BASE, dict(dtype=torch.float32)),
    Launch("layernorm-one-row", LayerNorm("a class token", 1, 768), dict(batch=1)),
    Launch("layernorm-odd-strides", _BASE, dict(spare=3)),
)
_WHOLE = ("192", "768", "1280", "3072", "512-fp16", "fp32", "odd-strides")  # rows become whole pieces of 16
LAUNCHES = with_many(_USUAL, *(f"layernorm-{name}" for name in _WHOLE), everywhere=False)

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
    draw=partial(_norm.draw, LayerNormCase),
    tiles=lambda case: case.tiles,
    weight=3,
    edges=tuple(_edges()),
    gradients=tuple(_norm.gradients(NORM)),
    offsets=partial(_norm.offsets, centred=True),
    layers=LAYERS,
    launches=LAUNCHES,
    judges={
        **dict.fromkeys(
            ("layernorm", "rows/layernorm", "rows/residual", "rows/tiles"), Checks(TRIALS, (), ("test_layernorm.py",))
        ),
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
        "layernorm._layernorm_fwd:wrong-constant:3": Survivor(
            "1.0 -> 1.0009765625",
            "the default of a layer scale, which this branch is not reached without",
        ),
        "layernorm._layernorm_bwd:drop-float32:1": Survivor(
            "tl.load(row_scale + row // sample_rows, mask=row_mask, other=0.0).to(tl.float32) -> tl.load(row_scale + "
            "row // sample_rows, mask=row_mask, other=0.0)",
            "it is multiplied with a float32 gradient, which widens it just so",
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
    modules={"LayerNorm": Module((2, 5, 32), dict(dim=32))},
)
