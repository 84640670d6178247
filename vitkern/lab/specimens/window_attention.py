"""Attention in shifted windows of an image, by scaled dot products or by cosines."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

import vitkern
from vitkern.lab.addressing.offset_case import HALF as STORED
from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.addressing.offset_case import scaled
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.proving.integration import Integration, Module
from vitkern.lab.proving.problem import only
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._streaming import SHORT, STREAMING, start, stride
from vitkern.lab.specimens._window_attention import WindowCase, draw, edges, problem, tiles
from vitkern.lab.specimens._window_judges import JUDGES, SURVIVORS
from vitkern.lab.specimens._window_launches import EXCEPTIONS, LAUNCHES
from vitkern.lab.specimens._window_layers import LAYERS


def _gradients() -> Iterator[GradientCase]:
    def case(name, image, window, *, sample=False, full=False, seeds=1, **options):
        # tokens of other regions, and padding, still count
        options = dict(heads=1, dim=2, mask_value=-1.5) | options
        return GradientCase(problem(name, image, window, **options), sample=sample, full=full, seeds=seeds)

    one = dict(shift=(1, 1), heads=2)
    padded = case("3x5, shift 1, rolled then padded", (3, 5), (2, 3), seeds=2, **one)
    cosine = case("3x5, shift 1, padded, cosine", (3, 5), (2, 3), cosine=True, **one).problem
    yield case("2x3, one window", (2, 3), (2, 3), full=True, sample=True)
    yield case("4x4 window 2 shift 1", (4, 4), (2, 2), shift=(1, 1), seeds=2)
    yield padded
    yield case("3x5, shift 1, padded then rolled", (3, 5), (2, 3), shift=(1, 2), wrap="padded", seeds=2)
    yield case("2x2 in a window of 2x3, cosine", (2, 2), (2, 3), cosine=True, full=True)
    yield GradientCase(cosine, seeds=2, ordered=True)
    yield from (GradientCase(only(cosine, name)) for name in ("table", "padding", "logit_scale"))
    yield GradientCase(only(padded.problem, "qkv"))
    yield case("6x6, regions forbidden", (6, 6), (3, 6), shift=(0, 2), mask_value=None)
    yield case("6x12 window 6 shift 3", (6, 12), (6, 6), shift=(3, 3))
    yield case("5x6 in a window of 6x6, shift 1, cosine", (5, 6), (6, 6), shift=(1, 1), cosine=True, sample=True)
    yield case("streaming, 5x13, cosine", (5, 13), (5, 13), cosine=True)
    padded_first = "streaming, 8x8 in a window of 8x9, shift 3, padded then rolled"
    yield case(padded_first, (8, 8), (8, 9), shift=(3, 3), wrap="padded")
    rolled_first = "streaming, 9x8 in a window of 9x9, shift 4, rolled then padded, cosine"
    yield case(rolled_first, (9, 8), (9, 9), shift=(4, 4), cosine=True, mask_value=None)


def _beyond(tensors, size, *, launcher: str, dims: Callable, strides: Callable | None = None):
    """Windows of 4 x 4 tokens, shifted by 2, on images that they do not divide. ``dims(size)``: (B, h, w, D)."""
    from vitkern.kernels.loop import tokens
    from vitkern.kernels.loop.problem import UNIT_ROWS, Problem, Rows, per_token

    batch, height, width, dim = dims(size)
    rows, cols = -(-height // 4), -(-width // 4)
    args = tokens.window_args((height, width), (4 * rows, 4 * cols), (rows, cols), (4, 4), (2, 2), False)
    padding, head_scale = tensors(lambda s: (3, 1, dim)), tensors(lambda s: (1,), torch.float32)
    places = dict(q_tokens=tokens.window, k_tokens=tokens.window, q_args=args, k_args=args)
    cosine = dict(head_scale=head_scale, norm=UNIT_ROWS)
    windows = Problem(batch * rows * cols, 1, 1, 16, 16, dim, 0.5, padding=padding, **cosine, **places)
    given = [tensors(dims, strides=strides) for _ in range(5)]
    made = [torch.empty(dims(size), dtype=STORED) for _ in range(3)]
    q, k, v, grad, out, *found = (Rows(x, dim, x.stride()[:3]) for x in given + made)
    lse, delta = (tensors(lambda s: (dims(s)[0], 1, *dims(s)[1:3]), torch.float32) for _ in range(2))
    out = found[0] if launcher.endswith("forward") else out
    start(launcher, windows, q, k, v, out=out, lse=per_token(lse), grad=grad, delta=delta, found=found)


def _expand(tensors, size, *, heads: Callable, strides: Callable | None = None):
    from vitkern.kernels.tile import relative_table

    relative_table.expand_table(tensors(lambda s: (9, heads(s)), strides=strides), (2, 2), 16, 64)


def _reduce(tensors, size):
    from vitkern.kernels.tile import relative_table

    relative_table.reduce_table(tensors(lambda s: (s, 16, 64), torch.float32), (2, 2))


def _offsets() -> list[OffsetCase]:
    cases = []
    for kernel, launcher in (SHORT | STREAMING).items():
        case = partial(scaled, kernel, function=_beyond, launcher=launcher)
        if launcher != "stream_bias":  # whose programs walk over all images
            offset = 2**26 if launcher == "stream_dkdv" else 2**27
            cases.append(case("images", small=3, offset=offset, dims=lambda s: (s, 1, 1, 16)))
        apart = partial(case, small=1024, offset=2**29)
        cases += [
            apart("image row stride", dims=lambda s: (1, 7, 5, 16), strides=stride(1, 1)),
            apart("image column stride", dims=lambda s: (1, 5, 7, 16), strides=stride(2, 1)),
        ]
    return [
        *cases,
        scaled("_expand_table", "heads", _expand, 3, 2**21, heads=lambda s: s),
        scaled("_expand_table", "entry stride", _expand, 16, 2**28, heads=lambda s: 3, strides=lambda s: (s, 1)),
        scaled("_expand_table", "head stride", _expand, 16, 2**30, heads=lambda s: 3, strides=lambda s: (1, s)),
        scaled("_reduce_table", "heads", _reduce, 3, 2**21),
    ]


def _attend(qkv, table, padding, logit_scale):
    options = dict(num_heads=2, window=(4, 3), shift=(1, 2), wrap="padded")
    return vitkern.window_attention(qkv, table=table, padding=padding, logit_scale=logit_scale, **options)


SPECIMEN = Specimen(
    name="window_attention",
    check=(
        problem("7x14 window 7", (7, 14), (7, 7)),
        problem("14x14 window 7 shift 3", (14, 14), (7, 7), shift=(3, 3)),
        problem("10x9 window 7 shift 3, rolled then padded", (10, 9), (7, 7), shift=(3, 3), wrap="image"),
        problem("10x9 window 7 shift 3, padded then rolled", (10, 9), (7, 7), shift=(3, 3), wrap="padded"),
        problem("12x8 window 6x4 shift 3x0, regions forbidden", (12, 8), (6, 4), shift=(3, 0), mask_value=None),
        problem("8x16 window 8 shift 4, cosine", (8, 16), (8, 8), shift=(0, 4), cosine=True),
    ),
    case=WindowCase,
    draw=draw,
    tiles=tiles,
    weight=5,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=LAUNCHES,
    judges=JUDGES,
    survivors=SURVIVORS,
    integration={
        "window_attention": Integration(
            _attend,
            lambda n: [(2, n, 3, 96), (35, 2), (96,), (2,)],
            products=4 * 2 * 8 * 3 * 12 * 32,
        )
    },
    faults=(
        problem("windows", (5, 6), (4, 4), shift=(1, 2)),
        problem("cosine", (5, 6), (4, 4), shift=(1, 2), cosine=True, wrap="padded"),
    ),
    bounded={
        "*.head_scale": "one element a head",
        "*.padding": "3 C elements",
        "*.scale_grad": "one element a program, and programs are counted in 31 bits",
        "_short_bwd.dscale": "one element a program, and programs are counted in 31 bits",
        "_reduce_table.dtable": "a table: one element for each head and offset within a window",
        "*.SCORE=regions": "takes no pointer",
        "*.SCORE=tile_and_regions": "is tile, then regions",
        "_short_*.SCORE=tile": "the short kernels take a table as their bias",
    },
    exceptions=EXCEPTIONS,
    turns={"_reduce_table": lambda a, programs: -(-a["WINDOW_H"] * a["WINDOW_W"] // a["BLOCK_M"])},
    modules={
        name: Module((2, 5, 6, 32), dict(dim=32, num_heads=2, window_size=4, shift_size=2))
        for name in ("WindowAttention", "WindowAttentionV2")
    },
)
