"""Gated positional attention: its problems, random cases, named edge cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from random import Random

import torch
from torch import Tensor

from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, zero
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.proving.sizes import Sizes
from vitkern.lab.specimens._attention import HEAD_DIMS

NAMES = ("qk", "v", "position_weights", "gate")
WIDE = NAMES[2:]
SIDES = (1, 1, 2, 3, 5, 7, 14, 15, 16, 17, 20, 33)


def problem(
    name: str, batch: int, grid: tuple[int, int], heads: int, dim: int, *, local: float = 0.3, reach: float = 1.0,
    gated: float = 0.0, **options,
) -> Problem:  # fmt: skip
    """``local``: how steeply weights of positions fall with the squared distance from where a head looks, about
    ``reach`` tokens away; below 0 they rise. ``gated``: added to the gates."""

    def inputs(generator):
        tensors = dict(qk=normal(generator, batch, prod(grid), 2, heads, dim))
        tensors["v"] = normal(generator, batch, prod(grid), heads, dim)
        steep, centre = local * (0.5 + normal(generator, heads, 1).abs()), normal(generator, heads, 2, std=reach)
        tensors["position_weights"] = torch.cat([2 * steep * centre, -steep], 1)
        return tensors | dict(gate=gated + normal(generator, heads))

    options |= dict(grid=grid)
    return Problem("gated_positional_attention", name, inputs, NAMES, options, sizes=_sizes)


def _sizes(operands: dict, options: dict, grad: Tensor | None) -> Sizes:
    """A weight of a position has a logit w . (dx, dy, d^2), and gradients are differences of what is multiplied by
    these."""
    qk, v, grid = operands["qk"], operands["v"], options["grid"]
    far = torch.tensor([float(n) for n in (grid[1], grid[0], grid[0] ** 2 + grid[1] ** 2)])
    weights = _finite(operands["position_weights"].detach().abs().double().cpu().reshape(-1, 3) * far)
    queries, keys = (_row(x) for x in qk.unbind(2))
    scale = options.get("scale") or qk.shape[-1] ** -0.5
    score = max(queries * keys * scale, 3 * weights.max().item())
    if grad is None:
        return Sizes(score, {})
    width = max(1, qk.shape[-1]) ** 0.5
    slope = _row(grad) * _row(v) / width  # of a weight
    terms = dict(
        dqk=slope * max(queries, keys) * scale / width,
        dposition_weights=slope * max(grid),
        dgate=slope,
    )
    return Sizes(score, terms)


def _finite(values: Tensor) -> Tensor:
    """1, where there is none."""
    found = values[torch.isfinite(values)]
    return found if found.numel() else values.new_ones(1)


def _row(x: Tensor) -> float:
    """The largest norm of a row that is finite."""
    return _finite(x.detach().double().norm(dim=-1)).max().item()


@dataclass(frozen=True, kw_only=True)
class GatedCase(Case):
    """See `problem`."""

    batch: int = 1
    grid: tuple[int, int] = (1, 1)
    heads: int = 1
    dim: int = 1
    local: float = 0.3
    gated: float = 0.0
    scale: float | None = None

    def base(self) -> Problem:
        options = dict(local=self.local, gated=self.gated, scale=self.scale)
        return problem("case", self.batch, tuple(self.grid), self.heads, self.dim, **options)


def draw(rng: Random) -> GatedCase:
    drawn = common(rng, NAMES, arch_share=0.4)
    thawed(drawn, NAMES)
    if drawn["dtype"] != "fp32" and chance(rng, 0.7):
        drawn["wide"] = WIDE
    grid, batch, heads = (rng.choice(SIDES), rng.choice(SIDES)), rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2, 3))
    dim = rng.choice((1, *HEAD_DIMS))
    if chance(rng, SPECIAL) and not drawn["backward"]:
        place = rng.randrange(batch), rng.randrange(prod(grid)), rng.randrange(heads)
        drawn["values"] = {"v": ((place, NAN),)}
    return GatedCase(
        **drawn, batch=batch, grid=grid, heads=heads, dim=dim, local=rng.choice((0.0, 0.02, 0.3, 3.0, -0.1)),
        gated=rng.choice((0.0, 0.0, 4.0, -4.0)), scale=0.3 if chance(rng, 0.2) else None,
    )  # fmt: skip


def tiles(case: GatedCase) -> int:
    side = 64 if case.arch else 16
    attended = (-(-prod(case.grid) // side)) ** 2
    mixed = prod((-(-n // 16)) ** 2 for n in case.grid) * -(-case.dim // 16)
    return case.batch * case.heads * (attended + mixed) * (4 if case.backward else 1)


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        usual = dict(batch=2, grid=(3, 5), heads=2, dim=12)
        return Edge(f"gated: {name}", GatedCase(**usual | fields), expected)

    yield edge("no images", *zero("dposition_weights", "dgate"), batch=0)
    yield edge("no heads", heads=0)
    yield edge("no tokens", *zero("dposition_weights", "dgate"), grid=(0, 5))
    yield edge("one token", *zero("dposition_weights"), grid=(1, 1))
    yield edge("a row", grid=(1, 9))
    yield edge("a column", grid=(9, 1))
    for side in (15, 16, 17):
        yield edge(f"{side} x {side + 1} tokens", batch=1, grid=(side, side + 1), heads=1)
    yield edge("a long row", batch=1, grid=(1, 130), heads=1, local=0.01)
    for dim in (1, 15, 16, 17, 33, 64, 65, 130):
        yield edge(f"head dim {dim}", dim=dim, dtype="bf16", batch=1)
    for dim in (33, 64, 65, 130):
        yield edge(f"head dim {dim}, blocks of a GPU", dim=dim, dtype="fp16", arch=90)
        yield edge(f"head dim {dim}, float32, blocks of a GPU", dim=dim, arch=90)
    for gated in (40.0, -40.0):
        yield edge(f"gates of {gated:g}", gated=gated, wide=WIDE, dtype="fp16")
    for gate in (INF, "-inf"):
        yield edge(f"a gate of {gate}", *zero("dgate", at=(1,)), values={"gate": (((1,), gate),)})
    yield edge("positions of a convolution", local=1e3)
    yield edge("positions that count alike", values={"position_weights": (((), 0.0),)})
    yield edge("positions at the rim", values={"position_weights": (((), 3.0),)})
    for what, name, where in (("v", "v", (1, 3, 1, 5)), ("q", "qk", (1, 3, 0, 1, 5)), ("k", "qk", (1, 3, 1, 1, 5))):
        yield edge(f"NaN in {what}", values={name: ((where, NAN),)}, backward=False)
    yield edge("inf in v", values={"v": (((1, 3, 1, 5), INF),)}, backward=False, local=0.02)
    for name in WIDE:
        yield edge(f"NaN in {name}", values={name: (((1,), NAN),)}, backward=False)
    yield edge("nothing but zeros", *zero("out", "dqk"), values={"v": (((), 0.0),)})
    yield edge("large values", factors={"v": 30.0}, backward=False)
    yield edge("denormals", factors={"qk": 1e-40, "v": 1e-40}, backward=False)
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping", "packed", "permuted"):
        yield edge(f"{layout} operands", layouts=dict.fromkeys((*NAMES, "grad out"), layout))
    yield edge("a constant gradient", layouts={"grad out": "constant"})
