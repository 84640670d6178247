"""Multi-scale deformable attention, that of Deformable DETR."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

import vitkern
from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.addressing.offset_case import scaled
from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, Layer, compiled, leaf
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.fuzzing.edge import INF, NAN
from vitkern.lab.proving.integration import Integration, Module
from vitkern.lab.proving.problem import only
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._deformable_attention import NAMES, DeformableCase, draw, edges, problem, tiles


def _gradients() -> Iterator[GradientCase]:
    two = problem("two levels", 1, 3, 2, 2, ((2, 3), (1, 2)))
    yield GradientCase(problem("one level of 2 x 2", 1, 2, 1, 2, ((2, 2),), 2), full=True, sample=True)
    yield GradientCase(two, full=True)
    yield GradientCase(problem("17 queries", 2, 17, 1, 3, ((3, 4), (2, 2)), 3), seeds=2, ordered=True)
    yield GradientCase(problem("points in one cell", 1, 19, 1, 3, ((1, 4),), 2, around=0.0, near=True), ordered=True)
    yield from (GradientCase(only(two, name)) for name in NAMES)


def _beyond(tensors, size, *, launcher: str, dims: Callable, strides: Callable | None = None, shape=(1, 1)):
    """``dims(size)``: (B, Q, H, D), with four points for each query and a level of ``shape``."""
    from vitkern.kernels import deformable_attention as kernels

    batch, queries, heads, _ = dims(size)
    places = lambda s: (*dims(s)[:3], 1, 4)  # noqa: E731
    locations, weights = tensors(lambda s: (*places(s), 2)), tensors(places)
    pixels = lambda s: (dims(s)[0], shape[0] * shape[1], *dims(s)[2:])  # noqa: E731
    if launcher == "forward":
        value = tensors(pixels, strides=strides)
        kernels.deformable_attention_forward(value, locations, weights, shape)
        return
    rows = None if strides is None else lambda s: (*strides(s)[:2], 1)
    grad = tensors(lambda s: (*dims(s)[:2], dims(s)[2] * dims(s)[3]), strides=rows)
    if launcher == "points":
        value, found = tensors(pixels, strides=strides), [torch.empty_like(x) for x in (locations, weights)]
        kernels.run_of_points(grad, value, locations, weights, *found, shape)
        return
    points, cells = 4 * queries, 1 + (shape[0] + 1) * (shape[1] + 1)  # a point in each but the last
    groups = batch * heads
    order, starts = (torch.empty(groups * n + more, dtype=torch.int64) for n, more in ((points, 0), (cells, 1)))
    first = (len(order) + torch.arange(-min(4, groups), 0) * points)[:, None]  # of each of the last groups
    order[first[0] :] = torch.arange(int(first[0]), len(order))
    starts[-1] = len(order)
    starts[-1 - len(first) * cells : -1] = (first + torch.arange(cells).clamp(max=points)).flatten()
    kernels.run_of_values(grad, locations, weights, order, starts, torch.empty(pixels(size), dtype=grad.dtype), shape)


def _offsets() -> list[OffsetCase]:
    """Images beyond 2^31 in what launchers allocate; strides beyond it in what callers give."""
    cases = []
    for kernel, launcher in (("fwd", "forward"), ("bwd", "points"), ("bwd_value", "values")):
        case = partial(scaled, f"_deformable_{kernel}", function=_beyond, launcher=launcher)
        shape = (1, 3) if launcher == "values" else (1, 1)
        cases += [
            case("images of many points", small=3, offset=2**28, dims=lambda s: (s, 2, 1, 1), shape=shape),
            case("images of wide heads", small=3, offset=2**27, dims=lambda s: (s, 1, 1, 16)),
        ]
        for axis, what in enumerate(("image", "row")):
            steps = lambda s, axis=axis: tuple(s if i == axis else n for i, n in enumerate((256, 64, 16, 1)))  # noqa: E731
            options = dict(small=1024, offset=2**31, dims=lambda s: (2, 2, 2, 16), strides=steps, shape=(1, 3))
            cases.append(case(f"{what} stride", **options))
        if launcher != "values":  # heads of a gradient lie side by side
            options = dict(small=1025, offset=2**30, dims=lambda s: (2, 2, 3, 16), strides=lambda s: (256, 64, s, 1))
            cases.append(case("odd head stride", **options, shape=(1, 3)))
    return cases


DETR = ((100, 167), (50, 84), (25, 42), (13, 21))  # of an image of 800 x 1333, at strides 8, 16, 32 and 64


@dataclass(frozen=True)
class Deformable(Layer):
    """``queries``: as many as there are pixels with None, as in an encoder."""

    shapes: tuple[tuple[int, int], ...] = DETR
    queries: int | None = None
    heads: int = 8
    head_dim: int = 32
    points: int = 4
    op = "deformable_attention"

    @property
    def _pixels(self):
        return sum(height * width for height, width in self.shapes)

    def problem(self, batch):
        sizes = batch, self.queries or self._pixels, self.heads, self.head_dim
        return problem(self.layer, *sizes, self.shapes, self.points, around=0.02)

    def eager(self, options):
        """``ms_deform_attn_core_pytorch`` of Deformable DETR."""
        shapes = options["spatial_shapes"]

        def run(value, sampling_locations, attention_weights):
            batch, _, heads, dim = value.shape
            queries, levels, points = (attention_weights.shape[i] for i in (1, 3, 4))
            grids, samples = 2 * sampling_locations - 1, []
            for i, level in enumerate(value.split([height * width for height, width in shapes], 1)):
                image = level.flatten(2).transpose(1, 2).reshape(batch * heads, dim, *shapes[i])
                grid = grids[:, :, :, i].transpose(1, 2).flatten(0, 1)
                samples.append(F.grid_sample(image, grid, padding_mode="zeros", align_corners=False))
            weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
            out = (torch.stack(samples, -2).flatten(-2) * weights).sum(-1)
            return out.view(batch, heads * dim, queries).transpose(1, 2).contiguous()

        return run

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        shapes = [(-(-height // 8), -(-width // 8)) for height, width in self.shapes]  # kernels do not see how many
        pixels, width = sum(h * w for h, w in shapes), self.heads * self.head_dim
        value = leaf(batch, pixels, width + spare, dtype=dtype)[..., :width].unflatten(2, (self.heads, -1))
        points = (batch, self.queries or pixels, self.heads, len(shapes), self.points)
        locations, weights = leaf(*points, 2, dtype=dtype), leaf(*points, dtype=dtype)
        with torch.set_grad_enabled(trained):
            out = vitkern.deformable_attention(value, shapes, locations, weights)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        queries = self.queries or self._pixels
        width, points = self.heads * self.head_dim, queries * self.heads * len(self.shapes) * self.points
        moved = itemsize * (width * (queries + self._pixels) + 3 * points)
        return batch * moved * (2 if backward else 1), batch * 8 * points * self.head_dim * (3 if backward else 1)

    def __str__(self) -> str:
        which = f"{self.queries} queries" if self.queries else "encoder"
        return f"{self.layer} H{self.heads} D{self.head_dim} P{self.points} {which}, levels of {self.shapes}"


LAYERS = (
    Deformable("Deformable DETR encoder", batch=4, compiled="deformable-encoder", everywhere=True),
    Deformable("Deformable DETR decoder", DETR, 300, batch=4, quick=True),
    Deformable("Mask2Former pixel decoder", ((128, 128), (64, 64), (32, 32)), batch=4, compiled="deformable-3-levels"),
    Deformable("ViT-Adapter-B injector", ((64, 64), (32, 32), (16, 16)), 1024, heads=12, batch=16),
    Deformable("ViT-Adapter-B extractor", ((32, 32),), 5376, heads=12, batch=16, compiled="deformable-1-level"),
)
LAUNCHES = (
    *compiled(LAYERS),
    Launch("deformable-fp32", LAYERS[0], dict(dtype=torch.float32), everywhere=True),
    Launch("deformable-fp16", LAYERS[0], dict(dtype=torch.float16)),
    Launch("deformable-d64", Deformable("wide heads", DETR, 300, head_dim=64)),
    Launch("deformable-d256", Deformable("the widest heads", DETR, 300, head_dim=256)),
    Launch("deformable-odd", LAYERS[0], dict(spare=3)),
    Launch("deformable-one-point", Deformable("one point", ((32, 32),), 300, 1, 24, points=1)),
)
_TWO = problem("two levels", 2, 17, 2, 20, ((3, 5), (2, 2)), 3)
_ONE = problem("one level of a column, far points", 1, 9, 1, 16, ((9, 1),), 2, around=2.0)
_CELL = problem("points in one cell", 2, 17, 2, 8, ((1, 4), (2, 1)), 2, around=0.0, near=True)
_FAR = DeformableCase(  # points that are infinitely far, some with a weight that is no number, and points that are none
    queries=4, dim=4, shapes=((2, 3),), points=2,
    values={
        "sampling_locations": (((0, 0), "-inf"), ((0, 1), INF), ((0, 2, 0, 0, 0, 0), NAN), ((0, 3, 0, 0, 0, 1), NAN)),
        "attention_weights": (((0, (0, 2), 0, 0, 1), NAN),),
    },
).problem()  # fmt: skip
TRIALS = (
    *quick(SINGLE, _TWO, _ONE, _CELL, apart=1),
    *quick(SINGLE, _FAR, pool=None),
    *quick(SINGLE, problem("three levels, wide heads", 1, 3, 1, 40, ((1, 1), (4, 7), (2, 3)), 1), _TWO),
    *quick(SINGLE, problem("40 queries", 1, 40, 2, 32, ((5, 7), (3, 4))), arch=90),
    *quick(HALF, _TWO, _CELL),
    *quick(BRAIN, _TWO, _ONE),
)
FILES = ("deformable_attention", *(f"sampling/{name}" for name in ("bilinear", "points", "values")))
LEVELS = ((2, 3), (1, 2))

SPECIMEN = Specimen(
    name="deformable_attention",
    check=(
        problem("33 queries on two levels", 2, 33, 2, 32, ((6, 5), (3, 4)), 4),
        problem("one level, far points", 1, 20, 3, 17, ((7, 9),), 1, around=1.0),
        problem("points in one cell", 2, 40, 1, 64, ((4, 8), (2, 4), (1, 2)), 3, around=0.0, near=True),
    ),
    case=DeformableCase,
    draw=draw,
    tiles=tiles,
    weight=2,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=LAUNCHES,
    judges=dict.fromkeys(FILES, Checks(TRIALS)),
    integration={
        "deformable_attention": Integration(
            lambda value, locations, weights: vitkern.deformable_attention(value, LEVELS, locations, weights),
            lambda n: [(2, 8, 2, 4), (2, n, 2, 2, 1, 2), (2, n, 2, 2, 1)],
            products=0,
            batched=(0, 1, 2),
        )
    },
    faults=(problem("two levels", 1, 3, 2, 4, LEVELS),),
    exceptions={
        **dict.fromkeys(
            [("deformable-odd", "_deformable_fwd", arch) for arch in (90, 100)],
            Excuse("widest global load is 16 bits", "rows at odd strides start at any element: it is the widest"),
        ),
        ("deformable-fp32", "_deformable_fwd", 80): Excuse(
            "spills: ", "8 bytes, although 72 registers are in use: the compiler keeps to seven programs"
        ),
        ("deformable-fp32", "_deformable_bwd", 120): Excuse(
            "spills: ", "8 bytes, although 72 registers are in use: the compiler keeps to seven programs"
        ),
    },
    turns=dict.fromkeys(("_deformable_fwd", "_deformable_bwd"), lambda a, programs: a["LEVELS"] * a["POINTS"]),
    survivors={
        "bilinear.in_pixels:wrong-constant:6": Survivor(
            "1.0 -> 1.0009765625", "from one pixel outside on, every place is as good as another"
        ),
        "bilinear.pixel_before:wrong-constant:1": Survivor("2.0 -> 2.001953125", "it is made an integer, which is -2"),
        "points._deformable_bwd:drop-other:1": Survivor(
            "tl.load(weights + i, mask=mask, other=0.0) -> tl.load(weights + i, mask=mask)",
            "masked lanes are queries past the last, of which nothing is stored",
        ),
        "values._deformable_bwd_value:narrow-accumulator:1": Survivor(
            "tl.float32 -> tl.float16",
            "zero is exact in float16, and the sum is float32 from the first addition on; compiled, that is refused",
        ),
    },
    modules={
        "DeformableAttention": Module(
            (2, 8, 32),
            dict(d_model=32, n_levels=2, n_heads=4, n_points=3),
            more=(torch.linspace(0.0, 1.0, 32).view(1, 8, 2, 2), None, LEVELS),
        )
    },
)
