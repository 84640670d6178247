"""The MLP branch: its problems, random cases and named edge cases."""

import math
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

PARAMETERS = ("norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
SCALES = ("layer_scale", "row_scale")
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
WIDTHS = (1, 3, 8, 15, 16, 17, 24, 33, 40, 64, 65, 96, 100, 128, 130, 192, 256, 260, 384, 520)


def problem(
    name: str, batch: int, tokens: int, channels: int, hidden: int, *, scales: bool = False, **options
) -> Problem:
    """``scales``: LayerScale and a DropPath factor that drops one sample."""

    def inputs(generator):
        tensors = dict(
            x=normal(generator, batch, tokens, channels),
            norm_weight=1 + normal(generator, channels, std=0.2),
            norm_bias=normal(generator, channels, std=0.2),
            fc1_weight=normal(generator, hidden, channels, std=channels**-0.5),
            fc1_bias=normal(generator, hidden, std=0.2),
            fc2_weight=normal(generator, channels, hidden, std=hidden**-0.5),
            fc2_bias=normal(generator, channels, std=0.2),
        )
        if scales:
            tensors["layer_scale"] = normal(generator, channels)
            tensors["row_scale"] = torch.tensor([1.25] * (batch - 1) + [0.0], dtype=torch.float64)
        return tensors

    names = ("x", *PARAMETERS) + ("layer_scale",) * scales
    return Problem("layernorm_mlp", name, inputs, names, dict(eps=1e-5) | options, sizes=_sizes)


def _sizes(operands: dict, options: dict, grad: Tensor | None) -> Sizes:
    """A norm after the MLP takes from gradients what lies along its input, and of one hidden unit that is all."""
    if grad is None or not options.get("post_norm"):
        return Sizes(0.0, {})
    tensors = {name: value.double() for name, value in operands.items() if value is not None}
    x, fc1, fc2 = (tensors[name] for name in ("x", "fc1_weight", "fc2_weight"))
    hidden = torch.nn.functional.gelu(x @ fc1.mT + tensors.get("fc1_bias", 0.0))
    spread = (hidden @ fc2.mT + tensors.get("fc2_bias", 0.0)).var(-1, correction=0)
    steep = largest((spread + options["eps"]).rsqrt()) * largest(grad.double())
    for name in ("norm_weight", "layer_scale", "row_scale"):
        steep *= largest(tensors[name]) if name in tensors else 1.0
    before = steep * largest(fc2.norm(dim=0)) * math.sqrt(max(1, x[..., 0].numel()))  # of all tokens, before fc2
    sums = dict(dfc1_bias=before, dfc1_weight=before * largest(x), dx=before * largest(fc1.norm(dim=0)))
    return Sizes(0.0, sums | dict(dfc2_bias=steep, dfc2_weight=steep * largest(hidden)))


@dataclass(frozen=True, kw_only=True)
class MLPCase(Case):
    """Without "layer_scale" and "row_scale" it has none; both are there by default."""

    batch: int = 1
    tokens: int = 1
    channels: int = 1
    hidden: int = 1
    act: str = "gelu"
    post_norm: bool = False
    eps: float = 1e-5

    def base(self) -> Problem:
        options = dict(act=self.act, post_norm=self.post_norm, eps=self.eps)
        return problem("case", self.batch, self.tokens, self.channels, self.hidden, scales=True, **options)


def draw(rng: Random) -> MLPCase:
    optional = ("norm_weight", "norm_bias", "fc1_bias", "fc2_bias", *SCALES)
    left_out = tuple(name for name in optional if chance(rng, 0.4 if "scale" in name else 0.08))
    names = tuple(name for name in ("x", *PARAMETERS, *SCALES) if name not in left_out)
    drawn = common(rng, names, arch_share=0.3)
    if chance(rng, 0.3):
        drawn |= dict(backward=False, frozen=())
    thawed(drawn, names)
    kept = ("norm_weight", "norm_bias", "layer_scale") if drawn["dtype"] != "fp32" and chance(rng, 0.3) else ()
    drawn |= dict(wide=tuple(name for name in kept if name in names), without=left_out)
    sizes = dict(
        batch=rng.choice((1, 2, 3)),
        tokens=rng.choice((1, 2, 9, 16, 25, 33, 49)),
        channels=rng.choice(WIDTHS),
        hidden=rng.choice(WIDTHS),
    )
    act, post_norm, eps = rng.choice(ACTIVATIONS), chance(rng, 0.4), rng.choice((1e-6, 1e-5, 1e-3))
    if post_norm and drawn["layouts"].get("fc2_weight") == "expanded":
        del drawn["layouts"]["fc2_weight"]  # equal channels: a norm of rounding errors
    if chance(rng, SPECIAL):
        drawn["values"] = {"x": (((rng.randrange(sizes["batch"]), rng.randrange(sizes["tokens"])), NAN),)}
    return MLPCase(**drawn, **sizes, act=act, post_norm=post_norm, eps=eps)


def tiles(case: MLPCase) -> int:
    rows, blocks = -(-case.batch * case.tokens // 32), -(-case.hidden // 64) + -(-case.channels // 64)
    inner = -(-max(case.channels, case.hidden) // 64)
    return rows * blocks * max(1, inner // 2) * (3 if case.backward else 1) // 2


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"mlp: {name}", MLPCase(**dict(batch=2, tokens=5, channels=24, hidden=40) | fields), expected)

    plain = dict(without=SCALES)
    for where, post_norm in (("pre-norm", False), ("post-norm", True)):
        norm = dict(post_norm=post_norm)
        yield edge(f"no samples, {where}", **norm, **plain, batch=0)
        yield edge(f"no tokens, {where}", **norm, **plain, tokens=0)
        yield edge(f"one token, {where}", **norm, **plain, batch=1, tokens=1)
        yield edge(f"one channel, {where}", **norm, **plain, channels=1)
        yield edge(f"one hidden channel, {where}", **norm, **plain, hidden=1)
        dropped = dict(values={"row_scale": (((), 0),)})
        yield edge(f"every sample dropped, {where}", *zero("dfc1_weight", "dfc2_weight"), **norm, **dropped)
        yield edge(f"a layer scale of 0, {where}", *zero("dfc1_weight"), **norm, values={"layer_scale": (((), 0),)})
        yield edge(f"NaN in a token, {where}", nan_only("out", (1, 2)), **norm, values={"x": (((1, 2, 3), NAN),)})
        yield edge(f"inf in a token, {where}", **norm, values={"x": (((1, 2, 3), INF),)}, backward=False)
        yield edge(f"eps 1e6, {where}", **norm, eps=1e6)
        yield edge(f"eps 1e-12, {where}", **norm, eps=1e-12)
        bare = (*SCALES, "norm_weight", "norm_bias", "fc1_bias", "fc2_bias")
        yield edge(f"nothing optional, {where}", **norm, without=bare)
        for layout in ("misaligned", "stepped", "transposed", "sliced", "packed"):
            layouts = dict.fromkeys(("x", *PARAMETERS, *SCALES, "grad out"), layout)
            yield edge(f"{layout} operands, {where}", **norm, layouts=layouts)
    for act in ACTIVATIONS:
        for factor in (1e3, -1e3):
            yield edge(f"saturated {act}, {factor:g}", **plain, act=act, values={"fc1_bias": (((), factor),)})
        yield edge(f"{act} of 0", **plain, act=act, values={"fc1_weight": (((), 0),), "fc1_bias": (((), 0),)})
    for channels in (16, 17, 256, 257, 512, 513):
        sizes = dict(channels=channels, tokens=2, hidden=17)
        yield edge(f"{channels} channels", **plain, **sizes, dtype="fp16")
        yield edge(f"{channels} channels, no gradient", **sizes, backward=False)
    for rows in (31, 32, 33):
        yield edge(f"{rows} rows", **plain, batch=1, tokens=rows)
    for hidden in (63, 64, 65):
        yield edge(f"{hidden} hidden channels", **plain, hidden=hidden)
    yield edge("constant rows", values={"x": (((), 2.0),)}, backward=False)
    yield edge("values of 1e4", **plain, factors={"x": 1e4}, backward=False)
    alike = dict(layouts={"fc2_weight": "expanded"}, values={"fc2_bias": (((), 0),)})
    yield edge("every output channel alike, post-norm", **alike, post_norm=True, eps=1.0)
