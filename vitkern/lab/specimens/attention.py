"""Dense attention, on q, k and v or on the output of a joint projection."""

from collections.abc import Iterator

import vitkern
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.dropout import check_dropout
from vitkern.lab.proving.integration import Integration, Module
from vitkern.lab.proving.problem import normal
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._attention import attention_tiles, key_padding, random_mask
from vitkern.lab.specimens._attention_case import AttentionCase, draw, packed, problem
from vitkern.lab.specimens._attention_gradients import GRADIENTS
from vitkern.lab.specimens._attention_judges import JUDGES, SURVIVORS
from vitkern.lab.specimens._attention_launches import EXCEPTIONS, LAUNCHES
from vitkern.lab.specimens._attention_layers import LAYERS
from vitkern.lab.specimens._attention_offsets import BOUNDED, offsets
from vitkern.lab.specimens._streaming import TURNS

KERNELS = {"one pass": dict(n=18, m=20, dim=16), "streamed": dict(n=18, m=37, dim=40)}  # of float32 attention


def _edge(name, *expected, **fields) -> Edge:
    return Edge(f"attention: {name}", AttentionCase(**fields), tuple(expected))


def _edges_of(kernel: str) -> Iterator[Edge]:
    many = dict(batch=2, heads=2) | KERNELS[kernel]

    def edge(name, *expected, **fields):
        return _edge(f"{name}, {kernel}", *expected, **many | fields)

    for name, size in (("no batch", "batch"), ("no heads", "heads"), ("no queries", "n")):
        yield edge(name, **{size: 0})
    yield edge("no keys", *zero("out", "dq"), m=0)
    yield edge("one query", n=1)
    yield edge("one key", m=1)
    nothing = dict(mask="bhnm", values={"mask": (((), 0),)})
    yield edge("every row masked", *zero("out", "dq", "dk", "dv"), **nothing)
    rows = zero("out", "dq", at=((0, 2), (0, 2), (0, 16)))
    yield edge("a block of rows masked", *rows, mask="11nm", empty=tuple(range(16)), lse=True)
    yield edge("a batch entry padded away", *zero("out", "dq", at=(0,)), key_padding="all")
    for name, start, stop in (("first", 0, 16), ("last", 16, 37)):
        keys = dict(mask="11nm", values={"mask": (((0, 0, (0, 18), (start, stop)), 0),)})
        yield edge(f"the {name} block of keys masked", **keys)
    for value in ("-inf", INF, NAN):
        term = dict(mask="11nm", additive=True, values={"mask": (((0, 0, 3, 5), value),)})
        expected = () if value == "-inf" else (nan_only("out", ((0, 2), (0, 2), 3)),)
        yield edge(f"{value} in an additive mask", *expected, **term, backward=False)
    yield edge("NaN in q", nan_only("out", (0, 1, 3)), values={"q": (((0, 1, 3), NAN),)})
    yield edge("NaN in k", nan_only("out", (0, 1)), values={"k": (((0, 1, 3), NAN),)})
    column = nan_only("out", (0, 1, (0, 18), 2))
    yield edge("NaN in one value", column, backward=False, values={"v": (((0, 1, 3, 2), NAN),)})
    yield edge("NaN in a bias", bias="1hnm", values={"bias": (((0, 1, 3, 5), NAN),)})
    for operand in "qkv":
        for value in (INF, "-inf"):
            yield edge(f"{value} in {operand}", values={operand: (((0, 1, 3), value),)}, backward=False)
    yield edge("logits of 1e4", factors={"q": 100.0, "k": 100.0}, backward=False)
    for value in (-1e4, 1e4):
        yield edge(f"a bias of {value:g} throughout", bias="1hnm", values={"bias": (((), value),)})
    yield edge("a bias of 1e4 for one key", bias="hnm", values={"bias": (((0, 3, 5), 1e4),)})
    yield edge("denormal q", factors={"q": 1e-40})
    yield edge("denormal v", factors={"v": 1e-40}, backward=False)
    yield edge("fp16 denormal v", dtype="fp16", factors={"v": 1e-7}, backward=False)
    yield edge("fp16 v near the largest number", dtype="fp16", factors={"v": 1e4}, backward=False)
    for layout in ("misaligned", "stepped", "transposed", "expanded", "overlapping", "sliced", "packed"):
        layouts = dict.fromkeys(("q", "k", "v", "bias", "grad out"), layout)
        yield edge(f"{layout} operands", bias="bhnm", layouts=layouts)
    yield edge("a constant gradient", layouts={"grad out": "constant"})
    yield edge("all heads on one", heads=3, share=3)
    for dimensions in ("nm", "hnm", "bh1m", "b1nm", "1111"):
        yield edge(f"a bias of {dimensions}", bias=dimensions)


def _edges() -> Iterator[Edge]:
    for kernel in KERNELS:
        yield from _edges_of(kernel)
    for dim in range(1, 17):
        yield _edge(f"head dim {dim}", heads=2, n=5, m=6, dim=dim)
    for dim in (17, 31, 33, 63, 65, 127, 129, 255, 256):
        yield _edge(f"head dim {dim}", n=5, m=17, dim=dim)
    for n, m in ((15, 16), (16, 16), (16, 17), (17, 16), (32, 33), (33, 1)):
        yield _edge(f"{n} by {m}, causal", n=n, m=m, dim=16, causal=True, lse=True)
    yield _edge("one query sees all keys, causal", n=1, m=18, dim=16, causal=True)
    unseen = zero("out", "dq", at=(0, 0, (0, 4)))
    yield _edge("queries before the first key, causal", *unseen, n=5, dim=16, causal=True)
    yield _edge("nothing but the first token, causal", n=1, m=1, dim=16, causal=True)
    for tokens, dim in ((63, 32), (64, 32), (65, 32), (64, 64), (65, 64), (255, 64), (256, 64), (257, 64)):
        yield _edge(f"{tokens} tokens of {dim} in fp16, packed", n=tokens, dim=dim, packed=True, dtype="fp16", arch=90)
    for fields in (dict(softcap=1e-3), dict(softcap=1e4), dict(sinks=True), dict(width=5), dict(width=80)):
        yield _edge(", ".join(f"{name} {value:g}" for name, value in fields.items()), n=18, m=20, dim=16, **fields)
    yield _edge("a sink and no keys", *zero("out", "dq"), n=5, m=0, dim=16, sinks=True, lse=True)
    for value in (-1e4, 1e4):
        yield _edge(f"a sink of {value:g}", n=18, m=20, dim=16, sinks=True, values={"sinks": (((0,), value),)})
    for scale in (1e-6, 30.0):
        yield _edge(f"a scale of {scale:g}", n=18, m=20, dim=16, scale=scale, backward=False)


def _tiles(case: AttentionCase) -> int:
    return attention_tiles(case, case.batch, case.n, case.m, case.causal, bool(case.mask or case.key_padding))


_LSE, _BATCH = dict(outputs=("out", "lse"), return_lse=True), "N=67 D=32 learned bias over the batch"
_ROWS = dict(bias=(2, 1, 49, 49), extra=random_mask(1, 1, 49, 49, empty_row=True))

SPECIMEN = Specimen(
    name="attention",
    check=(
        problem("N=1", (2, 2, 1, 16)),
        problem("N=49 D=32", (1, 2, 49, 32)),
        packed("N=50 D=24 packed", 1, 50, 2, 24),
        problem("N=197 D=64", (1, 1, 197, 64)),
        problem(_BATCH, (2, 1, 67, 32), bias=(1, 1, 67, 67)),
        problem("N=49 bias per sample, mask, an empty row", (2, 1, 49, 16), **_ROWS),
        problem("N=33 M=65 causal", (1, 2, 33, 32), keys=65, causal=True),
        problem("N=40 M=56 key padding", (2, 1, 40, 32), keys=56, extra=key_padding(2, 56)),
        problem("N=50 D=20 additive mask", (1, 2, 50, 20), extra=lambda g: dict(mask=normal(g, 50, 50))),
        problem("N=33 four heads on two", (1, 4, 33, 32), kv_heads=2),
        problem("N=20 M=270 streaming, log-sum-exp", (1, 1, 20, 32), keys=270, **_LSE),
        problem("N=70 D=128 scale 0.2", (1, 1, 70, 128), scale=0.2),
        problem("N=33 M=45 soft cap, sinks, values of 48", (1, 2, 33, 32), keys=45, softcap=2.0, sinks=True, width=48),
    ),
    case=AttentionCase,
    draw=draw,
    tiles=_tiles,
    weight=9,  # it has most hooks
    edges=tuple(_edges()),
    gradients=GRADIENTS,
    offsets=offsets,
    layers=LAYERS,
    launches=LAUNCHES,
    judges=JUDGES,
    integration={
        "attention": Integration(
            lambda q, k, v, bias: vitkern.attention(q, k, v, bias=bias),
            lambda n: [(2, 2, n, 16), (2, 1, n + 1, 16), (2, 1, n + 1, 16), (1, 2, n, n + 1)],
            products=4 * 2 * 2 * 5 * 6 * 16,
            batched=(0, 1, 2),
        ),
        "attention_qkvpacked": Integration(
            lambda qkv, bias: vitkern.attention_qkvpacked(qkv, bias=bias),
            lambda n: [(2, n, 3, 2, 16), (2, n, n)],
            products=4 * 2 * 2 * 5 * 5 * 16,
        ),
    },
    faults=(
        problem("bias", (2, 2, 20, 16), bias=(1, 2, 20, 20)),
        problem("lse", (2, 2, 18, 16), kv_heads=1, causal=True, **_LSE),
        problem("dropout", (1, 2, 20, 16), dropout_p=0.3),
        packed("packed", 1, 18, 2, 16),
    ),
    bounded=BOUNDED,
    exceptions=EXCEPTIONS,
    turns=TURNS,
    survivors=SURVIVORS,
    scratch=("_short_bwd.dbias",),  # padded to whole blocks of rows; those past the last query are not read either
    properties={"dropout": check_dropout},
    modules={"Attention": Module((2, 5, 32), dict(dim=32, num_heads=2, qk_norm=True))},
)
