"""Multi-scale deformable attention: its problems, random cases and named edge cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch

from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.problem import Problem, normal

NAMES = "value", "sampling_locations", "attention_weights"
HEAD_DIMS = (1, 3, 8, 16, 17, 20, 32, 33, 48, 64)


def problem(
    name: str, batch: int, queries: int, heads: int, dim: int, shapes: tuple[tuple[int, int], ...], points: int = 2,
    *, around: float = 0.2, near: bool = False,
) -> Problem:  # fmt: skip
    """``around``: how far outside a level points may be, in its sizes; ``near``: all within a pixel of its centre."""

    def inputs(generator):
        value = normal(generator, batch, sum(height * width for height, width in shapes), heads, dim)
        extents = (batch, queries, heads, len(shapes), points)
        at = torch.rand(*extents, 2, generator=generator, dtype=torch.float64) * (1 + 2 * around) - around
        if near:
            sizes = torch.tensor([[(width, height)] for height, width in shapes], dtype=torch.float64)
            at = 0.5 + (at - 0.5) / sizes
        return dict(zip(NAMES, (value, at, normal(generator, *extents)), strict=True))

    return Problem("deformable_attention", name, inputs, NAMES, dict(spatial_shapes=shapes))


@dataclass(frozen=True, kw_only=True)
class DeformableCase(Case):
    """See `problem`."""

    batch: int = 1
    queries: int = 1
    heads: int = 1
    dim: int = 1
    shapes: tuple[tuple[int, int], ...] = ()
    points: int = 1
    around: float = 0.2
    near: bool = False

    def base(self) -> Problem:
        shapes = tuple(tuple(pair) for pair in self.shapes)
        sizes = (self.batch, self.queries, self.heads, self.dim, shapes, self.points)
        return problem("case", *sizes, around=self.around, near=self.near)


def draw(rng: Random) -> DeformableCase:
    drawn = common(rng, NAMES, arch_share=0.4)
    thawed(drawn, NAMES)
    if drawn["dtype"] != "fp32" and chance(rng, 0.5):
        drawn["wide"] = NAMES[1:]
    shapes = tuple((rng.choice((1, 2, 3, 5, 8)), rng.choice((1, 2, 3, 7, 9))) for _ in range(rng.choice((1, 1, 2, 3))))
    sizes = dict(
        batch=rng.choice((1, 2, 3)), queries=rng.choice((1, 2, 7, 15, 16, 17, 33)), heads=rng.choice((1, 1, 2, 3))
    )
    points = rng.choice((1, 1, 2, 3, 4))
    if chance(rng, SPECIAL):
        name = rng.choice(NAMES)
        rows = sum(height * width for height, width in shapes) if name == "value" else sizes["queries"]
        place = rng.randrange(sizes["batch"]), rng.randrange(rows), rng.randrange(sizes["heads"])
        drawn["values"] = {name: ((place if name == "value" else (*place, 0, 0), NAN),)}
    return DeformableCase(
        **drawn, **sizes, dim=rng.choice(HEAD_DIMS), shapes=shapes, points=points,
        around=rng.choice((0.0, 0.2, 0.2, 2.0)), near=chance(rng, 0.1),
    )  # fmt: skip


def tiles(case: DeformableCase) -> int:
    pixels = sum(height * width for height, width in case.shapes)
    points = case.points * len(case.shapes)
    forward = -(-case.queries // 16) * points
    gathered = -(-pixels // 16) * (2 + 4 * case.queries * case.points // (8 if case.near else 8 * pixels))
    return case.batch * case.heads * (2 * forward + gathered if case.backward else forward) // 2


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        usual = dict(batch=2, queries=9, heads=2, dim=8, shapes=((3, 4), (2, 2)), points=2)
        return Edge(f"deformable: {name}", DeformableCase(**usual | fields), expected)

    everything = ("dvalue", "dsampling_locations", "dattention_weights")
    yield edge("no images", batch=0)
    yield edge("no queries", *zero("dvalue"), queries=0)
    yield edge("no heads", heads=0)
    yield edge("one query", queries=1, batch=1)
    yield edge("one pixel", shapes=((1, 1),))
    yield edge("one pixel, one point, one query", shapes=((1, 1),), queries=1, points=1, heads=1, batch=1)
    yield edge("a row", shapes=((1, 9),))
    yield edge("a column", shapes=((9, 1),))
    yield edge("five levels", shapes=((4, 4), (3, 3), (2, 2), (1, 2), (1, 1)), queries=3)
    yield edge("seven points", points=7, queries=5)
    for queries in (15, 16, 17, 33):
        yield edge(f"{queries} queries", queries=queries, dtype="fp16")
    for shapes in (((3, 5),), ((4, 4),), ((1, 17),), ((5, 3), (1, 1)), ((16, 1), (1, 16))):
        yield edge(f"levels of {shapes}", shapes=shapes)
    for dim in (1, 3, 17, 33, 200):
        yield edge(f"head dim {dim}", dim=dim, queries=3)
    yield edge("all points in one cell", near=True, around=0.0, shapes=((1, 8),), queries=17, points=3)
    for place in (-1.0, 2.0, 5.0, -1e4, 1e30, INF, "-inf"):
        far = {"sampling_locations": (((), place),)}
        yield edge(f"all points at {place}", *zero("out", *everything), values=far)
    for place in (0.0, 1.0, 0.5, 0.375):  # corners of levels, between pixels and on one
        yield edge(f"all points at {place}", values={"sampling_locations": (((), place),)})
    yield edge("weights of 0", *zero("out", "dvalue", "dsampling_locations"), values={"attention_weights": (((), 0),)})
    yield edge("values of 0", *zero("out", *everything[1:]), values={"value": (((), 0),)})
    one = {"sampling_locations": (((0, 2, 1, 0, 1, 0), NAN),)}
    yield edge("NaN in a location", nan_only("out", (0, 2, (8, 16))), values=one)
    yield edge(
        "NaN in a weight", nan_only("out", (0, 2, (8, 16))), values={"attention_weights": (((0, 2, 1, 0, 1), NAN),)}
    )
    yield edge("NaN in a value", values={"value": (((1, 5, 0, 3), NAN),)})
    yield edge("inf in a value", values={"value": (((1, 5, 0, 3), INF),)}, backward=False)
    yield edge("large values", factors={"value": 1e30})
    yield edge("denormal values", factors={"value": 1e-40}, backward=False)
    wide = NAMES[1:]
    for dtype in ("fp16", "bf16"):
        yield edge(f"locations and weights wider than {dtype}", wide=wide, dtype=dtype)
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping", "packed", "permuted"):
        yield edge(f"{layout} operands", layouts=dict.fromkeys((*NAMES, "grad out"), layout))
    yield edge("a constant gradient", layouts={"grad out": "constant"})
    yield edge("blocks of a GPU", shapes=((5, 9), (3, 5)), queries=70, dim=32, arch=90, dtype="bf16", wide=wide)
