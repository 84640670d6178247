"""Policy attention: that of DynamicViT in training."""

from collections.abc import Iterator
from functools import partial

import torch

import vitkern
from vitkern.lab.addressing.offset_case import HALF as STORED
from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.addressing.offset_case import scaled
from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, compiled
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.proving.integration import Integration, Module
from vitkern.lab.proving.problem import only
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._policy_attention import NAMES, Policy, PolicyCase, draw, edges, problem, tiles

KERNELS = "_policy_fwd", "_policy_bwd_dq", "_policy_bwd_dkdv"


def _gradients() -> Iterator[GradientCase]:
    few = problem("5 tokens", 1, 5, 2, 2)
    yield GradientCase(few, full=True, sample=True)
    yield GradientCase(problem("3 tokens, none counts, scale 0.7", 2, 3, 1, 2, keep=0.0, scale=0.7), full=True)
    yield GradientCase(problem("4 tokens, an eps of 0.3", 1, 4, 1, 2, soft=True, eps=0.3), full=True, sample=True)
    yield GradientCase(problem("40 tokens", 1, 40, 2, 3, soft=True), seeds=2, ordered=True)
    yield GradientCase(problem("20 tokens of 17 channels", 2, 20, 1, 17), seeds=2)
    yield from (GradientCase(only(few, name)) for name in NAMES)


def _beyond(tensors, size, *, launcher: str, dims, strides=None):
    """``dims(size)``: (B, N, H, D) of each of the tensors of tokens."""
    from vitkern.kernels.loop.packed import Packed, head_rows
    from vitkern.kernels.loop.problem import per_token
    from vitkern.kernels.policy import backward, forward

    batch, tokens, heads, dim = dims(size)
    q, k, v, out, grad = (head_rows(tensors(dims, strides=strides)) for _ in range(5))
    made = [head_rows(torch.empty(dims(size), dtype=STORED)) for _ in range(2)]
    of = Packed(batch, heads, tokens, dim, 0.5), tensors(lambda s: dims(s)[:2], torch.float32)
    means = tensors(lambda s: (dims(s)[0], *dims(s)[2:]), torch.float32)
    numbers = lambda dtype=torch.float32: tensors(lambda s: (dims(s)[0], dims(s)[2], dims(s)[1]), dtype)  # noqa: E731
    empty = partial(torch.empty, batch, heads, tokens)
    if launcher == "forward":
        stored = per_token(empty()), empty(), empty(dtype=torch.int32)
        forward.run_forward(*of, 1e-6, q, k, v, made[0], *stored, means)
        return
    stored = per_token(numbers()), numbers(), numbers(torch.int32)
    if launcher == "queries":
        backward.query_gradients(*of, q, k, v, out, grad, made[0], *stored, empty(), empty(), means)
    else:
        backward.key_gradients(*of, q, k, v, grad, *made, *stored, numbers(), numbers(), empty())


def _offsets() -> list[OffsetCase]:
    """Images so many that tensors of tokens, of numbers and of means end beyond 2^31; strides beyond it in what callers
    give."""
    cases = []
    for kernel, launcher in zip(KERNELS, ("forward", "queries", "keys"), strict=True):
        case = partial(scaled, kernel, function=_beyond, launcher=launcher)
        cases += [
            case("images", small=3, offset=2**23, dims=lambda s: (s, 18, 1, 16)),
            case("images of one channel", small=3, offset=2**23, dims=lambda s: (s, 256, 1, 1)),
            case("images of one token", small=3, offset=2**27, dims=lambda s: (s, 1, 1, 16)),
        ]
        for axis, what, extents in ((0, "image", (3, 5, 1)), (1, "token", (1, 18, 1)), (2, "head", (1, 5, 3))):
            steps = lambda s, axis=axis: tuple(s if i == axis else n for i, n in enumerate((384, 64, 16, 1)))  # noqa: E731
            dims = lambda s, extents=extents: (*extents, 16)  # noqa: E731
            offset = 2**28 if axis == 1 else 2**30
            cases.append(case(f"{what} stride", small=1536, offset=offset, dims=dims, strides=steps))
        odd = lambda s: (384, 64, s, 1)  # noqa: E731 other strides are counted in units of 16 bytes
        cases.append(case("odd head stride", small=1537, offset=2**30, dims=lambda s: (1, 5, 3, 16), strides=odd))
    return cases


LAYERS = (
    Policy("DynamicViT-256", 197, 4, 64),
    Policy("DynamicViT-S", 197, 6, 64, quick=True, compiled="policy-dynamicvit-s", everywhere=True),
    Policy("DynamicViT-B", 197, 12, 64),
    Policy("DynamicViT-B 384", 577, 12, 64, batch=16, compiled="policy-dynamicvit-b-384"),
    Policy("DynamicLVViT-M", 197, 8, 64),
)


def _launches() -> Iterator[Launch]:
    """Both elements, heads of several widths, and a batch of many, which is the same kernel."""
    yield from compiled(LAYERS)
    small = LAYERS[1]
    yield Launch("policy-dynamicvit-s-64", small, dict(batch=layers.MANY), everywhere=True)
    for dim in (32, 80, 128):
        yield Launch(f"policy-d{dim}", Policy("tiles", 197, 4, dim))
    yield Launch("policy-fp32", small, dict(dtype=torch.float32), everywhere=True)
    yield Launch("policy-fp16", small, dict(dtype=torch.float16))
    yield Launch("policy-even", Policy("whole blocks", 256, 4, 64))
    yield Launch("policy-odd", small, dict(spare=3))


_FEW, _MANY = problem("20 tokens", 2, 20, 3, 12, scale=0.4), problem("37 tokens, soft", 1, 37, 2, 20, soft=True)
_NONE = problem("none counts", 2, 18, 2, 16, keep=0.0, size=3.0)
_SMOOTH = problem("an eps of 0.5", 1, 35, 2, 12, soft=True, eps=0.5)
TRIALS = (
    *quick(SINGLE, _FEW, _MANY, _SMOOTH, apart=1),
    *quick(SINGLE, _NONE, problem("32 tokens", 1, 32, 2, 16), problem("no eps", 1, 20, 1, 8, keep=1.0, eps=0.0)),
    *quick(SINGLE, problem("72 channels, an eps of 1", 1, 20, 2, 72, soft=True, eps=1.0)),
    *quick(BRAIN, _FEW, _MANY, problem("80 channels", 1, 33, 2, 80), problem("one token", 3, 1, 2, 16)),
    *quick(HALF, _FEW, _SMOOTH, problem("130 tokens", 1, 130, 1, 16, eps=1.0)),
    *quick(BRAIN, problem("blocks of a GPU", 1, 70, 1, 80), problem("64 tokens", 1, 64, 1, 32), arch=90),
)
FILES = ("policy_attention", *(f"policy/{name}" for name in ("rows", "forward", "backward")))

SPECIMEN = Specimen(
    name="policy_attention",
    check=(
        problem("N=197 D=64", 1, 197, 1, 64),
        problem("N=50 D=24, scale 0.3", 2, 50, 2, 24, scale=0.3),
        problem("N=33 D=80, no token counts", 1, 33, 2, 80, keep=0.0),
        problem("N=65 D=32, soft", 1, 65, 2, 32, soft=True),
    ),
    case=PolicyCase,
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
        "policy_attention": Integration(
            lambda qkv, policy: vitkern.policy_attention(qkv, policy.sigmoid()),
            lambda n: [(2, n, 3, 2, 16), (2, n)],
            products=4 * 2 * 5 * 5 * 2 * 16,
            batched=(0, 1),
        )
    },
    faults=(problem("several blocks", 2, 35, 2, 12), problem("one block", 1, 9, 3, 16, keep=0.0)),
    exceptions={
        ("policy-d80", KERNELS[2], 100): Excuse("spills: ", "8 bytes, of heads in two tiles", ("3.9",)),
        ("policy-odd", KERNELS[0], 90): Excuse(
            "widest global load is 64 bits", "rows at odd strides: an element is all that is aligned", ("3.6",)
        ),
        **dict.fromkeys(
            (("policy-d128", kernel, 120) for kernel in KERNELS[1:]),
            Excuse("spills: ", "152 bytes at most, of heads wider than those of any model", ("3.9",)),
        ),
    },
    turns={
        **dict.fromkeys(KERNELS[:2], lambda a, programs: -(-a["N"] // a["BLOCK_N"])),
        KERNELS[2]: lambda a, programs: -(-a["N"] // a["BLOCK_M"]),
    },
    survivors={
        **dict.fromkeys(
            ("forward._policy_fwd:narrow-accumulator:1", "backward._policy_bwd_dkdv:narrow-accumulator:1"),
            Survivor(
                "tl.float32 -> tl.float16",
                "it is exact in float16 and float32 from the first turn on; compiled, the changing type is refused",
            ),
        ),
        "rows.load_policy:wrong-constant:1": Survivor(
            "0.0 -> 1.0", "a key past the last weighs nothing, and its own gradients are not stored"
        ),
        "rows.load_mean:wrong-constant:1": Survivor(
            "0.0 -> 1.0", "of channels past the last, where gradients are zeros and nothing is stored"
        ),
        "backward._policy_bwd_dq:wrong-constant:1": Survivor(
            "0.0 -> 1.0", "of queries past the last, whose gradients and outputs are zeros"
        ),
    },
    modules={"PolicyAttention": Module((2, 5, 32), dict(dim=32, num_heads=2))},
)
