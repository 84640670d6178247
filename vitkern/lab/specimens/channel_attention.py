"""Attention between the channels of a head, over all tokens: that of DaViT."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

import vitkern
from vitkern.lab.addressing.offset_case import HALF as STORED
from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.addressing.offset_case import scaled
from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, compiled
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.proving.integration import Integration, Module
from vitkern.lab.proving.problem import only
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._channel_attention import (
    ChannelCase,
    Channels,
    UnitChannels,
    draw,
    edges,
    problem,
    tiles,
)


def _gradients() -> Iterator[GradientCase]:
    unit = problem("5 tokens, unit", 1, 5, 1, 3, unit=True)
    yield GradientCase(problem("5 tokens", 1, 5, 1, 3), full=True, sample=True)
    yield GradientCase(problem("5 tokens, v is mixed, scale 0.7", 1, 5, 2, 2, value="v", scale=0.7), full=True)
    yield GradientCase(problem("33 tokens", 1, 33, 1, 2), full=True)
    yield GradientCase(unit, full=True, sample=True)
    more = problem("35 tokens, unit", 2, 35, 1, 3, unit=True)
    yield GradientCase(more, seeds=2, sample=True)
    yield GradientCase(only(more, "temperature"))
    yield GradientCase(problem("75 tokens of 20 channels", 2, 75, 2, 20), seeds=2, ordered=True)
    yield GradientCase(problem("75 tokens of 17 channels, unit", 1, 75, 2, 17, unit=True), seeds=2, ordered=True)
    yield from (GradientCase(only(unit, name)) for name in ("qkv", "temperature"))


def _beyond(tensors, size, *, launcher: str, dims: Callable, strides: Callable | None = None):
    """``dims(size)``: (B, N, H, D) of each of the tensors of tokens."""
    from vitkern.kernels import channel_attention as kernels
    from vitkern.kernels.channels import shares, short

    batch, _, heads, dim = dims(size)
    given = [kernels._rows(tensors(dims, strides=strides)) for _ in range(4)]
    made = [kernels._rows(torch.empty(dims(size), dtype=STORED)) for _ in range(3)]
    left, right, carried, grad = given
    choose = kernels.channel_backward_config if "back" in launcher else kernels.channel_forward_config
    temperature = tensors(lambda s: (dims(s)[2],), torch.float32)
    of = kernels._problem(given[0].tensor.transpose(1, 2)[:, :, None], temperature, 1.0, choose, (*given, *made))
    matrix = lambda *extents, dtype=torch.float32: tensors(  # noqa: E731
        lambda s: (dims(s)[0], dims(s)[2], *extents), dtype
    )
    empty = lambda *extents, dtype=torch.float32: torch.empty(batch, heads, *extents, dtype=dtype)  # noqa: E731
    partial_sums = empty()
    {
        "short_forward": lambda: short.short_forward(of, left, right, carried, made[0]),
        "short_backward": lambda: short.short_backward(of, *given, *made, partial_sums),
        "sum_shares": lambda: shares.sum_shares(of, left, right, empty(1, dim + 2, dim), True),
        "weigh": lambda: shares.weigh(of, matrix(2, dim + 2, dim), empty(dim, dim, dtype=STORED)),
        "mix_tokens": lambda: shares.mix_tokens(of, carried, made[0], matrix(dim, dim, dtype=STORED)),
        "slope": lambda: shares.slope(
            of, matrix(2, dim + 2, dim), matrix(2, dim, dim), empty(3, dim, dim, dtype=STORED), empty(4, dim),
            partial_sums,
        ),
        "mix_tokens_backward": lambda: shares.mix_tokens_backward(
            of, left, right, grad, *made, matrix(3, dim, dim, dtype=STORED), matrix(4, dim)
        ),
    }[launcher]()  # fmt: skip


def _offsets() -> list[OffsetCase]:
    """Images and heads so many that tensors of tokens, of matrices and of vectors end beyond 2^31; strides beyond it in
    what callers give."""
    shares = {"_channel_sum": "sum_shares", "_channel_mix_fwd": "mix_tokens", "_channel_mix_bwd": "mix_tokens_backward"}
    matrices = {"_channel_weights": "weigh", "_channel_slopes": "slope"}
    short = {"_channel_short_fwd": "short_forward", "_channel_short_bwd": "short_backward"}
    cases = []
    for kernel, launcher in (short | shares | matrices).items():
        case = partial(scaled, kernel, function=_beyond, launcher=launcher)
        several = launcher in ("slope", "mix_tokens_backward")  # matrices of each head
        many = partial(case, small=3, offset=2**22 if several else 2**23)
        cases += [
            many("images", dims=lambda s, n=40 if several else 18: (s, n, 1, 16)),
            many("heads", dims=lambda s: (1, 16, s, 16)),
        ]
        if several:
            cases.append(case("images of one channel", small=3, offset=2**29, dims=lambda s: (s, 1, 1, 1)))
        if kernel in matrices:
            continue
        for axis, what, extents in ((0, "image", (3, 5, 1)), (1, "token", (1, 18, 1)), (2, "head", (1, 5, 3))):
            steps = lambda s, axis=axis: tuple(s if i == axis else n for i, n in enumerate((256, 64, 16, 1)))  # noqa: E731
            dims = lambda s, extents=extents: (*extents, 16)  # noqa: E731
            offset = 2**28 if axis == 1 else 2**30
            cases.append(case(f"{what} stride", small=1024, offset=offset, dims=dims, strides=steps))
        odd = lambda s: (256, 64, s, 1)  # noqa: E731 other strides are counted in units of 16 bytes
        cases.append(case("odd head stride", small=1025, offset=2**30, dims=lambda s: (1, 5, 3, 16), strides=odd))
    return cases


LAYERS = (
    Channels("DaViT-T stage 1", 3136, 3, 32, compiled="channel-davit-1", everywhere=True),
    Channels("DaViT-T stage 2", 784, 6, 32),
    Channels("DaViT-T stage 3", 196, 12, 32, quick=True, compiled="channel-davit-3", everywhere=True),
    Channels("DaViT-T stage 4", 49, 24, 32),
    Channels("DaViT-T at 1024, stage 1", 65536, 3, 32, batch=2),
)


def _launches() -> Iterator[Launch]:
    """A row of blocks for each tile of a head and element; images that one program adds up, and several."""
    yield from compiled(LAYERS)
    single = dict(dtype=torch.float32)
    for dim in (32, 64):
        yield Launch(f"channel-fp32-d{dim}", Channels("tiles", 3136, 4, dim), single, everywhere=True)
        yield Launch(f"channel-fp32-d{dim}-short", UnitChannels("tiles", 196, 4, dim), single, everywhere=True)
    for tokens in (196, 3136):
        yield Launch(f"channel-fp16-{tokens}", Channels("fp16", tokens, 3, 32), dict(dtype=torch.float16))
        yield Launch(f"channel-odd-{tokens}", Channels("odd", tokens, 3, 32), dict(spare=3))
    yield Launch("channel-one-head", Channels("one head", 196, 1, 16))


_SHORT, _LONG = problem("20 tokens", 2, 20, 3, 12), problem("75 tokens", 2, 75, 3, 20, scale=0.4)
_UNIT = problem("20 tokens, unit", 2, 20, 3, 12, unit=True, hot=3.0)
_LONG_UNIT = problem("75 tokens, unit", 2, 75, 3, 20, unit=True, hot=3.0)
TRIALS = (
    *quick(SINGLE, _SHORT, _LONG, _UNIT, _LONG_UNIT, apart=1),
    *quick(SINGLE, problem("v is mixed", 1, 70, 2, 16, value="v"), problem("one head", 2, 33, 1, 16, unit=True)),
    *quick(SINGLE, problem("norms that are clamped", 1, 20, 1, 12, unit=True, size=1e-14), pool=None),
    *quick(HALF, _SHORT, _LONG, _UNIT, _LONG_UNIT),
    *quick(HALF, problem("squares beyond the range", 1, 20, 2, 12, unit=True, size=300.0), pool=None),
    *quick(BRAIN, problem("hot", 2, 40, 2, 16, unit=True, hot=150.0), pool="hot"),
    *quick(BRAIN, _LONG, _LONG_UNIT, problem("64 channels", 1, 30, 2, 64), problem("40 channels", 1, 64, 2, 40)),
)
FILES = ("channel_attention", *(f"channels/{name}" for name in ("blocks", "matrix", "shares", "short", "tokens")))

_WIDENED = (
    "zero is exact in float16 and the sum is float32 from the first addition on; compiled, the changing type is refused"
)

SPECIMEN = Specimen(
    name="channel_attention",
    check=(
        problem("49 tokens", 2, 49, 3, 32),
        problem("20 tokens, v is mixed", 2, 20, 2, 24, value="v", scale=0.3),
        problem("200 tokens of 16 channels", 1, 200, 2, 16),
        problem("65 tokens of 64 channels", 1, 65, 1, 64, value="v"),
    ),
    case=ChannelCase,
    draw=draw,
    tiles=tiles,
    weight=3,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=tuple(_launches()),
    judges=dict.fromkeys(FILES, Checks(TRIALS)),
    integration={
        "channel_attention": Integration(
            lambda qkv, temperature: vitkern.cross_covariance_attention(qkv, 2.0 * temperature),
            lambda n: [(2, n, 3, 2, 16), (2,)],
            products=4 * 2 * 5 * 2 * 16 * 16,
            batched=(0,),
        )
    },
    faults=(
        problem("short", 2, 9, 2, 12),
        problem("shares", 2, 40, 2, 12, value="v"),
        problem("unit channels, short", 2, 9, 2, 12, unit=True),
        problem("unit channels, shares", 2, 40, 2, 12, unit=True),
    ),
    bounded={
        "_channel_*.temperature": "one element a head",
        "_channel_*.dtemperature": "one element a program, and programs are counted in 31 bits",
    },
    exceptions={
        **dict.fromkeys(
            (
                ("channel-odd-196", "_channel_short_fwd", 90),
                ("channel-odd-196", "_channel_short_fwd", 120),
                ("channel-odd-3136", "_channel_sum", 90),
            ),
            Excuse("widest global load is 16 bits", "odd strides: an element is all that is aligned"),
        ),
        **{
            ("channel-fp32-d64", "_channel_mix_bwd", arch): Excuse(
                "spills: ",
                "104 or 112 bytes: three matrices of 64 x 64 float32 are operands, without tensor cores",
                ("3.9",),
            )
            for arch in (90, 100, 120)
        },
        ("channel-xcit-s8", "_channel_sum", 80): Excuse(
            "spills: ", "8 bytes, although four programs of 128 registers would leave room: the compiler's choice"
        ),
    },
    turns={
        "_channel_sum": lambda a, programs: -(-a["N"] // a["shares"] // a["BLOCK_M"]),
        "_channel_short_fwd": lambda a, programs: 2 * -(-a["N"] // a["BLOCK_M"]),
        "_channel_short_bwd": lambda a, programs: 3 * -(-a["N"] // a["BLOCK_M"]),
        **dict.fromkeys(("_channel_weights", "_channel_slopes"), lambda a, programs: a["shares"]),
    },
    survivors={
        "matrix.slopes_of:compare:3": Survivor(
            "left_squares > 1e-24 -> (left_squares >= 1e-24)", "no sum of squares is the float32 nearest to 1e-24"
        ),
        "matrix.slopes_of:wrong-constant:7": Survivor(
            "1e-24 -> 1.0009765625e-24", "it decides for sums of squares within a thousandth of it alone"
        ),
        "tokens.summed:narrow-accumulator:2": Survivor("tl.float32 -> tl.float16", _WIDENED),
        "shares._all_shares:narrow-accumulator:2": Survivor("tl.float32 -> tl.float16", _WIDENED),
    },
    modules={"ChannelAttention": Module((2, 5, 32), dict(dim=32, num_heads=2))},
)
