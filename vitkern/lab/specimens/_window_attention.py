"""Windows: their problems, random cases and named edge cases."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.specimens._attention import HEAD_DIMS, attention_tiles

WINDOWS = ((7, 7), (8, 8), (4, 4), (2, 2), (5, 10), (7, 9), (5, 13), (4, 7), (1, 16), (6, 4), (3, 1))
RARE_WINDOWS = ((1, 1), (1, 2), (12, 12), (14, 14), (16, 16), (7, 28), (1, 127), (2, 71), (1, 197))


def problem(
    name: str, image: tuple, window: tuple,
    *, heads=2, dim=16, batch=1, shift=(0, 0), table=True, cosine=False, **options,
) -> Problem:  # fmt: skip
    """``image`` (img_h, img_w); a padding vector is given where the window does not divide the image."""
    channels = heads * dim
    padded = any(side % cell for side, cell in zip(image, window, strict=True))
    rows = (2 * window[0] - 1) * (2 * window[1] - 1)

    def inputs(generator):
        tensors = dict(qkv=normal(generator, batch, *image, 3 * channels))
        if table:
            tensors["table"] = normal(generator, rows, heads)
        if padded:
            tensors["padding"] = normal(generator, 3 * channels)
        if cosine:
            tensors["logit_scale"] = 2.0 + normal(generator, heads, std=0.2)
        return tensors

    names = ("qkv",) + ("table",) * table + ("padding",) * padded + ("logit_scale",) * cosine
    options |= dict(num_heads=heads, window=window, shift=shift)
    return Problem("window_attention", name, inputs, names, options)


@dataclass(frozen=True, kw_only=True)
class WindowCase(Case):
    """``temperature``: logit_scale of cosine attention, about; None for scaled dot products."""

    batch: int = 1
    heads: int = 1
    dim: int = 1
    image: tuple[int, int] = (1, 1)
    window: tuple[int, int] = (1, 1)
    shift: tuple[int, int] = (0, 0)
    wrap: str = "image"
    mask_value: float | None = -100.0
    temperature: float | None = None
    scale: float | None = None

    def base(self) -> Problem:
        if any(shift >= window for shift, window in zip(self.shift, self.window, strict=True)):
            raise ValueError(f"shift {self.shift} beyond window {self.window}")
        options = dict(wrap=self.wrap, mask_value=self.mask_value, scale=self.scale)
        sizes = dict(heads=self.heads, dim=self.dim, batch=self.batch, shift=tuple(self.shift))
        cosine = self.temperature is not None
        base = problem("case", tuple(self.image), tuple(self.window), **sizes, cosine=cosine, **options)
        if not cosine:
            return base

        def inputs(generator):
            operands = base.inputs(generator)
            return operands | dict(logit_scale=operands["logit_scale"] + (self.temperature - 2.0))

        return replace(base, inputs=inputs)


def draw(rng: Random) -> WindowCase:
    window = rng.choice(WINDOWS if chance(rng, 0.7) else RARE_WINDOWS)
    cells = rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2))
    image = tuple(
        max(1, cell * extent - (rng.randrange(extent) if chance(rng, 0.3) else 0))
        for cell, extent in zip(cells, window, strict=True)
    )
    wrap = rng.choice(("image", "padded"))
    shift = tuple(
        rng.randrange(extent if wrap == "padded" else min(extent, size)) if chance(rng, 0.6) else 0
        for extent, size in zip(window, image, strict=True)
    )
    padded = any(size % extent for size, extent in zip(image, window, strict=True))
    cosine = chance(rng, 0.3)
    without = ("table",) if chance(rng, 0.2) else ()
    names = ("qkv",) + ("table",) * (not without) + ("padding",) * padded + ("logit_scale",) * cosine
    drawn = common(rng, names, arch_share=0.3)
    thawed(drawn, names)
    kept = tuple(name for name in ("table", "logit_scale") if name in names and chance(rng, 0.5))
    sizes = dict(
        batch=rng.choice((1, 1, 2, 3)),
        heads=rng.choice((1, 1, 2, 3)),
        dim=rng.choice(HEAD_DIMS),
        image=image,
        window=window,
        shift=shift,
        wrap=wrap,
        mask_value=rng.choice((-100.0, -100.0, None, 0.0, -3.0)),
        temperature=rng.choice((0.0, 2.0, 2.0, 5.0)) if cosine else None,
        scale=0.3 if not cosine and chance(rng, 0.2) else None,
    )
    drawn |= dict(wide=kept if drawn["dtype"] != "fp32" else (), without=without)
    if chance(rng, SPECIAL) and not padded:  # the formula multiplies NaN by the 0 that a padded query's gradient is
        index = (rng.randrange(sizes["batch"]), rng.randrange(image[0]), rng.randrange(image[1]))
        drawn["values"] = {"qkv": ((index, NAN),)}
    return WindowCase(**drawn, **sizes)


def tiles(case: WindowCase) -> int:
    size = math.prod(case.window)
    groups = case.batch * math.prod(-(-a // b) for a, b in zip(case.image, case.window, strict=True))
    return attention_tiles(case, groups, size, size, False, True)


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"window: {name}", WindowCase(**dict(heads=2, dim=8) | fields), expected)

    yield edge("no images", batch=0, image=(4, 4), window=(4, 4))
    yield edge("one token", image=(1, 1), window=(1, 1))
    yield edge("windows of one token", image=(2, 3), window=(1, 1))
    yield edge("a window of one row", image=(2, 7), window=(1, 7), shift=(0, 6))
    yield edge("a window of one column", image=(7, 2), window=(7, 1), shift=(6, 0))
    yield edge("shrunk to the image", image=(3, 5), window=(3, 5))
    for wrap in ("image", "padded"):
        many = dict(wrap=wrap, window=(4, 4))
        yield edge(f"larger than the image, {wrap}", **many, image=(3, 2))
        yield edge(f"larger than the image, shifted, {wrap}", **many, image=(3, 3), shift=(2, 2))
        yield edge(f"one token over the window, {wrap}", **many, image=(5, 4), shift=(1, 1))
        yield edge(f"one token short of it, {wrap}", **many, image=(3, 8), shift=(1, 1))
        for shift in ((0, 0), (3, 3), (0, 3), (3, 0)):
            yield edge(f"shift {shift[0]},{shift[1]}, {wrap}", **many, image=(8, 4), shift=shift)
    two = dict(image=(8, 4), window=(4, 4))
    shifted = dict(**two, shift=(2, 1))
    for value in (None, 0.0, -3.0, -1e4):
        yield edge(f"mask value {value}", **shifted, mask_value=value)
    yield edge("without a table", **shifted, without=("table",))
    for tokens, window in ((63, (7, 9)), (64, (8, 8)), (65, (5, 13)), (256, (16, 16))):
        yield edge(f"{tokens} tokens", heads=1, image=window, window=window, arch=90, dtype="bf16")
    for dim in (1, 3, 17, 33):
        yield edge(f"head dim {dim}", image=(4, 4), window=(4, 4), dim=dim)
    padded = dict(image=(3, 4), window=(4, 4), shift=(1, 2))
    yield edge("a large padding vector", **padded, values={"padding": (((), 100.0),)}, backward=False)
    yield edge("NaN in the padding vector", **padded, values={"padding": (((0,), NAN),)}, backward=False)
    yield edge("NaN in a token", nan_only("out", (0, (0, 4))), **two, values={"qkv": (((0, 1, 2), NAN),)})
    yield edge("inf in a token", **two, values={"qkv": (((0, 1, 2, 0), INF),)}, backward=False)
    for value in (1e4, -1e4, "-inf"):
        yield edge(f"{value} in the table", **shifted, values={"table": (((24,), value),)}, backward=False)
    yield edge("NaN in the table", **shifted, values={"table": (((24, 1), NAN),)}, backward=False)
    yield edge("logits of 1e4", **shifted, factors={"qkv": 100.0}, backward=False)
    cosine = dict(**shifted, temperature=2.0)
    yield edge("cosine, a zero row", **cosine, values={"qkv": (((0, 1, 2), 0),)}, backward=False)
    yield edge("cosine, nothing but zero rows", *zero("out"), **cosine, values={"qkv": (((), 0),)}, backward=False)
    yield edge("cosine, a temperature past the clamp", *zero("dlogit_scale"), **cosine | dict(temperature=6.0))
    yield edge("cosine, a small temperature", **cosine | dict(temperature=-8.0))
    yield edge("cosine, tiny rows", **cosine, factors={"qkv": 1e-8}, backward=False)
    yield edge("cosine, windows that stick out", **padded, temperature=2.0)
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping"):
        layouts = dict.fromkeys(("qkv", "table", "padding", "grad out"), layout)
        yield edge(f"{layout} operands", **padded, layouts=layouts)
