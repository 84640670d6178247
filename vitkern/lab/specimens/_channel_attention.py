"""Attention between channels, of unit length too: its problems, random cases, named edge cases, layers of models."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

import vitkern
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.layer import Layer, leaf
from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.proving.sizes import MIN_NORM, Sizes
from vitkern.lab.specimens._attention import HEAD_DIMS, length

OF_UNIT_CHANNELS = "cross_covariance_attention"
MAX_HEAD_DIM = 64
TILE = 32  # a chunk of tokens in the interpreter
LONG = (1030, 2100)  # tokens that several programs add up on a GPU


def problem(
    name: str, batch: int, tokens: int, heads: int, dim: int, *, unit: bool = False, hot: float = 1.0,
    size: float = 1.0, **options,
) -> Problem:  # fmt: skip
    """``unit``: channels of unit length, with temperatures around ``hot``; ``size`` of the numbers in qkv."""

    def inputs(generator):
        tensors = dict(qkv=normal(generator, batch, tokens, 3, heads, dim, std=size))
        if unit:
            tensors["temperature"] = hot + normal(generator, heads, std=0.2)
        return tensors

    called = dict(function=OF_UNIT_CHANNELS, family=OF_UNIT_CHANNELS) if unit else {}
    return Problem(
        "channel_attention", name, inputs, ("qkv", "temperature") if unit else ("qkv",), options, **called, sizes=_sizes
    )


def _sizes(operands: dict, options: dict, grad: Tensor | None) -> Sizes:
    qkv, temperature = operands["qkv"].double(), operands.get("temperature")
    dim, lengths = qkv.shape[-1], _finite(qkv.norm(dim=1))
    if temperature is None:
        steepness = options.get("scale") or dim**-0.5
        score, slope_of_row = steepness * lengths.amax() ** 2, steepness * _finite(qkv.abs()).amax()
    else:
        score = _finite(temperature.double().abs()).amax()
        slope_of_row = score / lengths.amin().clamp_min(MIN_NORM)
    if grad is None:
        return Sizes(score.item(), {})
    slope = _finite(grad.double().norm(dim=1)).amax() * lengths.amax() / max(1, qkv.shape[1]) ** 0.5
    return Sizes(score.item(), dict(dqkv=(slope * slope_of_row).item(), dtemperature=slope.item()))


def _finite(values: Tensor) -> Tensor:
    """1, where there is none."""
    found = values[torch.isfinite(values)]
    return found if found.numel() else values.new_ones(1)


@dataclass(frozen=True, kw_only=True)
class ChannelCase(Case):
    batch: int = 1
    n: int = 1
    heads: int = 1
    dim: int = 1
    unit: bool = False
    value: str = "q"
    scale: float | None = None

    def base(self) -> Problem:
        options = {} if self.unit else dict(value=self.value, scale=self.scale)
        return problem("case", self.batch, self.n, self.heads, self.dim, unit=self.unit, hot=3.0, **options)


def draw(rng: Random) -> ChannelCase:
    unit = chance(rng, 0.5)
    names = ("qkv", "temperature") if unit else ("qkv",)
    drawn = common(rng, names, arch_share=0.4)
    thawed(drawn, names)
    if unit and drawn["dtype"] != "fp32" and chance(rng, 0.7):
        drawn["wide"] = ("temperature",)
    n = rng.choice(LONG) if drawn["arch"] and chance(rng, 0.2) else length(rng)
    batch, heads = rng.choice((1, 2, 3)), rng.choice((1, 1, 2, 3))
    dim = rng.choice([size for size in (1, *HEAD_DIMS) if size <= MAX_HEAD_DIM])
    if chance(rng, SPECIAL) and not drawn["backward"]:
        place = rng.randrange(batch), rng.randrange(n), rng.randrange(3), rng.randrange(heads)
        drawn["values"] = {"qkv": ((place, NAN),)}
    if unit:
        return ChannelCase(**drawn, batch=batch, n=n, heads=heads, dim=dim, unit=True)
    scale, value = (0.3 if chance(rng, 0.2) else None), rng.choice("qv")
    return ChannelCase(**drawn, batch=batch, n=n, heads=heads, dim=dim, value=value, scale=scale)


def tiles(case: ChannelCase) -> int:
    block = 64 if case.arch else 16
    return case.batch * case.heads * -(-case.n // block) * (4 if case.backward else 1)


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        for unit in (False, True):
            which = "unit channels" if unit else "channels"
            case = ChannelCase(**dict(batch=2, n=18, heads=2, dim=12, unit=unit) | fields)
            yield Edge(f"{which}: {name}", case, tuple(expected))

    yield from edge("no images", batch=0)
    yield from edge("no heads", heads=0)
    yield from edge("no tokens", n=0)
    yield from edge("one token", n=1)
    yield from edge("one channel", dim=1)
    for tokens in (15, 16, 17, 31, 32, 33, 63, 64, 65):
        yield from edge(f"{tokens} tokens", n=tokens)
    for tokens in (1023, 1024):
        yield from edge(f"{tokens} tokens, blocks of a GPU", batch=1, n=tokens, heads=1, dtype="fp16", arch=90)
    for dim in (15, 16, 17, 33, 63, 64):
        yield from edge(f"head dim {dim}", n=40, dim=dim, dtype="bf16")
    zeros = dict(values={"qkv": (((), 0.0),)}, dtype="fp16")
    yield Edge(
        "channels: nothing but zeros",
        ChannelCase(batch=2, n=18, heads=2, dim=12, **zeros),
        zero("out") + zero("dqkv", at=((0, 2), (0, 18), (1, 3))),
    )
    yield Edge(
        "unit channels: nothing but zeros",
        ChannelCase(batch=2, n=18, heads=2, dim=12, unit=True, **zeros),
        zero("out", "dtemperature") + zero("dqkv", at=((0, 2), (0, 18), (0, 2))),
    )
    for n in (18, 40):
        for part in range(2):
            dead = {"qkv": (((0, (0, n), part, 0, 3), 0.0),)}
            yield from edge(f"a channel of {'qk'[part]} of zeros, {n} tokens", n=n, values=dead, dtype="fp16")
    yield from edge("channels that are all the same", n=40, values={"qkv": (((), 0.25),)})
    for n in (18, 40):
        token, channel = (1, 3, 2, 1, 5), (1, (0, n), 1, 5)
        yield Edge(
            f"unit channels: NaN in a value, {n} tokens",
            ChannelCase(batch=2, n=n, heads=2, dim=12, unit=True, values={"qkv": ((token, NAN),)}, backward=False),
            (nan_only("out", (1, 3, 1)),),
        )
        yield Edge(
            f"unit channels: NaN in a query, {n} tokens",
            ChannelCase(
                batch=2, n=n, heads=2, dim=12, unit=True, values={"qkv": (((1, 3, 0, 1, 5), NAN),)}, backward=False
            ),
            (nan_only("out", channel),),
        )
        for part in range(3):
            yield from edge(
                f"NaN in {'qkv'[part]}, {n} tokens", n=n, values={"qkv": (((1, 3, part, 1, 5), NAN),)}, backward=False
            )
            yield from edge(
                f"inf in {'qkv'[part]}, {n} tokens", n=n, values={"qkv": (((1, 3, part, 1, 5), INF),)}, backward=False
            )
    yield from edge("large values", factors={"qkv": 30.0}, backward=False)
    yield from edge("denormals", factors={"qkv": 1e-40}, backward=False)
    yield from edge("small values in fp16", n=40, factors={"qkv": 1e-2}, dtype="fp16")
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping", "packed"):
        layouts = dict.fromkeys(("qkv", "temperature", "grad out"), layout)
        for n in (18, 40):
            yield from edge(f"{layout} operands, {n} tokens", n=n, layouts=layouts)
    yield from edge("a constant gradient", layouts={"grad out": "constant"})
    yield from edge("blocks of a GPU", n=70, dim=24, dtype="fp16", arch=90)


@dataclass(frozen=True)
class Channels(Layer):
    """``tokens`` of an image, C = heads * head_dim."""

    tokens: int
    heads: int
    head_dim: int
    op = "channel_attention"
    unit: ClassVar[bool] = False

    @property
    def operator(self) -> str:
        return "channel_attention"

    def problem(self, batch):
        return problem(self.layer, batch, self.tokens, self.heads, self.head_dim, unit=self.unit)

    def eager(self, options):
        return _unit_channels if self.unit else _channels

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        width = 3 * self.heads * self.head_dim
        rows = leaf(batch, self.tokens, width + spare, dtype=dtype)[..., :width]
        qkv = rows.unflatten(-1, (3, self.heads, self.head_dim))
        with torch.set_grad_enabled(trained):
            if self.unit:
                out = vitkern.cross_covariance_attention(qkv, leaf(self.heads, dtype=torch.float32))
            else:
                out = vitkern.channel_attention(qkv)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        unit = batch * self.tokens * self.heads * self.head_dim
        return itemsize * unit * (7 if backward else 4), (8 if backward else 4) * unit * self.head_dim

    def __str__(self) -> str:
        return f"{self.layer} {self.tokens} x H{self.heads} D{self.head_dim}"


class UnitChannels(Channels):
    op = OF_UNIT_CHANNELS
    unit = True


def _channels(qkv):
    """timm's, in its order."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D)
    weights = ((k * qkv.shape[-1] ** -0.5).transpose(-1, -2) @ v).softmax(dim=-1)
    return (weights @ q.transpose(-1, -2)).permute(0, 3, 1, 2).contiguous()


def _unit_channels(qkv, temperature):
    """timm's, in its order."""
    q, k, v = qkv.permute(2, 0, 3, 4, 1)  # (B, H, D, N)
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    weights = ((q @ k.transpose(-2, -1)) * temperature.to(q.dtype).view(-1, 1, 1)).softmax(dim=-1)
    return (weights @ v).permute(0, 3, 1, 2).contiguous()
