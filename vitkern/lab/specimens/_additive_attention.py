"""Additive attention: its problems, random cases and named edge cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.proving.sizes import Sizes
from vitkern.lab.specimens._attention import HEAD_DIMS, length

FEATURES = (1, 2, 3, 5, 8, 15, 16, 17, 24)


def problem(
    name: str, batch: int, heads: int, queries: int, keys: int, features: int, dim: int,
    *, padded: bool = False, spread: float = 1.0, opposed: bool = False,
) -> Problem:  # fmt: skip
    """``padded``: random keys are padding, all of the first sequence, and all but two of no other. ``spread``: of q and
    k; the kernels take two ways, by whether some of them are above 20. ``opposed``: a query and a key are far from 0,
    and their sum is not."""

    def inputs(generator):
        shapes = dict(q=(queries, features), k=(keys, features), v=(keys, dim))
        stds = dict(q=spread, k=spread, v=1.0)
        tensors = {x: normal(generator, batch, heads, *shape, std=stds[x]) for x, shape in shapes.items()}
        if opposed:
            tensors["q"][:, :, :1, 0], tensors["k"][:, :, :1, 0] = 60.0, -60.25
        tensors["weight"] = normal(generator, heads, features, std=features**-0.5)
        if padded:
            drawn = torch.rand(batch, keys, generator=generator)
            least = drawn.kthvalue(min(2, keys), 1, keepdim=True).values  # of fewer keys no score has a gradient
            tensors["key_padding_mask"] = (drawn < 0.7) | (drawn <= least)
            tensors["key_padding_mask"][:1] = batch == 1
        return tensors

    return Problem("additive_attention", name, inputs, ("q", "k", "v", "weight"), sizes=_sizes)


def _sizes(operands: dict, options: dict, grad: Tensor | None) -> Sizes:
    """Scores are as large as the sum of |weight|; gradients of what tanh bends are a part of those of scores."""
    weight = operands["weight"].double().nan_to_num(0.0, 0.0, 0.0)
    score = weight.abs().sum(-1).amax().item() if weight.numel() else 0.0
    if grad is None:
        return Sizes(score, {})
    values = operands["v"].double().nan_to_num(0.0, 0.0, 0.0)
    slope = grad.double().nan_to_num(0.0, 0.0, 0.0).norm(dim=-1).amax() if grad.numel() else torch.zeros(())
    slope = slope * (values.norm(dim=-1).amax() if values.numel() else 0.0)
    each = slope * (weight.abs().amax() if weight.numel() else 0.0)
    return Sizes(score, dict(dq=each.item(), dk=each.item(), dweight=slope.item()))


@dataclass(frozen=True, kw_only=True)
class AdditiveCase(Case):
    """See `problem`."""

    batch: int = 1
    heads: int = 1
    n: int = 1
    m: int = 1
    features: int = 1
    dim: int = 1
    padded: bool = False
    spread: float = 1.0
    opposed: bool = False

    def base(self) -> Problem:
        sizes = (self.batch, self.heads, self.n, self.m, self.features, self.dim)
        return problem("case", *sizes, padded=self.padded, spread=self.spread, opposed=self.opposed)


def draw(rng: Random) -> AdditiveCase:
    names = ("q", "k", "v", "weight")
    drawn = common(rng, names, arch_share=0.4)
    thawed(drawn, names)
    if drawn["dtype"] != "fp32" and chance(rng, 0.5):
        drawn["wide"] = ("weight",)
    batch, heads = rng.choice((1, 2, 3)), rng.choice((1, 1, 2))
    n, m, padded = length(rng), length(rng), chance(rng, 0.4)
    if chance(rng, SPECIAL) and not padded:
        name = rng.choice("qkv")
        row = rng.randrange(batch), rng.randrange(heads), rng.randrange(n if name == "q" else m)
        drawn["values"] = {name: ((row, NAN),)}
    return AdditiveCase(
        **drawn,
        batch=batch,
        heads=heads,
        n=n,
        m=m,
        features=rng.choice(FEATURES),
        dim=rng.choice([dim for dim in HEAD_DIMS if dim <= 128 or drawn["dtype"] != "fp32"]),
        padded=padded,
        spread=rng.choice((0.3, 1.0, 1.0, 15.0)),
        opposed=chance(rng, 0.1) and bool(n and m),
    )


def tiles(case: AdditiveCase) -> int:
    block = 48 if case.arch else 16
    turns = -(-case.n // block) * -(-case.m // block) * (1 + case.features // 6)
    return case.batch * case.heads * turns * (5 if case.backward else 1)


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        usual = dict(batch=2, heads=2, n=18, m=20, features=5, dim=12)
        return Edge(f"additive: {name}", AdditiveCase(**usual | fields), expected)

    yield edge("no sequences", batch=0, padded=True)
    yield edge("no heads", heads=0)
    yield edge("no queries", *zero("dk", "dv", "dweight"), n=0)
    yield edge("no keys", *zero("out", "dq", "dweight"), m=0)
    yield edge("one query", n=1)
    yield edge("one key", m=1)
    yield edge("one feature", features=1)
    nothing = dict(padded=True, values={"key_padding_mask": (((), 0),)})
    yield edge("all keys padding", *zero("out", "dq", "dk", "dv", "dweight"), **nothing)
    yield edge("all keys of a sequence padding", *zero("out", "dq", "dk", "dv", at=(0,)), padded=True)
    for n, m in ((15, 16), (16, 17), (17, 16), (33, 31)):
        yield edge(f"{n} queries, {m} keys", n=n, m=m, dtype="fp16")
    for features in (15, 16, 17, 65):
        yield edge(f"{features} features", batch=1, n=5, m=17, features=features)
    yield edge("two shares of the features", batch=1, heads=1, n=3, m=4, features=257, dim=3)
    for dim in (1, 16, 17, 33, 129):
        yield edge(f"{dim} channels", batch=1, n=5, m=17, dim=dim, dtype="bf16")
    for dtype in ("fp16", "fp32"):
        for operand in "qk":
            for value in (19.5, 20.5, -20.5, 60.0, -60.0):
                far = {operand: (((0, 1, 3, 2), value),)}
                yield edge(f"{value:g} in {operand}, {dtype}", values=far, dtype=dtype)
        yield edge(f"far from 0 and near each other, {dtype}", opposed=True, dtype=dtype)
        yield edge(f"far from 0, {dtype}", spread=40.0, dtype=dtype)
    yield edge("NaN in q", nan_only("out", (0, 1, 3)), values={"q": (((0, 1, 3, 2), NAN),)})
    yield edge("NaN in k", nan_only("out", (0, 1)), values={"k": (((0, 1, 3, 2), NAN),)})
    yield edge("NaN in k, fp16", nan_only("out", (0, 1)), values={"k": (((0, 1, 3, 2), NAN),)}, dtype="fp16")
    one = {"v": (((0, 1, 3, 2), NAN),)}
    yield edge("NaN in one value", nan_only("out", (0, 1, (0, 18), 2)), values=one, backward=False)
    yield edge("NaN in a weight", nan_only("out", ((0, 2), 1)), values={"weight": (((1, 2), NAN),)}, backward=False)
    for operand in "qk":
        for value in (INF, "-inf"):
            for dtype in ("fp32", "fp16"):
                far = {operand: (((0, 1, 3, 2), value),)}
                yield edge(f"{value} in {operand}, {dtype}", values=far, dtype=dtype, backward=False)
    yield edge("inf in v", values={"v": (((0, 1, 3), INF),)}, backward=False)
    yield edge("weights of 1e4", factors={"weight": 1e4}, backward=False)
    yield edge("weights of 0", *zero("dq", "dk"), values={"weight": (((), 0.0),)})
    yield edge("denormals", factors={"q": 1e-40, "k": 1e-40})
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping", "packed"):
        layouts = dict.fromkeys(("q", "k", "v", "weight", "grad out"), layout)
        yield edge(f"{layout} operands", padded=True, layouts=layouts)
    yield edge("a constant gradient", layouts={"grad out": "constant"})
    yield edge("blocks of a GPU", batch=1, heads=1, n=70, m=65, dim=24, dtype="fp16", arch=90)
    yield edge("blocks of a GPU, far", batch=1, heads=1, n=70, m=65, dim=24, dtype="bf16", arch=90, spread=15.0)
