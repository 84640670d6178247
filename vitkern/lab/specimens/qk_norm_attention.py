"""Attention of normalised queries and keys, in the tile."""

from collections.abc import Iterator
from functools import partial

import torch

import vitkern
from vitkern.lab.addressing.offset_case import HALF as STORED
from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.addressing.offset_case import scaled
from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, compiled
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.proving.integration import Integration
from vitkern.lab.proving.problem import only
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._qk_norm_attention import GRADIENTS, QkNorm, QkNormCase, draw, edges, problem, tiles

KERNELS = "_qk_norm_fwd", "_qk_norm_bwd_dq", "_qk_norm_bwd_dkdv"


def _gradients() -> Iterator[GradientCase]:
    few = problem("5 tokens", 1, 5, 2, 3)
    yield GradientCase(few, full=True, sample=True)
    yield GradientCase(problem("4 tokens, RMSNorm, scale 0.7", 1, 4, 1, 3, rms=True, scale=0.7), full=True, sample=True)
    yield GradientCase(problem("3 tokens, no parameters", 2, 3, 1, 4, plain=True, eps=0.1), full=True)
    yield GradientCase(problem("40 tokens", 1, 40, 2, 5), seeds=2, ordered=True)
    yield GradientCase(problem("20 tokens of 17 channels", 2, 20, 1, 17, rms=True), seeds=2)
    yield from (GradientCase(only(few, name)) for name in GRADIENTS)
    yield GradientCase(only(few, "qkv", "k_bias"), constant=("k_bias",), sample=True)


def _beyond(tensors, size, *, launcher: str, dims, strides=None):
    """``dims(size)``: (B, N, H, D) of each of the tensors of tokens."""
    from vitkern.kernels.loop.packed import Packed, head_rows
    from vitkern.kernels.loop.problem import per_token
    from vitkern.kernels.qk_norm import backward, forward
    from vitkern.kernels.qk_norm_attention import Norms

    batch, tokens, heads, dim = dims(size)
    q, k, v, out, grad = (head_rows(tensors(dims, strides=strides)) for _ in range(5))
    made = [head_rows(torch.empty(dims(size), dtype=STORED)) for _ in range(2)]
    parameters = tuple(tensors(lambda s: dims(s)[3:], torch.float32) for _ in range(3))
    of = Packed(batch, heads, tokens, dim, 0.5), Norms(parameters, 1e-6, True)
    numbers = lambda: tensors(lambda s: (dims(s)[0], dims(s)[2], dims(s)[1]), torch.float32)  # noqa: E731
    empty = partial(torch.empty, batch, heads, tokens)
    if launcher == "forward":
        forward.run_forward(*of, q, k, v, made[0], per_token(empty()))
    elif launcher == "queries":
        backward.query_gradients(*of, q, k, v, out, grad, made[0], per_token(numbers()), empty())
    else:
        backward.key_gradients(*of, q, k, v, grad, *made, per_token(numbers()), numbers())


def _offsets() -> list[OffsetCase]:
    """Images so many that tensors of tokens, of numbers and of parts end beyond 2^31; strides beyond it in what callers
    give."""
    cases = []
    for kernel, launcher in zip(KERNELS, ("forward", "queries", "keys"), strict=True):
        case = partial(scaled, kernel, function=_beyond, launcher=launcher)
        cases += [
            case("images", small=3, offset=2**23, dims=lambda s: (s, 18, 1, 16)),
            case("images of one channel", small=3, offset=2**23, dims=lambda s: (s, 256, 1, 1)),
        ]
        if launcher != "forward":
            cases.append(case("images of one token", small=3, offset=2**27, dims=lambda s: (s, 1, 1, 16)))
        for axis, what, extents in ((0, "image", (3, 5, 1)), (1, "token", (1, 18, 1)), (2, "head", (1, 5, 3))):
            steps = lambda s, axis=axis: tuple(s if i == axis else n for i, n in enumerate((384, 64, 16, 1)))  # noqa: E731
            dims = lambda s, extents=extents: (*extents, 16)  # noqa: E731
            offset = 2**28 if axis == 1 else 2**30
            cases.append(case(f"{what} stride", small=1536, offset=offset, dims=dims, strides=steps))
        odd = lambda s: (384, 64, s, 1)  # noqa: E731 other strides are counted in units of 16 bytes
        cases.append(case("odd head stride", small=1537, offset=2**30, dims=lambda s: (1, 5, 3, 16), strides=odd))
    return cases


LAYERS = (
    QkNorm("ViT-S qk-norm", 197, 6, 64, quick=True),
    QkNorm("ViT-B qk-norm", 197, 12, 64, compiled="qk-norm-vit-b", everywhere=True),
    QkNorm("ViT-B 384 qk-norm", 577, 12, 64, batch=16),
    QkNorm("ViT-22B", 256, 48, 128, biased=False, batch=8),
)


def _launches() -> Iterator[Launch]:
    """Both elements, both norms, heads of several widths, and a batch of many, which is the same kernel."""
    yield from compiled(LAYERS)
    base = LAYERS[1]
    yield Launch("qk-norm-vit-b-64", base, dict(batch=layers.MANY), everywhere=True)
    yield Launch("qk-norm-rms", base, dict(rms=True), everywhere=True)
    for dim in (32, 80):
        yield Launch(f"qk-norm-d{dim}", QkNorm("tiles", 197, 4, dim))
    yield Launch("qk-norm-fp32", base, dict(dtype=torch.float32), everywhere=True)
    yield Launch("qk-norm-fp16", base, dict(dtype=torch.float16))
    yield Launch("qk-norm-plain", base, dict(plain=True))
    yield Launch("qk-norm-odd", base, dict(spare=3))


_FEW, _MANY = problem("20 tokens", 2, 20, 3, 12, scale=0.4), problem("37 tokens, RMSNorm", 1, 37, 2, 20, rms=True)
_SMOOTH = problem("an eps of 0.5", 1, 35, 2, 12, eps=0.5)
TRIALS = (
    *quick(SINGLE, _FEW, _MANY, _SMOOTH, apart=1),
    *quick(SINGLE, problem("no parameters", 2, 18, 2, 16, plain=True), problem("32 tokens", 1, 32, 2, 16)),
    *quick(SINGLE, problem("72 channels", 1, 20, 2, 72), problem("72 channels, RMSNorm", 1, 20, 1, 72, rms=True)),
    *quick(BRAIN, _FEW, _MANY, problem("80 channels", 1, 33, 2, 80), problem("one token", 3, 1, 2, 16)),
    *quick(HALF, _FEW, _SMOOTH),
    *quick(BRAIN, problem("blocks of a GPU", 1, 70, 1, 80), problem("64 tokens", 1, 64, 1, 32), arch=90),
)
FILES = ("qk_norm_attention", *(f"qk_norm/{name}" for name in ("norm", "forward", "backward")))


def _in_tile(device: torch.device) -> list[str]:
    """Which sizes are normalised in the tile."""
    from vitkern.kernels.qk_norm_attention import takes

    expected = {(1023, 80): True, (1024, 80): False, (1023, 81): False}
    return [f"{size}" for size, one in expected.items() if takes(torch.empty(1, size[0], 3, 1, size[1])) != one]


SPECIMEN = Specimen(
    name="qk_norm_attention",
    check=(
        problem("N=197 D=64", 1, 197, 1, 64),
        problem("N=50 D=24, scale 0.3", 2, 50, 2, 24, scale=0.3),
        problem("N=33 D=80, RMSNorm", 1, 33, 2, 80, rms=True),
        problem("N=65 D=32, no parameters", 1, 65, 2, 32, plain=True),
    ),
    case=QkNormCase,
    draw=draw,
    tiles=tiles,
    weight=3,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=tuple(_launches()),
    judges=dict.fromkeys(FILES, Checks(TRIALS, special=("what is normalised in the tile",))),
    integration={
        "qk_norm_attention": Integration(
            lambda *tensors: vitkern.qk_norm_attention(*tensors),
            lambda n: [(2, n, 3, 2, 16), (16,), (16,), (16,), (16,)],
            products=4 * 2 * 5 * 5 * 2 * 16,
        )
    },
    faults=(problem("several blocks", 2, 35, 2, 12), problem("RMSNorm", 1, 9, 3, 16, rms=True)),
    bounded={f"_qk_norm_*.{name}": "a number for each channel" for name in ("q_weight", "q_bias", "k_weight")},
    exceptions={
        **dict.fromkeys(
            ((name, KERNELS[2], 120) for name in ("qk-norm-vit-b", "qk-norm-vit-b-64", "qk-norm-rms")),
            Excuse("spills: ", "40 bytes at most: sums of two gradients are held, and rows as they were", ("3.9",)),
        ),
        ("qk-norm-fp32", KERNELS[2], 942): Excuse(
            "spills: ", "140 bytes: products of float32 take their operands from registers", ("3.9",)
        ),
    },
    turns={
        **dict.fromkeys(KERNELS[:2], lambda a, programs: -(-a["N"] // a["BLOCK_N"])),
        KERNELS[2]: lambda a, programs: -(-a["N"] // a["BLOCK_M"]),
    },
    properties={"what is normalised in the tile": _in_tile},
)
