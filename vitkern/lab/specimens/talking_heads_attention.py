"""Talking-heads attention: that of CaiT."""

from collections.abc import Iterator
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
from vitkern.lab.proving.verify import verify
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._talking_heads_attention import (
    FAR_BELOW_0,
    GRADIENTS,
    TalkingCase,
    TalkingHeads,
    draw,
    edges,
    problem,
    tiles,
)

KERNELS = "_talking_fwd", "_talking_bwd_queries", "_talking_bwd_keys"


def _gradients() -> Iterator[GradientCase]:
    few = problem("5 tokens", 1, 5, 2, 2)
    yield GradientCase(few, full=True, sample=True)
    yield GradientCase(problem("3 tokens, 3 heads, scale 0.7", 2, 3, 3, 1, plain=True, scale=0.7), full=True)
    yield GradientCase(problem("40 tokens of 5 heads", 1, 40, 5, 3), seeds=2, ordered=True)
    yield GradientCase(problem("20 tokens of 16 heads", 1, 20, 16, 17), sample=True)
    yield from (GradientCase(only(few, name)) for name in GRADIENTS)
    yield GradientCase(only(few, "qkv", "before_bias"), constant=("before_bias",), sample=True)


def _beyond(tensors, size, *, launcher: str, dims, strides=None):
    """``dims(size)``: (B, N, H, D) of each of the tensors of tokens."""
    from vitkern.kernels import talking_heads_attention as kernels
    from vitkern.kernels.talking import backward, forward

    batch, tokens, heads, _ = dims(size)
    q, k, v, grad = given = [kernels._rows(tensors(dims, strides=strides)) for _ in range(4)]
    made = [kernels._rows(torch.empty(dims(size), dtype=STORED)) for _ in range(2)]
    choose = kernels.talking_forward_config if launcher == "forward" else kernels.talking_backward_config
    mixing = [tensors(lambda s, n=n: (dims(s)[2],) * n, torch.float32) for n in (2, 2, 1)]
    packed = q.tensor.transpose(1, 2)[:, :, None]
    of = kernels._problem(packed, *mixing, 1.0, choose, (*given, *made))
    numbers = lambda: tensors(lambda s: (dims(s)[0], dims(s)[2], dims(s)[1]), torch.float32)  # noqa: E731
    empty = partial(torch.empty, dtype=torch.float32)
    blocks = of.programs * (kernels.MAX_HEADS // of.constants["HEAD_TILE"])
    if launcher == "forward":
        forward.run_forward(of, q, k, v, made[0], empty(batch, heads, tokens))
    elif launcher == "queries":
        delta, shares = empty(batch, heads, tokens), empty(blocks, 2 * heads + 1, heads)
        backward.query_gradients(of, q, k, v, grad, numbers(), delta, made[0], shares)
    else:
        backward.key_gradients(of, q, k, v, grad, numbers(), numbers(), *made)


def _offsets() -> list[OffsetCase]:
    """Images so many that tensors of tokens, of numbers and of shares end beyond 2^31; strides beyond it in what
    callers give."""
    cases = []
    for kernel, launcher in zip(KERNELS, ("forward", "queries", "keys"), strict=True):
        case = partial(scaled, kernel, function=_beyond, launcher=launcher)
        cases += [
            case("images", small=3, offset=2**23, dims=lambda s: (s, 18, 1, 16)),
            case("images of one channel", small=3, offset=2**23, dims=lambda s: (s, 256, 1, 1)),
        ]
        if launcher == "queries":  # shares of H^2
            cases.append(case("images of 16 heads", small=3, offset=2**22, dims=lambda s: (s, 1, 16, 1)))
        for axis, what, extents in ((0, "image", (3, 5, 1)), (1, "token", (1, 18, 1)), (2, "head", (1, 5, 3))):
            steps = lambda s, axis=axis: tuple(s if i == axis else n for i, n in enumerate((256, 64, 16, 1)))  # noqa: E731
            dims = lambda s, extents=extents: (*extents, 16)  # noqa: E731
            offset = 2**28 if axis == 1 else 2**30
            cases.append(case(f"{what} stride", small=1024, offset=offset, dims=dims, strides=steps))
        odd = lambda s: (256, 64, s, 1)  # noqa: E731 other strides are counted in units of 16 bytes
        cases.append(case("odd head stride", small=1025, offset=2**30, dims=lambda s: (1, 5, 3, 16), strides=odd))
    return cases


SMALL = (120,)  # less shared memory than rows of 48 channels take
LAYERS = (
    TalkingHeads("CaiT-XXS24 224", 196, 4, 48),
    TalkingHeads("CaiT-XS24 384", 576, 6, 48, batch=32),
    TalkingHeads("CaiT-S24 224", 196, 8, 48, quick=True),
    TalkingHeads("CaiT-S24 384", 576, 8, 48, batch=32),
    TalkingHeads("CaiT-M36 384", 576, 16, 48, batch=16),
    TalkingHeads("CaiT-M48 448", 784, 16, 48, batch=8),
)


def _launches() -> Iterator[Launch]:
    """Each number of heads that CaiT has; each block size; heads of one part, of several, of one that is not full."""
    m, s, xs, xxs = LAYERS[5], LAYERS[2], LAYERS[1], LAYERS[0]
    yield Launch("talking-cait-m48", m, everywhere=True, in_pytorch=SMALL)
    yield Launch("talking-cait-s24", s, everywhere=True, in_pytorch=SMALL)
    yield Launch("talking-cait-xs24", xs, in_pytorch=SMALL)
    yield Launch("talking-cait-xxs24", xxs, in_pytorch=SMALL)
    yield Launch("talking-d16", TalkingHeads("narrow heads", 196, 8, 16), everywhere=True)
    yield Launch("talking-d64", TalkingHeads("wide heads", 196, 12, 64), in_pytorch=(80, *SMALL))
    yield Launch("talking-d8-odd", TalkingHeads("odd heads", 196, 8, 8), dict(spare=3))
    yield Launch("talking-fp16", s, dict(dtype=torch.float16), in_pytorch=SMALL)
    yield Launch("talking-no-bias", s, dict(plain=True), in_pytorch=SMALL)
    single = dict(dtype=torch.float32)
    yield Launch("talking-fp32-d16", TalkingHeads("float32", 196, 8, 16), single, everywhere=True)
    yield Launch("talking-fp32-d32", TalkingHeads("float32", 196, 8, 32), single, in_pytorch=SMALL)
    yield Launch("talking-tf32", TalkingHeads("TF32", 196, 8, 32), in_pytorch=SMALL, tf32=True)


_FEW, _FULL = problem("5 heads", 2, 20, 5, 12, scale=0.4), problem("16 heads", 1, 35, 16, 20)
TRIALS = (
    *quick(SINGLE, _FEW, _FULL, apart=1),
    *quick(SINGLE, problem("2 heads of many tokens", 1, 150, 2, 17), problem("no biases", 2, 20, 3, 8, plain=True)),
    *quick(SINGLE, FAR_BELOW_0[1].problem()),
    *quick(HALF, FAR_BELOW_0[0].problem()),
    *quick(HALF, _FEW, _FULL, problem("logits beyond the range", 1, 20, 3, 16, size=300.0, scale=1e-4)),
    *quick(BRAIN, _FEW, _FULL, problem("64 channels", 1, 30, 4, 64), problem("40 channels", 1, 33, 9, 40)),
    *quick(BRAIN, problem("blocks of a GPU", 1, 40, 6, 48), arch=90),
)
_WIDENED = (
    "it is exact in float16 and the sum is float32 from the first turn on; compiled, the changing type is refused"
)
FILES = ("talking_heads_attention", *(f"talking/{x}" for x in ("backward", "blocks", "forward", "lanes", "mixing")))


def _wide_heads(device: torch.device) -> list[str]:
    """Of more channels than every GPU takes."""
    from vitkern.kernels.talking_heads_attention import fits

    wide = problem("CaiT's", 2, 50, 6, 48)
    if not fits(torch.empty(0, 0, 3, 6, 48, dtype=BRAIN, device=device)):
        return []
    return [f"{found.name}: {found.comparison}" for found in verify(wide, BRAIN, device) if not found.comparison.passed]


SPECIMEN = Specimen(
    name="talking_heads_attention",
    check=(
        problem("16 heads", 1, 20, 16, 16),
        problem("6 heads, 35 tokens, scale 0.3", 2, 35, 6, 12, scale=0.3),
        problem("4 heads, 65 tokens", 1, 65, 4, 16),
        problem("3 heads, no biases", 1, 17, 3, 7, plain=True),
    ),
    case=TalkingCase,
    draw=draw,
    tiles=tiles,
    weight=3,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=(*compiled(LAYERS), *_launches()),
    judges=dict.fromkeys(FILES, Checks(TRIALS)),
    integration={
        "talking_heads_attention": Integration(
            lambda *tensors: vitkern.talking_heads_attention(*tensors),
            lambda n: [(2, n, 3, 2, 16), (2, 2), (2, 2), (2,), (2,)],
            products=4 * 2 * 5 * 5 * 2 * (16 + 2),
            batched=(0,),
        )
    },
    faults=(
        problem("several blocks", 2, 35, 3, 12),
        problem("no biases", 1, 9, 9, 12, plain=True),
    ),
    bounded={
        "_talking_*.before": "of 16 heads at most",
        "_talking_*.after": "of 16 heads at most",
        "_talking_*.after_bias": "of 16 heads at most",
    },
    exceptions={
        ("talking-d64", "_talking_bwd_keys", 942): Excuse(
            "spills: ", "88 bytes, of 512 registers: sums of two gradients are held", ("3.9",)
        ),
        **dict.fromkeys(
            (("talking-d64", kernel, 90) for kernel in KERNELS[1:]),
            Excuse("spills: ", "48 bytes at most, of heads wider than those of any model", ("3.6",)),
        ),
        **dict.fromkeys(
            (("talking-d8-odd", kernel, arch) for kernel in KERNELS for arch in (80, 90)),
            Excuse("widest global load is ", "odd strides: an element is all that is aligned"),
        ),
        **dict.fromkeys(
            (
                (name, kernel, arch)
                for name, archs in (("talking-fp32-d16", (80, 90, 100, 120)), ("talking-fp32-d32", (90, 100)))
                for kernel in KERNELS[1:]
                for arch in archs
            ),
            Excuse(
                "spills: ", "868 bytes at most: products of float32 take their operands from registers, TF32 does not"
            ),
        ),
    },
    properties={"CaiT's heads are as in float64": _wide_heads},
    turns=dict.fromkeys(
        ("_talking_fwd", "_talking_bwd_queries", "_talking_bwd_keys"),
        lambda a, programs: 2 * -(-a["N"] // a["BLOCK_N"]),
    ),
    survivors={
        **dict.fromkeys(
            (
                "mixing.load_bias:narrow-accumulator:1",
                "forward._talking_fwd:narrow-accumulator:1",
                "forward._talking_fwd:narrow-accumulator:2",
                "backward._talking_bwd_queries:narrow-accumulator:2",
            ),
            Survivor("tl.float32 -> tl.float16", _WIDENED),
        ),
        "talking_heads_attention._problem:wrong-block:3": Survivor(
            "config.block_n -> config.block_m", "another size of a turn, which is right too"
        ),
        "lanes._part:compare:1": Survivor(
            "FIRST_D + PART > HEAD_DIM -> (FIRST_D + PART >= HEAD_DIM)", "a last part that is full is masked, by True"
        ),
        "mixing.load_bias:wrong-constant:1": Survivor(
            "0.0 -> 1.0", "of lanes without a head, whose values are zeros and which no other lane takes"
        ),
        "mixing.store_shares:transpose:1": Survivor(
            "start[:, None] -> start[None, :]", "the lanes of a diagonal block have one start, and no other is stored"
        ),
        "forward._talking_fwd:shift-index:2": Survivor(
            "tl.program_id(0) -> (tl.program_id(0) + 1)", "the programs of an image own its blocks in another order"
        ),
        "forward._talking_fwd:wrong-axis:2": Survivor("2 -> -1", "the last of three axes by both names"),
    },
    modules={"TalkingHeadsAttention": Module((2, 5, 32), dict(dim=32, num_heads=2))},
)
