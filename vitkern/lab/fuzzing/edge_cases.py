"""The named edge cases: sizes of 0 and 1, tile boundaries, masks that leave nothing, special values, odd memory.

Of every case the rules (a) and (c) of `vitkern.testing` are expected; ``expected`` says what holds exactly besides.
"""

from collections.abc import Iterator
from typing import NamedTuple

from vitkern.lab.fuzzing.cases import AttentionCase, Case, LayerNormCase, LocalCase, MLPCase, WindowCase

KERNELS = {"one pass": dict(n=18, m=20, dim=16), "streamed": dict(n=18, m=37, dim=40)}  # of float32 attention
NAN, INF = "nan", "inf"


class Exactly(NamedTuple):
    """``tensor`` at ``index`` (see `cases.place`) is ``value`` throughout; ``only``: and nowhere else."""

    tensor: str
    index: tuple
    value: float
    only: bool = False


class Edge(NamedTuple):
    name: str
    case: Case
    expected: tuple[Exactly, ...] = ()


def _zero(*tensors: str, at: tuple = ()) -> tuple[Exactly, ...]:
    return tuple(Exactly(name, at, 0.0) for name in tensors)


def _nan_only(tensor: str, index: tuple) -> Exactly:
    return Exactly(tensor, index, float("nan"), only=True)


def _attention() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"attention: {name}", AttentionCase(**fields), tuple(expected))

    for kernel, sizes in KERNELS.items():
        many = dict(batch=2, heads=2) | sizes
        for name, size in (("no batch", "batch"), ("no heads", "heads"), ("no queries", "n")):
            yield edge(f"{name}, {kernel}", **many | {size: 0})
        yield edge(f"no keys, {kernel}", *_zero("out", "dq"), **many | dict(m=0))
        yield edge(f"one query, {kernel}", **many | dict(n=1))
        yield edge(f"one key, {kernel}", **many | dict(m=1))
        everything = dict(mask="bhnm", values={"mask": (((), 0),)})
        yield edge(f"every row masked, {kernel}", *_zero("out", "dq", "dk", "dv"), **many, **everything)
        yield edge(
            f"a block of rows masked, {kernel}",
            *_zero("out", "dq", at=((0, 2), (0, 2), (0, 16))),
            **many | dict(mask="11nm", empty=tuple(range(16)), lse=True),
        )
        yield edge(f"a batch entry padded away, {kernel}", *_zero("out", "dq", at=(0,)), **many, key_padding="all")
        for name, start, stop in (("first", 0, 16), ("last", 16, 37)):
            keys = dict(mask="11nm", values={"mask": (((0, 0, (0, 18), (start, stop)), 0),)})
            yield edge(f"the {name} block of keys masked, {kernel}", **many, **keys)
        for value in ("-inf", INF, NAN):
            term = dict(mask="11nm", additive=True, values={"mask": (((0, 0, 3, 5), value),)})
            expected = () if value == "-inf" else (_nan_only("out", ((0, 2), (0, 2), 3)),)
            yield edge(f"{value} in an additive mask, {kernel}", *expected, **many, **term, backward=False)
        yield edge(f"NaN in q, {kernel}", _nan_only("out", (0, 1, 3)), **many, values={"q": (((0, 1, 3), NAN),)})
        yield edge(f"NaN in k, {kernel}", _nan_only("out", (0, 1)), **many, values={"k": (((0, 1, 3), NAN),)})
        yield edge(
            f"NaN in one value, {kernel}",
            _nan_only("out", (0, 1, (0, 18), 2)),
            **many | dict(backward=False, values={"v": (((0, 1, 3, 2), NAN),)}),
        )
        yield edge(f"NaN in a bias, {kernel}", **many, bias="1hnm", values={"bias": (((0, 1, 3, 5), NAN),)})
        for operand in "qkv":
            for value in (INF, "-inf"):
                setting = dict(values={operand: (((0, 1, 3), value),)}, backward=False)
                yield edge(f"{value} in {operand}, {kernel}", **many, **setting)
        yield edge(f"logits of 1e4, {kernel}", **many, factors={"q": 100.0, "k": 100.0}, backward=False)
        for value in (-1e4, 1e4):
            shifted = dict(bias="1hnm", values={"bias": (((), value),)})
            yield edge(f"a bias of {value:g} throughout, {kernel}", **many, **shifted)
        yield edge(f"a bias of 1e4 for one key, {kernel}", **many, bias="hnm", values={"bias": (((0, 3, 5), 1e4),)})
        yield edge(f"denormal q, {kernel}", **many, factors={"q": 1e-40})
        yield edge(f"denormal v, {kernel}", **many, factors={"v": 1e-40}, backward=False)
        yield edge(f"fp16 denormal v, {kernel}", **many, dtype="fp16", factors={"v": 1e-7}, backward=False)
        yield edge(
            f"fp16 v near the largest number, {kernel}", **many, dtype="fp16", factors={"v": 1e4}, backward=False
        )
        for layout in ("misaligned", "stepped", "transposed", "expanded", "overlapping", "sliced", "packed"):
            layouts = dict.fromkeys(("q", "k", "v", "bias", "grad out"), layout)
            yield edge(f"{layout} operands, {kernel}", **many, bias="bhnm", layouts=layouts)
        yield edge(f"a constant gradient, {kernel}", **many, layouts={"grad out": "constant"})
        yield edge(f"all heads on one, {kernel}", **many | dict(heads=3, share=3))
        for dimensions in ("nm", "hnm", "bh1m", "b1nm", "1111"):
            yield edge(f"a bias of {dimensions}, {kernel}", **many, bias=dimensions)
    for dim in range(1, 17):
        yield edge(f"head dim {dim}", heads=2, n=5, m=6, dim=dim)
    for dim in (17, 31, 33, 63, 65, 127, 129, 255, 256):
        yield edge(f"head dim {dim}", n=5, m=17, dim=dim)
    for n, m in ((15, 16), (16, 16), (16, 17), (17, 16), (32, 33), (33, 1)):
        yield edge(f"{n} by {m}, causal", n=n, m=m, dim=16, causal=True, lse=True)
    yield edge("one query sees all keys, causal", n=1, m=18, dim=16, causal=True)
    yield edge("queries before the first key, causal", *_zero("out", "dq", at=(0, 0, (0, 4))), n=5, dim=16, causal=True)
    yield edge("nothing but the first token, causal", n=1, m=1, dim=16, causal=True)
    for tokens, dim in ((63, 32), (64, 32), (65, 32), (64, 64), (65, 64), (255, 64), (256, 64), (257, 64)):
        yield edge(f"{tokens} tokens of {dim} in fp16, packed", n=tokens, dim=dim, packed=True, dtype="fp16", arch=90)
    for scale in (1e-6, 30.0):
        yield edge(f"a scale of {scale:g}", n=18, m=20, dim=16, scale=scale, backward=False)


def _windows() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"window: {name}", WindowCase(**dict(heads=2, dim=8) | fields), tuple(expected))

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
    shifted = dict(image=(8, 4), window=(4, 4), shift=(2, 1))
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
    yield edge(
        "NaN in a token",
        _nan_only("out", (0, (0, 4))),
        image=(8, 4),
        window=(4, 4),
        values={"qkv": (((0, 1, 2), NAN),)},
    )
    yield edge("inf in a token", image=(8, 4), window=(4, 4), values={"qkv": (((0, 1, 2, 0), INF),)}, backward=False)
    for value in (1e4, -1e4, "-inf"):
        yield edge(f"{value} in the table", **shifted, values={"table": (((24,), value),)}, backward=False)
    yield edge("NaN in the table", **shifted, values={"table": (((24, 1), NAN),)}, backward=False)
    yield edge("logits of 1e4", **shifted, factors={"qkv": 100.0}, backward=False)
    cosine = dict(**shifted, temperature=2.0)
    zero = {"qkv": (((0, 1, 2), 0),)}
    yield edge("cosine, a zero row", **cosine, values=zero, backward=False)
    yield edge("cosine, nothing but zero rows", *_zero("out"), **cosine, values={"qkv": (((), 0),)}, backward=False)
    yield edge("cosine, a temperature past the clamp", *_zero("dlogit_scale"), **cosine | dict(temperature=6.0))
    yield edge("cosine, a small temperature", **cosine | dict(temperature=-8.0))
    yield edge("cosine, tiny rows", **cosine, factors={"qkv": 1e-8}, backward=False)
    yield edge("cosine, windows that stick out", **padded, temperature=2.0)
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping"):
        layouts = dict.fromkeys(("qkv", "table", "padding", "grad out"), layout)
        yield edge(f"{layout} operands", **padded, layouts=layouts)


def _local() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"local: {name}", LocalCase(**dict(heads=2, dim=8) | fields), tuple(expected))

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
    yield edge("windows that stick out, padded", image=(3, 5), block=(4, 4), padding=True, rel=True)
    yield edge("a large padding vector", image=(3, 5), block=(4, 4), padding=True, values={"padding": (((), 100.0),)},
               backward=False)  # fmt: skip
    for neighbor in ((0, 0), (1, 1), (-1, 0)):
        yield edge(f"one neighbouring block {neighbor}", image=(4, 6), block=(2, 2), halo=(2, 2), border="exclude",
                   neighbor=neighbor)  # fmt: skip
    windows = dict(image=(4, 4), block=(2, 2))
    yield edge("NaN in a token", _nan_only("out", (0, (0, 2), (2, 4))), **windows, values={"qkv": (((0, 1, 2), NAN),)})
    yield edge("NaN in the table", image=(4, 4), **around, table=True, values={"table": (((1, 2, 3), NAN),)},
               backward=False)  # fmt: skip
    for value in (1e4, -1e4):
        yield edge(f"{value} in the table", image=(4, 4), **around, table=True, values={"table": (((0, 2, 2), value),)},
                   backward=False)  # fmt: skip
        yield edge(f"{value} for a row", **windows, rel=True, values={"rel_h": (((0, 1, 1, 0, 1), value),)},
                   backward=False)  # fmt: skip
    for dim in (1, 3, 17, 33):
        yield edge(f"head dim {dim}", image=(4, 3), **around, dim=dim)
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping"):
        layouts = dict.fromkeys(("qkv", "table", "rel_h", "rel_w", "grad out", "grad lse"), layout)
        yield edge(f"{layout} operands", image=(4, 6), block=(2, 3), halo=(1, 1), table=True, rel=True, lse=True,
                   layouts=layouts)  # fmt: skip
    yield edge("blocks of a GPU", image=(9, 9), block=(1, 1), halo=(2, 2), border="clamp", table=True, dtype="fp16",
               arch=90, heads=1, dim=24)  # fmt: skip


def _layernorm() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"layernorm: {name}", LayerNormCase(**dict(shape=(5,), channels=24) | fields), tuple(expected))

    yield edge("no rows", shape=(0,))
    yield edge("no rows, residual", shape=(2, 0), residual=True)
    yield edge("one row", shape=(1,))
    yield edge("one channel", *_zero("dx", "dweight"), channels=1)
    yield edge("two channels", channels=2, backward=False)
    for channels in (15, 16, 17, 127, 128, 129, 8191, 8192):
        yield edge(f"{channels} channels", channels=channels)
    for rows in (127, 128, 129):
        yield edge(f"{rows} rows", shape=(rows,))
    yield edge("zero rows", *_zero("dweight"), values={"x": (((), 0),)})
    yield edge("constant rows", *_zero("dweight"), values={"x": (((), 3.0),)})
    for dtype in ("fp16", "bf16"):
        constant = dict(residual=True, values={"x": (((), 1.0),), "residual": (((), 2.003),)})
        yield edge(f"constant sums in {dtype}", *_zero("dweight"), dtype=dtype, **constant)
    for eps in (1e-12, 1.0, 1e6):
        yield edge(f"eps {eps:g}", eps=eps)
    yield edge("eps 0", eps=0.0)
    yield edge("constant rows, eps 0", values={"x": (((1,), 3.0),)}, eps=0.0, backward=False)
    yield edge("a mean of 1e3", offset=1e3, backward=False)
    yield edge("values of 1e15", factors={"x": 1e15}, backward=False)
    yield edge("values of 1e-15", factors={"x": 1e-15}, eps=1e-5, backward=False)
    yield edge("denormals", factors={"x": 1e-40}, backward=False)
    for value in (NAN, INF, "-inf"):
        yield edge(f"{value} in a row", _nan_only("out", (2,)), values={"x": (((2, 3), value),)})
        yield edge(f"{value} in the residual", residual=True, values={"residual": (((2, 3), value),)})
    yield edge("NaN in the weight", _nan_only("out", ((0, 5), 3)), values={"weight": (((3,), NAN),)}, backward=False)
    yield edge("neither weight nor bias", without=("weight", "bias"))
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping", "packed"):
        layouts = dict.fromkeys(("x", "weight", "bias", "residual", "grad out", "grad sum"), layout)
        yield edge(f"{layout} operands", shape=(2, 5), residual=True, layouts=layouts)
    yield edge("a constant gradient", layouts={"grad out": "constant"})


def _mlp() -> Iterator[Edge]:
    plain = ("layer_scale", "row_scale")

    def edge(name, *expected, **fields):
        sizes = dict(batch=2, tokens=5, channels=24, hidden=40)
        return Edge(f"mlp: {name}", MLPCase(**sizes | fields), tuple(expected))

    for post_norm in (False, True):
        norm = dict(post_norm=post_norm)
        where = "post-norm" if post_norm else "pre-norm"
        yield edge(f"no samples, {where}", **norm, batch=0, without=plain)
        yield edge(f"no tokens, {where}", **norm, tokens=0, without=plain)
        yield edge(f"one token, {where}", **norm, batch=1, tokens=1, without=plain)
        yield edge(f"one channel, {where}", **norm, channels=1, without=plain)
        yield edge(f"one hidden channel, {where}", **norm, hidden=1, without=plain)
        dropped = dict(values={"row_scale": (((), 0),)})
        yield edge(f"every sample dropped, {where}", *_zero("dfc1_weight", "dfc2_weight"), **norm, **dropped)
        yield edge(f"a layer scale of 0, {where}", *_zero("dfc1_weight"), **norm, values={"layer_scale": (((), 0),)})
        yield edge(f"NaN in a token, {where}", _nan_only("out", (1, 2)), **norm, values={"x": (((1, 2, 3), NAN),)})
        yield edge(f"inf in a token, {where}", **norm, values={"x": (((1, 2, 3), INF),)}, backward=False)
        yield edge(f"eps 1e6, {where}", **norm, eps=1e6)
        yield edge(f"eps 1e-12, {where}", **norm, eps=1e-12)
        yield edge(
            f"nothing optional, {where}", **norm, without=(*plain, "norm_weight", "norm_bias", "fc1_bias", "fc2_bias")
        )
        for layout in ("misaligned", "stepped", "transposed", "sliced", "packed"):
            names = ("x", "norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", *plain)
            layouts = dict.fromkeys((*names, "grad out"), layout)
            yield edge(f"{layout} operands, {where}", **norm, layouts=layouts)
    for act in ("gelu", "gelu_tanh", "quick_gelu"):
        for factor in (1e3, -1e3):
            yield edge(f"saturated {act}, {factor:g}", act=act, values={"fc1_bias": (((), factor),)}, without=plain)
        yield edge(f"{act} of 0", act=act, values={"fc1_weight": (((), 0),), "fc1_bias": (((), 0),)}, without=plain)
    for channels in (16, 17, 256, 257, 512, 513):
        yield edge(f"{channels} channels", channels=channels, tokens=2, hidden=17, dtype="fp16", without=plain)
        yield edge(f"{channels} channels, no gradient", channels=channels, tokens=2, hidden=17, backward=False)
    for rows in (31, 32, 33):
        yield edge(f"{rows} rows", batch=1, tokens=rows, without=plain)
    for hidden in (63, 64, 65):
        yield edge(f"{hidden} hidden channels", hidden=hidden, without=plain)
    yield edge("constant rows", values={"x": (((), 2.0),)}, backward=False)
    yield edge("values of 1e4", factors={"x": 1e4}, without=plain, backward=False)
    alike = dict(layouts={"fc2_weight": "expanded"}, values={"fc2_bias": (((), 0),)})
    yield edge("every output channel alike, post-norm", **alike, post_norm=True, eps=1.0)


EDGES = (*_attention(), *_windows(), *_local(), *_layernorm(), *_mlp())
