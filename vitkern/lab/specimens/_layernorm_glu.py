"""The gated MLP branch: its problems, random cases and named edge cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch

from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.specimens._layernorm_mlp import PARAMETERS, SCALES, WIDTHS

ACTIVATIONS = ("sigmoid", "identity", "relu", "gelu", "gelu_tanh", "silu")
NORMS = {"layer": ("norm_weight", "norm_bias"), "rms": ("norm_weight",), "none": ()}  # and their parameters
BIASES = ("fc1_bias", "value_bias", "fc2_bias")


def problem(
    name: str, batch: int, tokens: int, channels: int, hidden: int, *,
    packed: bool = True, scales: bool = False, norm: str = "layer", **options,
) -> Problem:  # fmt: skip
    """``packed``: one weight has gate and value. ``scales``: LayerScale and a DropPath factor that drops one sample."""

    def inputs(generator):
        width = 2 * hidden if packed else hidden
        tensors = dict(
            x=normal(generator, batch, tokens, channels),
            norm_weight=1 + normal(generator, channels, std=0.2),
            norm_bias=normal(generator, channels, std=0.2),
            fc1_weight=normal(generator, width, channels, std=channels**-0.5),
            fc1_bias=normal(generator, width, std=0.2),
            fc2_weight=normal(generator, channels, hidden, std=hidden**-0.5),
            fc2_bias=normal(generator, channels, std=0.2),
        )
        for parameter in set(NORMS["layer"]) - set(NORMS[norm]):
            tensors[parameter] = None
        if not packed:
            tensors["value_weight"] = normal(generator, hidden, channels, std=channels**-0.5)
            tensors["value_bias"] = normal(generator, hidden, std=0.2)
        if scales:
            tensors["layer_scale"] = normal(generator, channels)
            tensors["row_scale"] = torch.tensor([1.25] * (batch - 1) + [0.0], dtype=torch.float64)
        return tensors

    names = ("x", *NORMS[norm], *PARAMETERS[2:])
    names += ("value_weight", "value_bias") * (not packed) + ("layer_scale",) * scales
    return Problem("layernorm_glu", name, inputs, names, dict(eps=1e-5, norm=norm) | options)


@dataclass(frozen=True, kw_only=True)
class GLUCase(Case):
    """Without "layer_scale" and "row_scale" it has none; both are there by default."""

    batch: int = 1
    tokens: int = 1
    channels: int = 1
    hidden: int = 1
    act: str = "silu"
    norm: str = "layer"
    packed: bool = True
    gate_last: bool = False
    eps: float = 1e-5

    def base(self) -> Problem:
        options = dict(packed=self.packed, norm=self.norm, act=self.act, gate_last=self.gate_last, eps=self.eps)
        return problem("case", self.batch, self.tokens, self.channels, self.hidden, scales=True, **options)


def draw(rng: Random) -> GLUCase:
    packed, norm = chance(rng, 0.6), rng.choice(("layer", "layer", "rms", "none"))
    names = ("x", *NORMS[norm], *PARAMETERS[2:], *SCALES) + ("value_weight", "value_bias") * (not packed)
    optional = [name for name in (*NORMS[norm], "fc2_bias", *SCALES) if chance(rng, 0.4 if "scale" in name else 0.08)]
    if chance(rng, 0.1):
        optional += BIASES[: 1 if packed else 2]  # both or neither
    names = tuple(name for name in names if name not in optional)
    drawn = common(rng, names, arch_share=0.3)
    if chance(rng, 0.2):
        drawn |= dict(backward=False, frozen=())
    thawed(drawn, names)
    kept = ("norm_weight", "norm_bias", "layer_scale") if drawn["dtype"] != "fp32" and chance(rng, 0.3) else ()
    drawn |= dict(wide=tuple(name for name in kept if name in names), without=tuple(optional))
    sizes = dict(
        batch=rng.choice((1, 2, 3)),
        tokens=rng.choice((1, 2, 9, 16, 25, 33, 49)),
        channels=rng.choice(WIDTHS),
        hidden=rng.choice(WIDTHS[1:]),  # of one unit a rounding is all that is compared: an edge case
    )
    options = dict(act=rng.choice(ACTIVATIONS), norm=norm, packed=packed, gate_last=packed and chance(rng, 0.5))
    if chance(rng, SPECIAL):
        drawn["values"] = {"x": (((rng.randrange(sizes["batch"]), rng.randrange(sizes["tokens"])), NAN),)}
    return GLUCase(**drawn, **sizes, **options, eps=rng.choice((1e-6, 1e-5, 1e-3)))


def tiles(case: GLUCase) -> int:
    rows, blocks = -(-case.batch * case.tokens // 32), 2 * -(-case.hidden // 64) + -(-case.channels // 64)
    inner = -(-max(case.channels, case.hidden) // 64)
    return rows * blocks * max(1, inner // 2) * (3 if case.backward else 1) // 2


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"glu: {name}", GLUCase(**dict(batch=2, tokens=5, channels=24, hidden=40) | fields), expected)

    plain = dict(without=SCALES)
    yield edge("no samples", **plain, batch=0)
    yield edge("no tokens", **plain, tokens=0)
    yield edge("one token", **plain, batch=1, tokens=1)
    yield edge("one channel", **plain, channels=1)
    yield edge("one hidden channel", **plain, hidden=1)
    yield edge("one hidden channel, gate last", **plain, hidden=1, gate_last=True)
    yield edge("two weights", packed=False)
    yield edge("two weights, one hidden channel", **plain, hidden=1, packed=False)
    yield edge("every sample dropped", *zero("dfc1_weight", "dfc2_weight"), values={"row_scale": (((), 0),)})
    yield edge("a layer scale of 0", *zero("dfc1_weight"), values={"layer_scale": (((), 0),)})
    for norm, parameters in NORMS.items():
        yield edge(f"nothing optional, norm {norm}", norm=norm, without=(*SCALES, *parameters, "fc1_bias", "fc2_bias"))
        yield edge(
            f"NaN in a token, norm {norm}", nan_only("out", (1, 2)), norm=norm, values={"x": (((1, 2, 3), NAN),)}
        )
        yield edge(f"inf in a token, norm {norm}", norm=norm, values={"x": (((1, 2, 3), INF),)}, backward=False)
    yield edge("eps 1e6", eps=1e6)
    yield edge("eps 1e-12", eps=1e-12)
    for layout in ("misaligned", "stepped", "transposed", "sliced", "packed"):
        names = ("x", *PARAMETERS, "value_weight", "value_bias", *SCALES, "grad out")
        yield edge(f"{layout} operands, two weights", packed=False, layouts=dict.fromkeys(names, layout))
        names = ("x", *PARAMETERS, *SCALES, "grad out")
        yield edge(f"{layout} operands, gate last", gate_last=True, layouts=dict.fromkeys(names, layout))
    for act in ACTIVATIONS:
        for factor in (1e3, -1e3):
            yield edge(f"saturated {act}, {factor:g}", **plain, act=act, values={"fc1_bias": ((((0, 40),), factor),)})
        yield edge(f"{act} of 0", **plain, act=act, values={"fc1_weight": (((), 0),), "fc1_bias": (((), 0),)})
    for channels in (16, 17, 512, 513):
        yield edge(f"{channels} channels", **plain, channels=channels, tokens=2, hidden=17, dtype="fp16")
    for rows in (31, 32, 33):
        yield edge(f"{rows} rows", **plain, batch=1, tokens=rows)
    for hidden in (63, 64, 65):
        yield edge(f"{hidden} hidden channels", **plain, hidden=hidden)
