"""Gated positional self-attention, that of ConViT."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

import vitkern
from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.addressing.offset_case import scaled
from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, Layer, compiled, leaf
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.proving.integration import Integration, Module
from vitkern.lab.proving.problem import only
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._gated_positional_attention import NAMES, GatedCase, draw, edges, problem, tiles


def _gradients() -> Iterator[GradientCase]:
    small = problem("2 x 3", 1, (2, 3), 1, 2)
    yield GradientCase(small, full=True, sample=True)
    yield GradientCase(problem("two images, two heads, scale 0.7", 2, (1, 3), 2, 2, scale=0.7), full=True)
    yield GradientCase(problem("3 x 17", 1, (3, 17), 1, 3, local=0.02), seeds=2, sample=True)
    yield GradientCase(problem("18 x 2 of 17 channels", 2, (18, 2), 1, 17, local=0.02), seeds=2, ordered=True)
    yield GradientCase(problem("17 x 18", 1, (17, 18), 1, 2, local=0.02))
    yield from (GradientCase(only(small, name)) for name in NAMES)


def _beyond(tensors, size, *, backward: bool, dims: Callable, strides: Callable | None = None, grid=None):
    """``dims(size)``: (B, N, H, D); the grid is a column, unless given."""
    from vitkern.kernels.positions import mix

    content, v = (tensors(dims, strides=strides) for _ in range(2))
    weights = tensors(lambda s: (dims(s)[2], 3), torch.float32)
    gate = tensors(lambda s: (dims(s)[2],), torch.float32)
    grid = grid or (dims(size)[1], 1)
    if backward:
        grad, dv = (tensors(dims, strides=strides) for _ in range(2))
        mix.mix_positions_backward(grad, content, v, dv, weights, gate, grid)
    else:
        mix.mix_positions(content, v, tensors(dims, strides=strides), weights, gate, grid)


def _offsets() -> list[OffsetCase]:
    """Images and heads so many that tensors end beyond 2^31; strides beyond it in what callers give."""
    cases = []
    for kernel, backward in (("_gated_mix_fwd", False), ("_gated_mix_bwd", True)):
        case = partial(scaled, kernel, function=_beyond, backward=backward)
        cases += [
            case("images", small=3, offset=2**23, dims=lambda s: (s, 18, 1, 16)),
            case("heads", small=3, offset=2**24, dims=lambda s: (1, 9, s, 16)),
        ]
        if backward:
            cases.append(case("images of one channel", small=3, offset=2**29, dims=lambda s: (s, 1, 1, 1)))
        for axis, what, extents in ((0, "image", (3, 5, 1)), (1, "token", (1, 18, 1)), (2, "head", (1, 5, 3))):
            steps = lambda s, axis=axis: tuple(s if i == axis else n for i, n in enumerate((384, 64, 16, 1)))  # noqa: E731
            dims = lambda s, extents=extents: (*extents, 16)  # noqa: E731
            offset = 2**28 if axis == 1 else 2**30
            cases.append(case(f"{what} stride", small=1536, offset=offset, dims=dims, strides=steps))
        odd = lambda s: (384, 64, s, 1)  # noqa: E731 other strides are counted in units of 16 bytes
        cases.append(case("odd head stride", small=1537, offset=2**30, dims=lambda s: (1, 5, 3, 16), strides=odd))
    return cases


@dataclass(frozen=True)
class Gated(Layer):
    """A grid of ``side`` x ``side`` tokens, or of ``side`` x ``across``; C = heads * head_dim."""

    side: int
    heads: int
    head_dim: int
    across: int = 0
    op = "gated_positional_attention"

    @property
    def grid(self) -> tuple[int, int]:
        return self.side, self.across or self.side

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def scores(self) -> int:
        return self.heads * self.tokens**2

    def problem(self, batch):
        return problem(self.layer, batch, self.grid, self.heads, self.head_dim)

    def eager(self, options):
        """timm's, in its order, the distances made once."""
        from vitkern.reference.gated_positional_attention import relative_positions

        relative = []

        def run(qk, v, position_weights, gate):
            if not relative:
                relative.append(relative_positions(options["grid"], v.device).permute(1, 2, 0).to(v.dtype)[None])
            q, k = qk.permute(2, 0, 3, 1, 4)  # (B, H, N, D)
            places = relative[0].expand(v.shape[0], -1, -1, -1) @ position_weights.to(v.dtype).t()
            of_content = ((q @ k.transpose(-2, -1)) * v.shape[-1] ** -0.5).softmax(-1)
            of_places = places.permute(0, 3, 1, 2).softmax(-1)
            g = gate.to(v.dtype).view(1, -1, 1, 1).sigmoid()
            weights = (1.0 - g) * of_content + g * of_places
            weights = weights / weights.sum(-1).unsqueeze(-1)
            return (weights @ v.transpose(1, 2)).transpose(1, 2).contiguous()

        return run

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        width, shape = self.heads * self.head_dim, (self.heads, self.head_dim)
        qk = leaf(batch, self.tokens, 2 * width + spare, dtype=dtype)[..., : 2 * width].unflatten(-1, (2, *shape))
        v = leaf(batch, self.tokens, width + spare, dtype=dtype)[..., :width].unflatten(-1, shape)
        weights, gate = leaf(self.heads, 3, dtype=torch.float32), leaf(self.heads, dtype=torch.float32)
        with torch.set_grad_enabled(trained):
            out = vitkern.gated_positional_attention(qk, v, weights, gate, self.grid)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        unit = batch * self.tokens * self.heads * self.head_dim
        flops = (10 if backward else 4) * self.tokens + (4 if backward else 2) * sum(self.grid)
        return itemsize * unit * (7 if backward else 4), unit * flops

    def __str__(self) -> str:
        return f"{self.layer} {self.grid[0]} x {self.grid[1]} H{self.heads} D{self.head_dim}"


LAYERS = (
    Gated("ConViT-Ti", 14, 4, 48),
    Gated("ConViT-S", 14, 9, 48, quick=True, compiled="gated-convit-s", everywhere=True),
    Gated("ConViT-B", 14, 16, 48),
    Gated("ConViT-B at 384", 24, 16, 48, batch=16, compiled="gated-convit-b-384"),
    Gated("ConViT-B at 512", 32, 16, 48, batch=8),
    Gated("heads of 64", 14, 16, 64, timed=False, compiled="gated-d64"),
)


def _launches() -> Iterator[Launch]:
    """Both elements, and heads of several widths."""
    yield from compiled(LAYERS)
    small = LAYERS[1]
    yield Launch("gated-fp32-d48", Gated("tiles", 14, 4, 48), dict(dtype=torch.float32), everywhere=True)
    for dim in (32, 80, 128):
        yield Launch(f"gated-d{dim}", Gated("tiles", 14, 4, dim))
    yield Launch("gated-fp16", small, dict(dtype=torch.float16))
    yield Launch("gated-odd", small, dict(spare=3))
    yield Launch("gated-oblong", Gated("oblong", 7, 8, 32, across=40))


_SMALL, _TWO = problem("5 x 7", 2, (5, 7), 3, 12), problem("18 x 20", 1, (18, 20), 2, 20, local=0.02)
_FLAT, _WIDE = problem("1 x 33", 1, (1, 33), 1, 8, local=0.01), problem("3 x 10 of 40", 1, (3, 10), 2, 40)
_GATED = problem("gated", 1, (4, 4), 2, 16, gated=5.0)
_RIM, _FAR = (
    problem("at the rim", 1, (5, 7), 2, 12, local=-30.0),
    problem("far", 1, (9, 9), 4, 12, local=20.0, reach=15.0),
)
TRIALS = (
    *quick(SINGLE, _SMALL, _TWO, _FLAT, apart=1),
    *quick(SINGLE, problem("20 x 3, scale 0.4", 1, (20, 3), 2, 17, scale=0.4), _WIDE, _GATED),
    *quick(SINGLE, _RIM, pool=None),
    *quick(HALF, _FAR, pool=None),
    *quick(BRAIN, _SMALL, _TWO, _WIDE),
    *quick(HALF, _SMALL, _FLAT),
    *quick(HALF, _WIDE, arch=90),
    *quick(SINGLE, _WIDE, arch=90),
)

FILES = ("gated_positional_attention", *(f"positions/{name}" for name in ("axis", "block", "mix")))

SPECIMEN = Specimen(
    name="gated_positional_attention",
    check=(
        problem("14 x 14", 1, (14, 14), 2, 48),
        problem("5 x 20, gated, scale 0.3", 2, (5, 20), 2, 20, gated=2.0, scale=0.3),
        problem("3 x 3 of 80 channels", 1, (3, 3), 1, 80),
    ),
    case=GatedCase,
    draw=draw,
    tiles=tiles,
    weight=2,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=tuple(_launches()),
    judges=dict.fromkeys(FILES, Checks(TRIALS)),
    integration={
        "gated_positional_attention": Integration(
            lambda qk, v, weights, gate: vitkern.gated_positional_attention(qk, v, weights, gate, (v.shape[1] // 2, 2)),
            lambda n: [(2, 2 * n, 2, 2, 16), (2, 2 * n, 2, 16), (2, 3), (2,)],
            products=2 * 10 * 2 * 16 * (4 * 10 + 2 * 7),
            batched=(0, 1),
        )
    },
    faults=(problem("one block", 2, (2, 3), 2, 12), problem("two blocks", 1, (2, 17), 2, 12)),
    bounded={
        "_gated_mix_*.positions": "three elements a head",
        "_gated_mix_*.gate": "one element a head",
    },
    exceptions={
        ("gated-odd", "_stream_fwd", 120): Excuse(
            "widest global load is 16 bits", "rows at odd strides start at any element, so that is the widest load"
        ),
        ("gated-odd", "_stream_fwd", 90): Excuse(
            "widest global load is 16 bits",
            "rows at odd strides start at any element, so that is the widest load",
            ("3.6",),
        ),
        ("gated-odd", "_stream_bwd_dkdv", 120): Excuse(
            "spills: ", "rows at odd strides are loaded by the element, and each address takes registers"
        ),
    },
    survivors={
        "axis.axis_of:drop-float32:1": Survivor(
            "tl.load(positions + head * 3 + WHICH).to(tl.float32) -> tl.load(positions + head * 3 + WHICH)",
            "a factor in half precision moves weights by less than operands of products are rounded, unless it is huge",
            equivalent=False,
        ),
        "block.block_of:shift-index:1": Survivor(
            "tl.program_id(0) -> (tl.program_id(0) + 1)",
            "which program of a head takes which channels is of no account",
        ),
        "mix._gated_mix_bwd:drop-other:5": Survivor(
            "tl.load(dv + at, mask=here, other=0.0) -> tl.load(dv + at, mask=here)",
            "where nothing is loaded nothing is stored",
        ),
    },
    modules={"GatedPositionalAttention": Module((2, 9, 32), dict(dim=32, num_heads=4))},
)
