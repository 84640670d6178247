"""Separable attention, that of MobileViT v2 and v3."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

import vitkern
from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.addressing.offset_case import scaled
from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, Layer, compiled, leaf
from vitkern.lab.compiling.matrix import ARCHITECTURES
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.proving.integration import Integration, Module
from vitkern.lab.proving.problem import only
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._separable_attention import SeparableCase, draw, edges, problem, tiles


def _gradients() -> Iterator[GradientCase]:
    two = problem("2 channels, two images", 1, 2, (1, 2), (2, 1), keys=(1, 3))
    yield GradientCase(problem("2 channels of 2 x 6", 1, 2, (1, 3)), full=True, sample=True)
    yield GradientCase(two, full=True, sample=True)
    yield GradientCase(problem("17 channels of 2 x 10", 1, 17, (1, 5)), seeds=2, ordered=True)
    yield GradientCase(problem("3 channels, unfolded", 2, 3, (1, 37), (4, 1)), seeds=2, ordered=True)
    yield GradientCase(problem("3 channels, last, patches of 1 x 9", 1, 3, (2, 2), (1, 9), last=True))
    yield from (GradientCase(only(two, name)) for name in ("qkv", "value"))


def _beyond(tensors, size, *, backward: bool, dims: Callable, strides: Callable | None = None):
    """``dims(size)``: (B, 1 + C, H, W), scores and keys, in patches of 1 x 2."""
    from vitkern.kernels import separable_attention as kernels

    qk, v, out = (tensors(dims, strides=strides) for _ in range(3))
    context = tensors(lambda s: (dims(s)[0], 1, 2, dims(s)[1] - 1), torch.float32)
    if not backward:
        kernels.run_forward(qk[:, :1], qk[:, 1:], v[:, 1:], out[:, 1:], context)
        return
    dqk, dv = (tensors(dims, strides=strides) for _ in range(2))
    kernels.run_backward(qk[:, :1], qk[:, 1:], v[:, 1:], out[:, 1:], context, dqk[:, :1], dqk[:, 1:], dv[:, 1:])


def _offsets() -> list[OffsetCase]:
    """Images beyond 2^31 in what launchers allocate; strides beyond it in what callers give."""
    cases = []
    for kernel, backward in (("_separable_fwd", False), ("_separable_bwd", True)):
        case = partial(scaled, kernel, function=_beyond, backward=backward)
        cases += [case("images", small=3, offset=2**29, dims=lambda s: (s, 5, 1, 2))]
        for axis, what in enumerate(("image", "channel", "row", "column")):
            extents = (1 + 2 * (axis == 0), 4, 3, 6)
            steps = lambda s, axis=axis: tuple(s if i == axis else n for i, n in enumerate((76, 19, 6, 1)))  # noqa: E731
            dims = lambda s, extents=extents: extents  # noqa: E731
            cases.append(case(f"{what} stride", small=1025, offset=2**30, dims=dims, strides=steps))
    return cases


@dataclass(frozen=True)
class Separable(Layer):
    """C channels of an image of ``side`` x ``side`` pixels in patches. ``last``: channels lie side by side.
    ``unfolded``: (B, C, P, N), as timm calls it. ``cross``: values are those of another image."""

    channels: int
    side: int
    last: bool = False
    unfolded: bool = False
    cross: bool = False
    patch: tuple[int, int] = (2, 2)
    op = "separable_attention"

    @property
    def _patches(self):
        return (
            ((1, self.side**2 // 4), (4, 1))
            if self.unfolded
            else (tuple(self.side // n for n in self.patch), self.patch)
        )

    def problem(self, batch):
        patches, patch = self._patches
        keys = patches if self.cross else None
        return problem(self.layer, batch, self.channels, patches, patch, keys=keys, last=self.last)

    def eager(self, options):
        from vitkern.reference.separable_attention import folded, unfolded

        def run(qkv, value=None):
            patch, (height, width) = options["patch_size"], qkv.shape[2:]
            q, k, *v = unfolded(qkv, patch).split((1, *(self.channels,) * (2 if value is None else 1)), 1)
            v = v[0] if value is None else unfolded(value, patch)
            return folded(v.relu() * (q.softmax(-1) * k).sum(-1, keepdim=True), patch, height, width)

        return run

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        (rows, columns), patch = self._patches
        height, width = rows * patch[0], columns * patch[1]

        def image(channels):
            if self.last:
                return leaf(batch, height, width, channels + spare, dtype=dtype)[..., :channels].permute(0, 3, 1, 2)
            return leaf(batch, channels, height, width + spare, dtype=dtype)[..., :width]

        images = [image(1 + self.channels), image(self.channels)] if self.cross else [image(1 + 2 * self.channels)]
        with torch.set_grad_enabled(trained):
            out = vitkern.separable_attention(*images, patch_size=patch)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        pixels = batch * self.side**2
        return itemsize * pixels * (2 + (5 if backward else 3) * self.channels), (
            10 if backward else 6
        ) * pixels * self.channels

    def __str__(self) -> str:
        how = ", channels last" * self.last + ", unfolded" * self.unfolded + ", cross" * self.cross
        return f"{self.layer} C{self.channels} {self.side} x {self.side}{how}"


LAYERS = (
    Separable("MobileViTv2-1.0 stage 3", 128, 32, quick=True, compiled="separable-128", everywhere=True),
    Separable("MobileViTv2-1.0 stage 3", 128, 32, last=True, compiled="separable-128-last", everywhere=True),
    Separable("MobileViTv2-1.0 stage 3", 128, 32, unfolded=True, compiled="separable-128-unfolded"),
    Separable("MobileViTv2-1.0 stage 4", 192, 16),
    Separable("MobileViTv2-1.0 stage 5", 256, 8, compiled="separable-256"),
    Separable("MobileViTv2-2.0 at 384, stage 3", 256, 48, last=True),
    Separable("MobileViTv3-0.5 stage 3", 64, 32),
    Separable("cross attention", 128, 32, cross=True, timed=False, compiled="separable-cross"),
)
_BASE, _LAST = LAYERS[:2]
LAUNCHES = (
    *compiled(LAYERS),
    Launch("separable-128-fp32", _BASE, dict(dtype=torch.float32)),
    Launch("separable-128-last-fp32", _LAST, dict(dtype=torch.float32)),
    Launch("separable-128-fp16", _BASE, dict(dtype=torch.float16)),
    Launch("separable-wide-patches", Separable("patches of 4 x 9", 64, 36, patch=(4, 9), timed=False)),
    Launch("separable-odd-strides", _BASE, dict(spare=3)),
)

_NARROW_IN = [(f"separable-{which}", arch) for which in ("wide-patches", "odd-strides") for arch in (90, 942)]
_NARROW_IN += [("separable-128-last", arch) for arch in ARCHITECTURES]
_NARROW = Excuse(
    "widest global load is 16 bits",
    "rows at odd strides, and pixels of 1 + 2 C channels side by side, start at any element: that is the widest load",
)
_ROWS = problem("19 channels of 6 x 14", 2, 19, (3, 7))
_FLAT = problem("19 channels, unfolded", 2, 19, (1, 37), (3, 1))
_TWO = problem("two images, wide patches", 2, 5, (2, 3), (1, 9), keys=(3, 5), last=True)
_NARROW_PATCHES = problem("patches of 1 x 3, steep", 1, 3, (3, 2), (1, 3), steep=100.0)
TRIALS = (
    *quick(SINGLE, _ROWS, _TWO, _FLAT, apart=1),
    *quick(SINGLE, problem("one channel", 1, 1, (2, 9), last=True), _TWO, _NARROW_PATCHES),
    *quick(SINGLE, problem("70 channels", 1, 70, (2, 20)), arch=90),
    *quick(SINGLE, problem("70 channels, last", 1, 70, (3, 5), last=True), arch=90),
    *quick(BRAIN, _ROWS, _TWO),
    *quick(HALF, _FLAT, _TWO, problem("rows of 40", 1, 2, (1, 20))),
)

SPECIMEN = Specimen(
    name="separable_attention",
    check=(
        problem("19 channels of 6 x 14", 2, 19, (3, 7)),
        problem("20 channels of 8 x 8, last", 2, 20, (4, 4), last=True),
        problem("17 channels, unfolded, keys of another image", 2, 17, (1, 20), (3, 1), keys=(1, 15)),
        problem("8 channels, patches of 3 x 9", 1, 8, (2, 3), (3, 9)),
    ),
    case=SeparableCase,
    draw=draw,
    tiles=tiles,
    weight=2,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=LAUNCHES,
    judges=dict.fromkeys(("separable_attention", "machine/patches"), Checks(TRIALS)),
    integration={
        "separable_attention": Integration(
            lambda qkv, value: vitkern.separable_attention(qkv, value, patch_size=(2, 1)),
            lambda n: [(2, 9, 2, n + 1), (2, 8, 2, n)],
            products=0,
            batched=(0, 1),
        )
    },
    exceptions={(name, "_separable_fwd", arch): _NARROW for name, arch in _NARROW_IN},
    faults=(problem("image", 2, 5, (2, 3)), problem("two images", 2, 5, (2, 3), keys=(1, 4))),
    modules={"SeparableSelfAttention": Module((2, 8, 4, 5), dict(embed_dim=8))},
)
