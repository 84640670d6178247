"""Token mixing: its problems, random cases and named edge cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.proving.sizes import Sizes, largest
from vitkern.lab.specimens._layernorm_mlp import ACTIVATIONS, PARAMETERS

SIZES = (2, 3, 8, 15, 16, 17, 24, 33, 49, 64, 65, 96, 100, 128, 130)


def problem(
    name: str, batch: int, tokens: int, channels: int, hidden: int, *, scales: bool = False, **options
) -> Problem:
    """``scales``: a DropPath factor that drops one sample."""

    def inputs(generator):
        tensors = dict(
            x=normal(generator, batch, tokens, channels),
            norm_weight=1 + normal(generator, channels, std=0.2),
            norm_bias=normal(generator, channels, std=0.2),
            fc1_weight=normal(generator, hidden, tokens, std=tokens**-0.5 if tokens else 1.0),
            fc1_bias=normal(generator, hidden, std=0.2),
            fc2_weight=normal(generator, tokens, hidden, std=hidden**-0.5),
            fc2_bias=normal(generator, tokens, std=0.2),
        )
        if scales:
            tensors["row_scale"] = torch.tensor([1.25] * (batch - 1) + [0.0], dtype=torch.float64)
        return tensors

    return Problem("token_mixing", name, inputs, ("x", *PARAMETERS), dict(eps=1e-5) | options, sizes=_sizes)


def _sizes(operands: dict, options: dict, grad: Tensor | None) -> Sizes:
    """Gradients of the norm's parameters are sums over tokens of sums over hidden tokens of sums over tokens: the root
    of the sum of squares of what is added up, slopes of the activation taken as 1."""
    if grad is None:
        return Sizes(0.0, {})
    fc1, fc2 = (operands[name].double().square() for name in ("fc1_weight", "fc2_weight"))
    squares = (fc1.T @ (fc2.T @ grad.double().square())).sum((0, 1))  # (C,)
    return Sizes(0.0, dict.fromkeys(("dnorm_weight", "dnorm_bias"), largest(squares) ** 0.5))


@dataclass(frozen=True, kw_only=True)
class MixingCase(Case):
    """Without "row_scale" it has none; it is there by default."""

    batch: int = 1
    tokens: int = 1
    channels: int = 1
    hidden: int = 1
    act: str = "gelu"
    eps: float = 1e-5

    def base(self) -> Problem:
        sizes = (self.batch, self.tokens, self.channels, self.hidden)
        return problem("case", *sizes, scales=True, act=self.act, eps=self.eps)


def draw(rng: Random) -> MixingCase:
    optional = ("norm_weight", "norm_bias", "fc1_bias", "fc2_bias", "row_scale")
    left_out = tuple(name for name in optional if chance(rng, 0.4 if "scale" in name else 0.08))
    names = tuple(name for name in ("x", *PARAMETERS, "row_scale") if name not in left_out)
    drawn = common(rng, names, arch_share=0.3)
    if chance(rng, 0.2):
        drawn |= dict(backward=False, frozen=())
    thawed(drawn, names)
    kept = ("norm_weight", "norm_bias") if drawn["dtype"] != "fp32" and chance(rng, 0.3) else ()
    drawn |= dict(wide=tuple(name for name in kept if name in names), without=left_out)
    sizes = dict(batch=rng.choice((1, 2, 3, 5)))
    sizes |= {name: rng.choice(SIZES) for name in ("tokens", "hidden")}
    sizes["channels"] = rng.choice(SIZES[1:])  # of two a norm leaves a sign, and a gradient of rounding errors
    if chance(rng, SPECIAL):
        drawn["values"] = {"x": (((rng.randrange(sizes["batch"]), rng.randrange(sizes["tokens"])), NAN),)}
    return MixingCase(**drawn, **sizes, act=rng.choice(ACTIVATIONS), eps=rng.choice((1e-6, 1e-5, 1e-3)))


def tiles(case: MixingCase) -> int:
    def blocks(size, of):
        return -(-size // of)

    rows = blocks(case.hidden, 32) * blocks(case.tokens, 64) + blocks(case.tokens, 32) * blocks(case.hidden, 64)
    return case.batch * blocks(case.channels, 64) * rows * (3 if case.backward else 1)


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        usual = dict(batch=2, tokens=9, channels=24, hidden=12)
        return Edge(f"mixing: {name}", MixingCase(**usual | fields), expected)

    plain = dict(without=("row_scale",))
    yield edge("no samples", **plain, batch=0)
    yield edge("one token", **plain, tokens=1)
    yield edge("one hidden token", **plain, hidden=1)
    yield edge("one channel", **plain, channels=1)
    yield edge("five images", batch=5)
    yield edge("every sample dropped", *zero("dfc1_weight", "dfc2_weight"), values={"row_scale": (((), 0),)})
    yield edge("nothing optional", without=("row_scale", "norm_weight", "norm_bias", "fc1_bias", "fc2_bias"))
    yield edge("NaN in a token", nan_only("out", (1,)), values={"x": (((1, 2, 3), NAN),)})
    yield edge("inf in a token", values={"x": (((1, 2, 3), INF),)}, backward=False)
    yield edge("eps 1e6", eps=1e6)
    yield edge("eps 1e-12", eps=1e-12)
    for layout in ("misaligned", "stepped", "transposed", "sliced", "packed"):
        names = ("x", *PARAMETERS, "row_scale", "grad out")
        yield edge(f"{layout} operands", layouts=dict.fromkeys(names, layout))
    for act in ACTIVATIONS:
        for factor in (1e3, -1e3):
            yield edge(f"saturated {act}, {factor:g}", **plain, act=act, values={"fc1_bias": (((), factor),)})
    for size in (31, 32, 33, 63, 64, 65):
        yield edge(f"{size} tokens", **plain, tokens=size)
        yield edge(f"{size} hidden tokens", **plain, hidden=size)
        yield edge(f"{size} channels", **plain, channels=size, dtype="fp16")
