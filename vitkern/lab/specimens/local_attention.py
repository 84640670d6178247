"""Local attention: each token of an image sees those around it. Its views are the families of modules that call it."""

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
from vitkern.lab.proving.integration import Integration
from vitkern.lab.proving.problem import only
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._local import Near, Pattern, problem
from vitkern.lab.specimens._local_attention import LocalCase, draw, edges, tiles
from vitkern.lab.specimens._streaming import STREAMING, start


def _gradients() -> Iterator[GradientCase]:
    small = partial(problem, heads=1, dim=2)
    halo = small("4x6, block 2, halo 1", (4, 6), (2, 2), (1, 1), rel=True, table=True, lse=True)
    window = problem("3x3, windows of 2 that stick out", (3, 3), (2, 2), rel=True, padding=True, dim=2)
    around = small("4x3, 3x3 around each", (4, 3), (1, 1), (1, 1), "clamp", table=True)
    dilated = dict(dilation=(2, 2), table=True, lse=True)
    yield GradientCase(around, full=True, sample=True)
    far = small("7x9, 3x3 around each, dilation 2, log-sum-exp", (7, 9), (1, 1), (1, 1), "clamp", **dilated)
    yield GradientCase(far, seeds=2)
    yield GradientCase(small("5x6, 3x5 around each, zeros outside", (5, 6), (1, 1), (1, 2), rel=True), ordered=True)
    yield GradientCase(halo, seeds=2, ordered=True)
    yield GradientCase(small("2x4, block 2, halo 1", (2, 4), (2, 2), (1, 1), rel=True), sample=True)
    yield GradientCase(window, full=True)
    yield GradientCase(small("5x4, chunks of 2x3", (5, 4), (2, 3), (2, 3), "exclude", table=True))
    yield GradientCase(problem("5x4, cyclic chunks of 2x3", (5, 4), (2, 3), (2, 3), "wrap", table=True, dim=2))
    more = small("4x5, a chunk and one more", (4, 5), (2, 2), (2, 2), "wrap", neighbor=(0, 1))
    yield GradientCase(more, full=True)
    yield from (GradientCase(only(halo, name)) for name in ("table", "rel_h", "rel_w"))
    yield GradientCase(only(window, "padding"), sample=True)


def _beyond(tensors, size, *, launcher: str, dims: Callable, strides: Callable | None = None, block=2, halo=1):
    """One head. ``dims(size)``: (B, img_h, img_w, D)."""
    from vitkern.kernels import local_attention
    from vitkern.kernels.loop import locality, stream_axes
    from vitkern.kernels.loop.problem import Rows, per_token

    given = [tensors(dims, strides=strides) for _ in range(5)]
    made = [torch.empty(dims(size), dtype=STORED) for _ in range(3)]
    q, k, v, grad, out, *found = (Rows(x, 0, x.stride()[:3]) for x in given + made)
    table = tensors(lambda s: (1, 5, 5), torch.float32)
    steps = None if strides is None else lambda s: (*strides(s)[:3], 1, 1)
    rel = [tensors(lambda s: (*dims(s)[:3], 1, block + 2 * halo), strides=steps) for _ in range(2)]
    lse, delta, lse_grad = (tensors(lambda s: (dims(s)[0], 1, *dims(s)[1:3]), torch.float32) for _ in range(3))
    hooked = local_attention._table(table), local_attention._rel(*rel, False), None
    image = torch.empty(()).expand(*dims(size)[:3], 3 * dims(size)[3])
    kind = {"stream_dkdv": "keys", "stream_bias": "fixed"}.get(launcher, "queries")
    near = local_attention._problem(image, kind, *hooked, 1, (block, block), (halo, halo), "keep", (1, 1), (), 0.5)
    if launcher == "stream_axes":
        sums = [local_attention._logits_rows(torch.empty(x.shape, dtype=x.dtype)) for x in rel]
        of = near, q, k, v, grad, per_token(lse), delta
        hooks = locality.first_seen, locality.in_region
        stream_axes.stream_axes_gradient(*of, *sums, *hooks, (block + 2 * halo,) * 2)
        return
    out = found[0] if launcher == "stream_forward" else out
    tensors = dict(out=out, lse=per_token(lse), grad=grad, delta=delta, found=found, lse_grad=lse_grad)
    start(launcher, near, q, k, v, **tensors)


def _offsets() -> list[OffsetCase]:
    """Images beyond 2^31 tokens, and rows and columns beyond it in what callers give."""

    def apart(axis):
        return lambda s: tuple(s if i == axis else 1 for i in range(4))

    cases = []
    for kernel, launcher in (STREAMING | {"_stream_bwd_axes": "stream_axes"}).items():
        case = partial(scaled, kernel, function=_beyond, launcher=launcher)
        if launcher != "stream_bias":  # whose programs walk over all images
            cases.append(case("images, near", small=3, offset=2**27, dims=lambda s: (s, 4, 4, 1), block=1, halo=0))
        far = partial(case, small=1024, offset=2**29)
        cases += [
            far("image row stride, near", dims=lambda s: (1, 7, 5, 16), strides=apart(1)),
            far("image column stride, near", dims=lambda s: (1, 5, 7, 16), strides=apart(2)),
        ]
    return cases


def _kept(launch: str, name: str, *sizes: int, **pattern) -> Near:
    """A layer that is compiled and not timed: the families have the models."""
    return Near(name, *sizes, Pattern(**pattern), compiled=launch, timed=False)


LAYERS = (
    _kept("local-twins", "Twins-SVT-S stage 1", 56, 64, 2, block=7),
    _kept("local-davit-padded", "DaViT-T at 240 stage 1", 60, 96, 3, block=7, padding=True),
    _kept("local-nat-without-table", "NAT-T stage 1", 56, 64, 2, halo=3, border="clamp"),
)
_NAT = Near("NAT-T stage 1", 56, 64, 2, Pattern(halo=3, border="clamp", table=True))
_WIDE = Near("stand-alone attention, heads of 80", 28, 160, 2, Pattern(halo=1, rel=True))
LAUNCHES = (
    *compiled(LAYERS),
    Launch("local-fp32", _NAT, dict(dtype=torch.float32), everywhere=True),
    Launch("local-fp32-d80", _WIDE, dict(dtype=torch.float32), everywhere=True),
    Launch("local-fp16", _NAT, dict(dtype=torch.float16)),
    Launch("local-batch-1", _NAT, dict(batch=1)),
    Launch("local-odd-strides", _NAT, dict(spare=3)),
)

_AROUND = problem("around each, dilated", (7, 11), (1, 1), (1, 1), "clamp", dilation=(1, 2), table=True, lse=True)
_BLOCKS = problem("blocks and a halo", (4, 6), (2, 3), (1, 1), rel=True, table=True, batch=2, dim=24)
_OUT = problem("windows that stick out", (5, 6), (4, 4), rel=True, padding=True)
TRIALS = (
    *quick(SINGLE, _AROUND, _BLOCKS, _OUT, apart=1),
    *quick(
        SINGLE,
        problem("cyclic", (5, 4), (2, 3), (2, 3), "wrap", table=True, heads=1, lse=True),
        problem("chunks", (5, 8), (2, 3), (2, 3), "exclude", table=True, heads=1),
        problem("one of the chunks around", (6, 9), (3, 3), (3, 3), "exclude", neighbor=(-1, 1), heads=1),
        problem("around each, zeros outside", (5, 6), (1, 1), (1, 2), rel=True, heads=1),
        problem("around each, far", (9, 6), (1, 1), (4, 2), "clamp", table=True, heads=1),
        problem("grid", (4, 6), (2, 3), dilation=(2, 2), table=True),
    ),
    *quick(SINGLE, problem("three chunks", (9, 3), (3, 3), (3, 3), "wrap", heads=1, dim=8), pool=None),
    *quick(BRAIN, _AROUND, _BLOCKS),
    *quick(HALF, _BLOCKS, _OUT),
    *quick(HALF, problem("blocks of a GPU", (9, 9), (1, 1), (1, 1), "clamp", table=True, heads=1), arch=90),
)


def _attend(qkv, table, rel_h, rel_w):
    options = dict(num_heads=1, block=(4, 2), halo=(1, 0))
    return vitkern.local_attention(qkv, table=table, rel_h=rel_h, rel_w=rel_w, **options)


_FEW_BYTES = Excuse("spills: ", "few bytes, outside the products: coordinates of a query and of a key at each score")
# launch, kernel, architecture, minors of Triton
_SPILLING = (
    ("local-fp32", "_stream_fwd", 80, ()),
    ("local-fp32", "_stream_bwd_dq", 80, ()),
    ("local-sam-global", "_stream_bwd_dkdv", 120, ()),
    ("local-vil", "_stream_bwd_dkdv", 100, ()),
    ("local-vil", "_stream_bwd_dkdv", 120, ()),
    ("local-vil", "_stream_bwd_dkdv", 90, ("3.9",)),
    ("local-vil-neighbour", "_stream_bwd_dkdv", 90, ("3.9",)),
    ("local-vil", "_stream_bwd_dq", 90, ("3.6",)),
    ("local-vitdet-h", "_stream_bwd_dq", 90, ("3.6",)),
)
_TABLE = "a table: one element for each head and offset of a neighbour"
SPECIMEN = Specimen(
    name="local_attention",
    check=(
        problem(
            "6x7, blocks of 2x3, halo 1x2, a table and rows and columns", (6, 7), (2, 3), (1, 2), rel=True, table=True
        ),
    ),
    case=LocalCase,
    draw=draw,
    tiles=tiles,
    weight=5,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=LAUNCHES,
    judges=dict.fromkeys(
        ("local_attention", "loop/locality", "loop/stream_axes"), Checks(TRIALS, (), ("test_local_attention.py",))
    ),
    integration={
        "local_attention": Integration(
            _attend,
            lambda n: [(2, n, 2, 48), (1, 9, 3), (2, n, 2, 1, 6), (2, n, 2, 1, 2)],
            products=4 * 2 * 8 * 2 * 12 * 16,
            batched=(0, 2, 3),
        )
    },
    faults=(
        problem("around", (4, 3), (1, 1), (1, 1), "clamp", table=True, lse=True, heads=1),
        problem("halo", (2, 4), (2, 2), (1, 1), rel=True, heads=1),
        problem("out", (2, 3), (2, 2), padding=True, heads=1),
    ),
    bounded={
        "_short_*.SCORE=near": "local attention streams",
        "_stream_bwd_axes.SCORE=t*": "only local attention has rows and columns",
        "_stream_bwd_axes.near[[]1][[]0]": _TABLE,
        "_stream_*.near[[]1][[]0]": _TABLE,
    },
    exceptions={
        ("local-odd-strides", "_stream_fwd", 90): Excuse(
            "widest global load is 32 bits",
            "rows at odd strides start at any element; the widest load is that of the table",
        ),
        **{(name, kernel, arch): _FEW_BYTES._replace(tritons=tritons) for name, kernel, arch, tritons in _SPILLING},
        ("local-sasa", "_stream_fwd", 100): Excuse(
            "spills: ", "56 bytes, at the limit of 255 registers: logits of rows and columns beside two tiles of scores"
        ),
        ("local-halonet-fp32", "_stream_bwd_dkdv", 90): Excuse(
            "spills: ",
            "24 bytes: full float32 has no tensor cores, and the compiler keeps to two programs on a multiprocessor",
            tritons=("3.6",),
        ),
    },
    survivors={
        "locality.near:drop-float32:1": Survivor(
            "tl.load(y_where, mask=seen, other=0.0).to(tl.float32) -> tl.load(y_where, mask=seen, other=0.0)",
            "what is added next is float32, and widens the half-precision number just so",
        ),
        "stream_axes._store_sums:drop-int64:1": Survivor(
            "head.to(tl.int64) -> head",
            "the launcher allocates what is stored, contiguous, so a head's offset is its number times the few entries "
            "of an axis",
        ),
        "stream_axes._stream_bwd_axes:wrong-constant:1": Survivor(
            "0.0 -> 1.0",
            "only where there is no query, whose weights are 0 and whose sums are not stored",
        ),
        "stream_axes.stream_axes_gradient:other-strides:3": Survivor(
            "v -> q",
            "q, k and v are slices of one tensor and have their strides in common",
        ),
    },
)
