"""Separable attention: its problems, random cases and named edge cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.proving.sizes import Sizes

CHANNELS = (1, 2, 3, 8, 15, 16, 17, 33, 48)
PATCHES = ((2, 2), (2, 2), (1, 1), (4, 1), (2, 1), (1, 2), (3, 2), (1, 5), (1, 9))


def problem(
    name: str, batch: int, channels: int, patches: tuple[int, int], patch: tuple[int, int] = (2, 2),
    *, keys: tuple[int, int] | None = None, last: bool = False, steep: float = 1.0,
) -> Problem:  # fmt: skip
    """``patches``: in a column and in a row of the image. ``keys``: of another image, which scores and keys are of.
    ``last``: channels lie side by side. ``steep``: what scores are multiplied by."""

    def image(generator, channels, patches):
        values = normal(generator, batch, channels, *(n * side for n, side in zip(patches, patch, strict=True)))
        return values.contiguous(memory_format=torch.channels_last) if last else values

    def inputs(generator):
        both = keys is None
        qkv = image(generator, 1 + channels * (1 + both), patches if both else keys)
        qkv[:, :1] *= steep
        return dict(qkv=qkv) if both else dict(qkv=qkv, value=image(generator, channels, patches))

    names = ("qkv",) if keys is None else ("qkv", "value")
    return Problem("separable_attention", name, inputs, names, dict(patch_size=patch), sizes=_sizes)


def _sizes(operands: dict, options: dict, grad: Tensor | None) -> Sizes:
    """Of a score's gradient, weight * sum over channels of dcontext * (key - context)."""
    from vitkern.reference.separable_attention import unfolded

    if grad is None:
        return Sizes(0.0, {})
    qkv, value, patch = operands["qkv"].double(), operands.get("value"), options["patch_size"]
    q, others = unfolded(qkv[:, :1], patch), unfolded(qkv[:, 1:], patch)
    k, v = others.chunk(2, 1) if value is None else (others, unfolded(value.double(), patch))
    slope = (unfolded(grad.double(), patch) * v.relu()).sum(-1, keepdim=True)
    size = (q.softmax(-1) * (slope * k).norm(dim=1, keepdim=True)).nan_to_num(0.0, 0.0, 0.0)
    return Sizes(0.0, {"dqkv": size.max().item() if size.numel() else 0.0})


@dataclass(frozen=True, kw_only=True)
class SeparableCase(Case):
    """See `problem`."""

    batch: int = 1
    channels: int = 1
    patches: tuple[int, int] = (1, 1)
    patch: tuple[int, int] = (1, 1)
    keys: tuple[int, int] | None = None
    last: bool = False
    steep: float = 1.0

    def base(self) -> Problem:
        keys = None if self.keys is None else tuple(self.keys)
        sizes = (self.batch, self.channels, tuple(self.patches), tuple(self.patch))
        return problem("case", *sizes, keys=keys, last=self.last, steep=self.steep)

    def arrange(self, name, tensor):
        if self.last and name not in self.layouts and not name.startswith("grad"):
            return tensor  # as the problem has it
        return super().arrange(name, tensor)


def draw(rng: Random) -> SeparableCase:
    keys = None if chance(rng, 0.7) else (rng.randint(1, 4), rng.randint(1, 9))
    names = ("qkv",) if keys is None else ("qkv", "value")
    drawn = common(rng, names, arch_share=0.3)
    thawed(drawn, names)
    patches, patch = (rng.choice((1, 1, 2, 3, 5)), rng.choice((1, 2, 3, 7, 17, 40))), rng.choice(PATCHES)
    batch, channels = rng.choice((1, 2, 3)), rng.choice(CHANNELS)
    if chance(rng, SPECIAL):
        drawn["values"] = {"qkv": (((rng.randrange(batch), rng.randrange(2), 0, 0), NAN),)}
    last, steep = chance(rng, 0.4), rng.choice((1.0, 1.0, 10.0, 100.0))
    return SeparableCase(
        **drawn, batch=batch, channels=channels, patches=patches, patch=patch, keys=keys, last=last, steep=steep
    )  # fmt: skip


def tiles(case: SeparableCase) -> int:
    shared = case.batch * case.patch[0] * -(-case.channels // 16)
    turns = sum(-(-n * across * case.patch[1] // 16) for n, across in (case.patches, case.keys or case.patches))
    return shared * turns * (3 if case.backward else 1) // 4


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        usual = dict(batch=2, channels=9, patches=(2, 5), patch=(2, 2))
        return Edge(f"separable: {name}", SeparableCase(**usual | fields), expected)

    yield edge("no images", batch=0)
    yield edge("no rows", patches=(0, 5))
    yield edge("no columns", patches=(2, 0))
    yield edge("no keys", *zero("out", "dvalue"), keys=(0, 4))
    yield edge("no values", *zero("dqkv"), patches=(2, 0), keys=(2, 3))
    yield edge("neither keys nor values", patches=(0, 3), keys=(3, 0))
    yield edge("one patch", *zero("dqkv", at=((0, 2), 0)), patches=(1, 1))
    yield edge("one pixel", *zero("dqkv", at=((0, 2), 0)), patches=(1, 1), patch=(1, 1))
    yield edge("one key", keys=(1, 1))
    yield edge("one value", patches=(1, 1), keys=(3, 5))
    yield edge("patches of one pixel", patch=(1, 1))
    yield edge("unfolded", patches=(1, 23), patch=(4, 1))
    yield edge("unfolded, of two images", patches=(1, 20), patch=(4, 1), keys=(1, 15))
    yield edge("a patch is the image", *zero("dqkv", at=((0, 2), 0)), patches=(1, 1), patch=(3, 5))
    for width in (7, 8, 9, 17):
        yield edge(f"patches of {width} columns", patch=(1, width))
    for channels in (1, 15, 16, 17, 33):
        yield edge(f"{channels} channels", channels=channels)
        yield edge(f"{channels} channels, last", channels=channels, last=True)
    for across in (7, 8, 9, 33):
        yield edge(f"{across} patches", patches=(1, across), dtype="fp16")
    yield edge("NaN in a score", values={"qkv": (((0, 0, 1, 3), NAN),)})
    yield edge("NaN in a key", values={"qkv": (((0, 3, 1, 3), NAN),)})
    yield edge("NaN in a value", nan_only("out", (1, 2, 1, 3)), values={"qkv": (((1, 12, 1, 3), NAN),)})
    for score in (INF, "-inf"):
        yield edge(f"{score} in a score", values={"qkv": (((0, 0, 1, 3), score),)}, backward=score == "-inf")
    yield edge("-inf in all scores of an image", values={"qkv": (((0, 0), "-inf"),)}, backward=False)
    for channel, what in ((3, "key"), (12, "value")):
        yield edge(f"inf in a {what}", values={"qkv": (((0, channel, 1, 3), INF),)}, backward=False)
    yield edge("values of 0", *zero("out", "dqkv"), values={"qkv": (((), 0),)})
    yield edge("negative values", *zero("out", "dqkv"), values={"qkv": ((((0, 2), (10, 19)), -1.0),)})
    yield edge("scores of 1e4", steep=1e4)
    yield edge("denormals", factors={"qkv": 1e-40})
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping", "packed", "permuted"):
        layouts = dict.fromkeys(("qkv", "value", "grad out"), layout)
        yield edge(f"{layout} image", layouts=layouts)
        yield edge(f"{layout} images", layouts=layouts, keys=(3, 2), last=True)
    yield edge("a constant gradient", layouts={"grad out": "constant"})
    for last in (False, True):
        yield edge(f"blocks of a GPU{', channels last' * last}", channels=70, arch=90, last=last, dtype="bf16")
