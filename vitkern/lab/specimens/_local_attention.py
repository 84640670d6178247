"""Local attention: random cases and named edge cases."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import OPERAND_LAYOUTS, chance, common, thawed
from vitkern.lab.fuzzing.edge import NAN, Edge, nan_only
from vitkern.lab.proving.problem import Problem
from vitkern.lab.specimens._attention import HEAD_DIMS, attention_tiles
from vitkern.lab.specimens._local import problem


@dataclass(frozen=True, kw_only=True)
class LocalCase(Case):
    """``table``, ``rel``, ``padding``: such operands are given."""

    batch: int = 1
    heads: int = 1
    dim: int = 1
    image: tuple[int, int] = (1, 1)
    block: tuple[int, int] = (1, 1)
    halo: tuple[int, int] = (0, 0)
    border: str = "keep"
    dilation: tuple[int, int] = (1, 1)
    table: bool = False
    rel: bool = False
    padding: bool = False
    neighbor: tuple[int, int] | None = None
    lse: bool = False
    scale: float | None = None

    def base(self) -> Problem:
        names = ("heads", "dim", "batch", "table", "rel", "padding", "lse", "dilation", "neighbor", "scale")
        options = {name: getattr(self, name) for name in names}
        return problem("case", tuple(self.image), tuple(self.block), tuple(self.halo), self.border, **options)


def draw(rng: Random) -> LocalCase:
    border = rng.choice(("clamp", "clamp", "exclude", "keep", "keep", "wrap"))
    size = (rng.choice((2, 3, 3, 4, 5, 7, 8)), rng.choice((1, 2, 3, 4, 5, 7)))
    if border == "clamp" or (border != "wrap" and chance(rng, 0.4)):
        block, halo = (1, 1), tuple(rng.choice((0, 1, 1, 2, 3, 4)) for _ in range(2))
    else:
        block = size
        halo = rng.choice(((0, 0), block, tuple(rng.randrange(b + 1) for b in block)))
    dilation = (1, 1) if border == "wrap" or chance(rng, 0.6) else (rng.choice((1, 2, 3)), rng.choice((1, 2)))
    least = [(2 * h + 1) * d if border == "clamp" else 1 for h, d in zip(halo, dilation, strict=True)]
    image = tuple(n + rng.choice((2, 3, 4, 5, 6, 8) if n == 1 and chance(rng, 0.9) else (0, 1, 3, 5)) for n in least)
    table, rel = chance(rng, 0.5), chance(rng, 0.3)
    padding = border == "keep" and halo == (0, 0) and chance(rng, 0.5)
    names = ("qkv",) + ("table",) * table + ("rel_h", "rel_w") * rel + ("padding",) * padding
    drawn = common(rng, names, arch_share=0.3)
    thawed(drawn, names)
    if table and drawn["dtype"] != "fp32" and chance(rng, 0.5):
        drawn["wide"] = ("table",)
    sizes = dict(
        batch=rng.choice((1, 1, 2)),
        heads=rng.choice((1, 1, 2, 3)),
        dim=rng.choice(HEAD_DIMS),
        neighbor=(rng.randrange(-1, 2), rng.randrange(-1, 2)) if block == halo and chance(rng, 0.4) else None,
        lse=chance(rng, 0.3),
        scale=0.3 if chance(rng, 0.2) else None,
    )
    if drawn["backward"] and sizes["lse"] and chance(rng, 0.5) and "grad out" in drawn["layouts"]:
        drawn["layouts"]["grad lse"] = rng.choice(OPERAND_LAYOUTS)
    locality = dict(image=image, block=block, halo=halo, border=border, dilation=dilation)
    return LocalCase(**drawn, **sizes, **locality, table=table, rel=rel, padding=padding)


def tiles(case: LocalCase) -> int:
    from vitkern.kernels.loop.blocks import local_tile

    groups, queries, keys = case.batch, 1, 1
    for size, block, halo, dilation in zip(case.image, case.block, case.halo, case.dilation, strict=True):
        ranks = -(-size // dilation)
        tile = local_tile(block, halo, ranks, case.border == "wrap", False, case.arch)
        groups, queries, keys = groups * dilation * -(-ranks // tile), queries * tile, keys * (tile + 2 * halo)
    return 2 * attention_tiles(case, groups, queries, keys, True, True)


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"local: {name}", LocalCase(**dict(heads=2, dim=8) | fields), expected)

    def value(name, **fields):
        return edge(name, **fields, backward=False)

    around = dict(block=(1, 1), halo=(1, 1), border="clamp")
    yield edge("no images", batch=0, image=(3, 3), **around)
    yield edge("no rows", image=(0, 3), block=(2, 2))
    yield edge("one token", image=(1, 1))
    yield edge("one token, seen through a window that leaves the image", image=(1, 1), halo=(1, 1), rel=True)
    yield edge("the window is the image", image=(3, 3), **around, table=True)
    yield edge("one row", image=(1, 9), block=(1, 1), halo=(0, 2), border="clamp", table=True)
    yield edge("one column", image=(9, 1), block=(1, 1), halo=(2, 0), border="clamp", table=True)
    yield edge("every class as long as the window", image=(6, 9), **around, dilation=(2, 3), table=True)
    yield edge("classes of several lengths", image=(7, 11), **around, dilation=(2, 3), table=True)
    yield edge("a tile of one token at the end", image=(5, 9), **around, table=True)
    for border in ("exclude", "keep", "wrap"):
        blocks = dict(border=border, block=(3, 2), table=True)
        yield edge(f"a block larger than the image, {border}", image=(2, 1), halo=(3, 2), **blocks)
        yield edge(f"the last block one token long, {border}", image=(4, 3), halo=(3, 2), **blocks)
        yield edge(f"no halo, {border}", image=(4, 5), **blocks)
        yield edge(f"two blocks, {border}", image=(6, 4), halo=(3, 2), **blocks)
    yield edge("dilation beyond the image", image=(3, 2), block=(1, 1), halo=(1, 1), dilation=(4, 5), border="exclude")
    out = dict(image=(3, 5), block=(4, 4), padding=True)
    yield edge("windows that stick out, padded", **out, rel=True)
    yield value("a large padding vector", **out, values={"padding": (((), 100.0),)})
    chunks = dict(image=(4, 6), block=(2, 2), halo=(2, 2), border="exclude")
    for neighbor in ((0, 0), (1, 1), (-1, 0)):
        yield edge(f"one neighbouring block {neighbor}", **chunks, neighbor=neighbor)
    windows = dict(image=(4, 4), block=(2, 2))
    yield edge("NaN in a token", nan_only("out", (0, (0, 2), (2, 4))), **windows, values={"qkv": (((0, 1, 2), NAN),)})
    biased = dict(image=(4, 4), **around, table=True)
    yield value("NaN in the table", **biased, values={"table": (((1, 2, 3), NAN),)})
    for number in (1e4, -1e4):
        yield value(f"{number} in the table", **biased, values={"table": (((0, 2, 2), number),)})
        yield value(f"{number} for a row", **windows, rel=True, values={"rel_h": (((0, 1, 1, 0, 1), number),)})
    for dim in (1, 3, 17, 33):
        yield edge(f"head dim {dim}", image=(4, 3), **around, dim=dim)
    everything = dict(image=(4, 6), block=(2, 3), halo=(1, 1), table=True, rel=True, lse=True)
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping"):
        layouts = dict.fromkeys(("qkv", "table", "rel_h", "rel_w", "grad out", "grad lse"), layout)
        yield edge(f"{layout} operands", **everything, layouts=layouts)
    far = dict(image=(9, 9), block=(1, 1), halo=(2, 2), border="clamp", table=True)
    yield edge("blocks of a GPU", **far, dtype="fp16", arch=90, heads=1, dim=24)
