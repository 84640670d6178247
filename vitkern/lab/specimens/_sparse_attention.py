"""Sampled attention: its problems, random cases and named edge cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch

from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.specimens._attention import HEAD_DIMS, LENGTHS, length


def problem(
    name: str, batch: int, heads: int, queries: int, keys: int, dim: int,
    *, sampled: int | None = None, repeated: bool = False, gated: bool = False, padded: bool = False, **options,
) -> Problem:  # fmt: skip
    """``sampled`` of the queries attend, all with None, and some of them again where they are ``repeated``; ``padded``:
    random keys are padding, all of the first sequence."""

    def inputs(generator):
        shapes = (queries, keys, keys)
        tensors = {x: normal(generator, batch, heads, n, dim) for x, n in zip("qkv", shapes, strict=True)}
        if sampled is not None:
            order = (torch.randperm(queries, generator=generator) for _ in range(batch))
            tensors["index"] = torch.stack([one[:sampled] for one in order])
            if repeated:
                tensors["index"] = torch.randint(queries, (batch, sampled), generator=generator)
        if gated:
            for gate, size in (("query_gate", queries if sampled is None else sampled), ("key_gate", keys)):
                tensors[gate] = torch.rand(batch, size, generator=generator, dtype=torch.float64)
        if padded:
            tensors["key_padding_mask"] = torch.rand(batch, keys, generator=generator) < 0.7
            tensors["key_padding_mask"][:1] = batch == 1
        return tensors

    gradients = ("q", "k", "v") + ("query_gate", "key_gate") * gated
    return Problem("sparse_attention", name, inputs, gradients, dict(strength=10.0) | options)


@dataclass(frozen=True, kw_only=True)
class SparseCase(Case):
    """``sampled`` of the queries attend, all with None, drawn anew each time where they are ``repeated``."""

    batch: int = 1
    heads: int = 1
    n: int = 1
    m: int = 1
    dim: int = 1
    sampled: int | None = None
    repeated: bool = False
    gated: bool = False
    padded: bool = False
    strength: float = 10.0
    scale: float | None = None

    def base(self) -> Problem:
        if self.sampled is not None and self.sampled > self.n and not (self.repeated and self.n):
            raise ValueError(f"{self.sampled} of {self.n} queries")
        sizes = (self.batch, self.heads, self.n, self.m, self.dim)
        terms = dict(sampled=self.sampled, repeated=self.repeated, gated=self.gated, padded=self.padded)
        return problem("case", *sizes, **terms, strength=self.strength, scale=self.scale)


def draw(rng: Random) -> SparseCase:
    from vitkern.kernels.sparse_attention import sparse_takes

    gated = chance(rng, 0.6)
    names = ("q", "k", "v") + ("query_gate", "key_gate") * gated
    drawn = common(rng, names, arch_share=0.5)
    thawed(drawn, names)
    if gated and drawn["dtype"] != "fp32" and chance(rng, 0.7):
        drawn["wide"] = ("query_gate", "key_gate")
    itemsize = 4 if drawn["dtype"] == "fp32" else 2
    fitting = [(m, dim) for m in LENGTHS for dim in HEAD_DIMS if sparse_takes(m, dim, itemsize, drawn["arch"])]
    n, m = length(rng), rng.choice(sorted({m for m, _ in fitting}))
    dim = rng.choice([dim for keys, dim in fitting if keys == m])
    batch, heads, padded = rng.choice((1, 2, 3)), rng.choice((1, 1, 2, 3)), chance(rng, 0.4)
    if chance(rng, SPECIAL) and not padded:
        name = rng.choice("qkv")
        row = rng.randrange(batch), rng.randrange(heads), rng.randrange(n if name == "q" else m)
        drawn["values"] = {name: ((row, NAN),)}
    return SparseCase(
        **drawn,
        batch=batch,
        heads=heads,
        n=n,
        m=m,
        dim=dim,
        sampled=(rng.randrange(n + 1) or None) if chance(rng, 0.5) else None,
        gated=gated,
        padded=padded,
        strength=rng.choice((0.0, 1.0, 10.0, 1e3)) if gated else 10.0,
        scale=0.3 if chance(rng, 0.2) else None,
        repeated=chance(rng, 0.3),  # nothing where none is sampled
    )


def tiles(case: SparseCase) -> int:
    rows = -(-(case.sampled or case.n) // 32) * max(1, case.m // 64)
    return case.batch * case.heads * rows * (4 if case.backward else 1)


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"sparse: {name}", SparseCase(**dict(batch=2, heads=2, n=18, m=20, dim=16) | fields), expected)

    gates = ("dquery_gate", "dkey_gate")
    yield edge("no sequences", batch=0, gated=True, padded=True)
    yield edge("no heads", heads=0)
    yield edge("no queries", *zero("dk", "dv"), n=0)
    yield edge("no sampled queries", *zero("dq", "dk", "dv", *gates), sampled=0, gated=True)
    yield edge("no keys", *zero("out", "dq"), m=0)
    yield edge("one query", n=1, gated=True)
    yield edge("one sampled query", sampled=1, gated=True)
    yield edge("every query sampled", sampled=18, gated=True)
    yield edge("queries sampled again", n=5, sampled=9, repeated=True, gated=True)
    yield edge("one query sampled again and again", n=1, sampled=18, repeated=True)
    yield edge("queries sampled again in other blocks", n=30, sampled=70, repeated=True, arch=90)
    yield edge("one key", *zero("dq", "dk", *gates), m=1, gated=True)
    nothing = dict(gated=True, padded=True, values={"key_padding_mask": (((), 0),)})
    yield edge("all keys padding", *zero("out", "dq", "dk", "dv", *gates), **nothing)
    yield edge("all keys of a sequence padding", *zero("out", "dq", "dk", "dv", at=(0,)), padded=True, sampled=9)
    first = {"key_padding_mask": (((), 0), (((0, 2), 0), 1))}
    yield edge("one key that is no padding", *zero("dq", *gates), gated=True, padded=True, values=first)
    for queries in (15, 16, 17, 32, 33):
        yield edge(f"{queries} queries", n=queries, gated=True)
    for keys in (15, 16, 17, 63, 64, 65):
        yield edge(f"{keys} keys", m=keys, gated=True, padded=True, dtype="fp16")
    yield edge("NaN in q", nan_only("out", (0, 1, 3)), values={"q": (((0, 1, 3), NAN),)})
    yield edge("NaN in k", nan_only("out", (0, 1)), values={"k": (((0, 1, 3), NAN),)})
    one = {"v": (((0, 1, 3, 2), NAN),)}
    yield edge("NaN in one value", nan_only("out", (0, 1, (0, 18), 2)), values=one, backward=False)
    row = dict(gated=True, backward=False, values={"query_gate": (((0, 3), NAN),)})
    yield edge("NaN in a query's gate", nan_only("out", (0, (0, 2), 3)), **row)
    for operand in "qkv":
        yield edge(f"inf in {operand}", values={operand: (((0, 1, 3), INF),)}, backward=False)
    yield edge("logits of 1e4", factors={"q": 100.0, "k": 100.0}, backward=False)
    yield edge("denormal q", factors={"q": 1e-40})
    for strength in (1e3, 1e8):
        yield edge(f"steep gates, {strength:g}", gated=True, padded=True, strength=strength, backward=False)
    yield edge("gates without strength", *zero(*gates), gated=True, strength=0.0)
    for value in (0.0, 1.0):
        same = {name: (((), value),) for name in ("query_gate", "key_gate")}
        yield edge(f"gates of {value:g} throughout", gated=True, values=same, strength=1e3)
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping", "packed"):
        layouts = dict.fromkeys(("q", "k", "v", "query_gate", "key_gate", "grad out"), layout)
        yield edge(f"{layout} operands", sampled=9, gated=True, padded=True, layouts=layouts)
    yield edge("a constant gradient", layouts={"grad out": "constant"})
    for dim in (1, 3, 17):
        yield edge(f"head dim {dim}", dim=dim, gated=True)
    yield edge("head dim 33", dim=33, gated=True, dtype="bf16")
    yield edge("blocks of a GPU", n=70, m=65, dim=24, sampled=66, gated=True, dtype="fp16", arch=90)
