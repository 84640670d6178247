"""RMSNorm of rows, and of the sum with a residual: LayerNorm's kernels without a mean and a bias."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

import vitkern
from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.compiling.layer import Launch, compiled, with_many
from vitkern.lab.fuzzing.edge import Edge, nan_only, zero
from vitkern.lab.proving.integration import Integration, Module
from vitkern.lab.proving.problem import without
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens import _norm
from vitkern.lab.specimens._norm import Norm, NormCase, NormLayer

NORM = Norm("rmsnorm", ("weight",), lambda rows: rows.square().mean(-1))
problem = NORM.problem


@dataclass(frozen=True, kw_only=True)
class RMSNormCase(NormCase):
    norm = NORM


def _edges() -> Iterator[Edge]:
    edge = partial(_norm.edge, RMSNormCase)
    yield from _norm.edges(RMSNormCase)
    yield edge("one channel", channels=1)
    yield edge("constant rows", values={"x": (((), 3.0),)})
    yield edge("a mean of 1e3", offset=1e3)
    yield edge("zero rows of an x with eps 0", values={"x": (((1,), 0.0),)}, eps=0.0, backward=False)
    yield edge("x and residual cancel", *zero("out", "sum", "dweight"), residual=True, values={
        "x": (((), 1.5),), "residual": (((), -1.5),)
    })  # fmt: skip
    for value in _norm.INFINITIES:  # the others are divided by it
        there, others = nan_only("out", (2, 3)), zero("out", at=(2, (0, 3)))
        yield edge(f"{value} in a row", there, *others, values={"x": (((2, 3), value),)})
    yield edge("the largest values of fp16", dtype="fp16", values={"x": (((), 65504.0),)})


@dataclass(frozen=True)
class RMSNorm(NormLayer):
    op, norm, steps = "rmsnorm", NORM, 4

    def eager(self, options):
        def run(x, weight, residual=None):
            total = x if residual is None else x + residual
            y = F.rms_norm(total, weight.shape, weight, options["eps"])
            return y if residual is None else (y, total)

        return run


LAYERS = (
    RMSNorm("AIMv2-L", 256, 1024, quick=True, compiled="rmsnorm-1024", everywhere=True),
    RMSNorm("AIMv2-3B", 256, 3072, compiled="rmsnorm-3072"),
    RMSNorm("Sapiens2-B", 3081, 768),
    RMSNorm("Qwen2.5-VL tower", 1024, 1280, residual=True, compiled="rmsnorm-1280", everywhere=True),
    RMSNorm("InternViT-6B", 1025, 3200, compiled="rmsnorm-3200"),
    RMSNorm("Gemma 4 167M queries", 12 * 2304, 64, compiled="rmsnorm-64", everywhere=True),
)
_BASE = LAYERS[0]
_USUAL = (
    *compiled(LAYERS),
    Launch("rmsnorm-1024-fp16", _BASE, dict(dtype=torch.float16)),
    Launch("rmsnorm-fp32", _BASE, dict(dtype=torch.float32)),
    Launch("rmsnorm-odd-strides", _BASE, dict(spare=3)),
)
LAUNCHES = with_many(_USUAL, "rmsnorm-3200")

_MEAN, _SEVENTY = problem("33 rows of 96, mean 3", 33, 96, offset=3.0), problem("70 rows of 64", 70, 64)
_SUM = problem("75 rows of 40, residual", 75, 40, residual=True, offset=1.0)
TRIALS = (
    *quick(SINGLE, _SUM, apart=1),
    *quick(SINGLE, _MEAN, _SEVENTY, without(_MEAN, "weight")),
    *quick(BRAIN, _SUM, _MEAN),
    *quick(HALF, _SUM, _MEAN),
)

SPECIMEN = Specimen(
    name="rmsnorm",
    check=(
        problem("33 rows of 96", 33, 96),
        problem("5 rows of 100, mean 3", 5, 100, offset=3.0),
        problem("17 rows of 768, residual", 17, 768, residual=True),
        problem("3 rows of 3200", 3, 3200),
    ),
    case=RMSNormCase,
    draw=partial(_norm.draw, RMSNormCase),
    tiles=lambda case: case.tiles,
    weight=2,
    edges=tuple(_edges()),
    gradients=tuple(_norm.gradients(NORM)),
    offsets=partial(_norm.offsets, " without a mean", centred=False),
    layers=LAYERS,
    launches=LAUNCHES,
    judges=dict.fromkeys(("rmsnorm", "rows/layernorm", "rows/residual"), Checks(TRIALS)),
    integration={
        "rmsnorm": Integration(
            lambda x, weight, residual: vitkern.rmsnorm(x, weight, 1e-6, residual),
            lambda n: [(2, n, 32), (32,), (2, n, 32)],
            products=0,
            batched=(0, 2),
            under_autocast=(None, torch.float32),
        )
    },
    faults=(problem("rows", 6, 32), problem("rows, residual", 6, 32, residual=True)),
    modules={"RMSNorm": Module((2, 5, 32), dict(dim=32))},
)
