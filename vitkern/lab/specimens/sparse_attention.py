"""Sampled and gated attention over the keys of a short sequence, that of STRec."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from vitkern.lab.addressing.offset_case import HALF as STORED
from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.addressing.offset_case import scaled
from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, Layer, compiled, leaf
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.proving.integration import Integration
from vitkern.lab.proving.problem import only
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._sparse_attention import SparseCase, draw, edges, problem, tiles


def _gradients() -> Iterator[GradientCase]:
    gated = problem("gates, padding", 2, 2, 5, 7, 3, gated=True, padded=True, strength=2.0)
    sampled = problem("3 of 6 queries, gates", 1, 1, 6, 4, 2, sampled=3, gated=True, strength=2.0)
    yield GradientCase(problem("N=5 M=4", 1, 1, 5, 4, 2), full=True)
    yield GradientCase(sampled, full=True, sample=True)
    yield GradientCase(problem("7 of 4 queries, some again", 1, 1, 4, 4, 2, sampled=7, repeated=True), full=True)
    yield GradientCase(gated, seeds=2, ordered=True)
    yield GradientCase(problem("N=40 M=20, scale 0.7", 1, 2, 40, 20, 3, gated=True, strength=2.0, scale=0.7))
    yield from (GradientCase(only(gated, name)) for name in ("q", "k", "v", "query_gate", "key_gate"))


def _beyond(tensors, size, *, backward: bool, dims: Callable, strides: Callable | None = None):
    """``dims(size)``: (B, H, N, D), with as many keys as queries, gates, a key mask and an index."""
    from vitkern.kernels import sparse_attention as kernels

    batch, heads, n, dim = dims(size)
    q, k, v = (tensors(dims, strides=strides) for _ in range(3))
    key_mask = tensors(lambda s: (dims(s)[0], dims(s)[2]), torch.bool)
    gates = [tensors(lambda s: (dims(s)[0], dims(s)[2]), torch.float32) for _ in range(2)]
    index = torch.empty(batch, n, dtype=torch.int64)
    index[-3:] = torch.arange(n).flip(0)
    if not backward:
        kernels.sparse_attention_forward(q, k, v, index, key_mask, *gates, 0.5, 2.0)
        return
    grad = tensors(lambda s: (dims(s)[0], dims(s)[2], dims(s)[1], dims(s)[3]))
    found = [torch.empty(batch, heads, n, dim, dtype=STORED) for _ in range(3)]
    kernels.run_backward(grad, q, k, v, *found, index, key_mask, *gates, 0.5, 2.0)


def _offsets() -> list[OffsetCase]:
    """Sequences and heads beyond 2^31 in what launchers allocate; strides beyond it in what callers give."""
    cases = []
    for kernel, backward in (("_sparse_fwd", False), ("_sparse_bwd", True)):
        case = partial(scaled, kernel, function=_beyond, backward=backward)
        cases += [
            case("sequences", small=3, offset=2**27, dims=lambda s: (s, 1, 16, 1)),
            case("heads", small=3, offset=2**27, dims=lambda s: (1, s, 16, 1)),
        ]
        for axis, what, extents in ((0, "sequence", (3, 1, 16)), (1, "head", (1, 3, 16)), (2, "token", (1, 1, 16))):
            steps = lambda s, axis=axis: tuple(s if i == axis else n for i, n in enumerate((256, 256, 16, 1)))  # noqa: E731
            dims = lambda s, extents=extents: (*extents, 16)  # noqa: E731
            offset = 2**28 if axis == 2 else 2**30
            cases.append(case(f"{what} stride", small=1024, offset=offset, dims=dims, strides=steps))
        odd = lambda s: (256, 256, s, 1)  # noqa: E731 other strides are counted in units of 16 bytes
        cases.append(case("odd token stride", small=1025, offset=2**28, dims=lambda s: (1, 1, 16, 16), strides=odd))
    return cases


@dataclass(frozen=True)
class Sampled(Layer):
    """``sampled`` of N items of a user's history attend to all of them; with 0 every item does, ``gated``. ``keys``: M
    where it is not N."""

    heads: int
    tokens: int
    head_dim: int
    sampled: int = 0
    keys: int = 0
    gated: bool = True
    op = "sparse_attention"

    def problem(self, batch):
        shape = batch, self.heads, self.tokens, self.keys or self.tokens, self.head_dim
        return problem(self.layer, *shape, sampled=self.sampled or None, gated=self.gated and not self.sampled)

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        from vitkern.ops.sparse_attention import sparse_attention

        lengths = self.tokens, self.keys or self.tokens, self.keys or self.tokens
        width = self.heads * self.head_dim
        rows = (leaf(batch, n, width + spare, dtype=dtype)[..., :width] for n in lengths)
        operands = [x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for x in rows]
        options = dict(key_padding_mask=torch.ones(batch, lengths[1], dtype=torch.bool))  # a history may be short
        if self.sampled:
            options["index"] = torch.arange(self.sampled).expand(batch, -1)
        elif self.gated:
            gates = (leaf(batch, n, dtype=torch.float32) for n in lengths[:2])
            options |= dict(zip(("query_gate", "key_gate"), gates, strict=True))
        with torch.set_grad_enabled(trained):
            out = sparse_attention(*operands, **options)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        queries, keys, width = self.sampled or self.tokens, self.keys or self.tokens, self.heads * self.head_dim
        moved = batch * width * (3 * queries + 4 * keys if backward else 2 * (queries + keys))
        return itemsize * moved, (10 if backward else 4) * batch * width * queries * keys

    def __str__(self) -> str:
        which = f"{self.sampled} of {self.tokens}" if self.sampled else f"{self.tokens}{' gated' * self.gated}"
        return f"{self.layer} H{self.heads} {which}{f' M{self.keys}' if self.keys else ''} D{self.head_dim}"


LAYERS = (
    Sampled("STRec layer 1, pre-training", 4, 50, 32, batch=2048, compiled="sparse-50-gated", everywhere=True),
    Sampled("STRec layer 2", 4, 50, 32, 20, batch=2048, quick=True, compiled="sparse-50", everywhere=True),
    Sampled("STRec layer 4", 4, 20, 32, 5, batch=2048),
    Sampled("the first items of a history", 4, 5, 32, keys=20, gated=False, timed=False, compiled="sparse-prefix"),
    Sampled("a short history", 4, 8, 32, timed=False, compiled="sparse-8"),
)


def _launches() -> Iterator[Launch]:
    yield from compiled(LAYERS)

    def unlike(queries, keys, **options):
        return Launch(f"sparse-{queries}-by-{keys}", _by(queries, keys), **dict(everywhere=True) | options)

    yield Launch("sparse-128-d64", Sampled("a wide head", 4, 128, 64), everywhere=True, in_pytorch=(942,))
    yield Launch("sparse-200", Sampled("a long history", 4, 200, 32), everywhere=True, in_pytorch=(120, 942))
    yield Launch("sparse-20-of-200", Sampled("a long history, sampled", 4, 200, 32, 20), in_pytorch=(120, 942))
    yield from (unlike(7, 7), unlike(7, 50), unlike(50, 7), unlike(7, 100, in_pytorch=(942,)))
    yield unlike(7, 200, in_pytorch=(120, 942))
    single = dict(dtype=torch.float32)
    for n, m in ((7, 7), (7, 50), (50, 7)):
        yield Launch(f"sparse-fp32-{n}-by-{m}", _by(n, m), single, everywhere=True)
    yield Launch("sparse-fp32", LAYERS[0], single, everywhere=True)
    yield Launch("sparse-fp16", LAYERS[0], dict(dtype=torch.float16))
    yield Launch("sparse-batch-1", LAYERS[0], dict(batch=1))


def _by(queries: int, keys: int) -> Sampled:
    return Sampled(f"{queries} by {keys}", 4, queries, 32, keys=keys)


_GATED = problem("gates, padding", 2, 2, 37, 50, 20, gated=True, padded=True, scale=0.4)
_SAMPLED = problem("sampled, gates", 2, 3, 40, 33, 32, sampled=35, gated=True)
_AGAIN = problem("sampled again", 1, 2, 20, 16, 16, sampled=40, repeated=True)
TRIALS = (
    *quick(SINGLE, _GATED, _SAMPLED, apart=1),
    *quick(SINGLE, problem("empty sequence", 2, 1, 20, 16, 16, padded=True), _SAMPLED),
    *quick(SINGLE, _AGAIN, apart=1),
    *quick(SINGLE, problem("even tiles", 1, 2, 64, 64, 16, gated=True), arch=90),
    *quick(HALF, _GATED, _SAMPLED, problem("keys that fill the tile", 1, 2, 70, 64, 64, sampled=66)),
    *quick(HALF, problem("steep gates", 1, 2, 33, 64, 24, gated=True, strength=1e3)),
    *quick(BRAIN, _GATED, problem("many keys", 1, 1, 40, 200, 32, gated=True, padded=True)),
)


def _attend(q, k, v, query_gate, key_gate):
    """As many queries attend as have a gate, those of the smallest first channel."""
    from vitkern.ops.sparse_attention import sparse_attention

    index = q.detach()[:, 0, :, 0].argsort(1)[:, : query_gate.shape[1]]
    return sparse_attention(q, k, v, index=index, query_gate=query_gate, key_gate=key_gate, strength=5.0)


SPECIMEN = Specimen(
    name="sparse_attention",
    check=(
        problem("20 of 50 queries", 2, 2, 50, 50, 32, sampled=20),
        problem("40 of 30 queries, some again", 2, 2, 30, 20, 32, sampled=40, repeated=True),
        problem("gates, padding, an empty sequence", 2, 2, 50, 50, 32, gated=True, padded=True),
        problem("33 queries, 60 keys, steep gates", 1, 2, 33, 60, 20, gated=True, strength=1e3),
    ),
    case=SparseCase,
    draw=draw,
    tiles=tiles,
    weight=3,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=tuple(_launches()),
    judges={"sparse_attention": Checks(TRIALS, (), ("test_sparse_attention.py",))},
    integration={
        "sparse_attention": Integration(
            _attend,
            lambda n: [(2, 2, n, 16), (2, 2, n + 1, 16), (2, 2, n + 1, 16), (2, n - 1), (2, n + 1)],
            products=4 * 2 * 2 * 4 * 6 * 16,
            batched=(0, 1, 2, 3, 4),
        )
    },
    faults=(problem("sampled", 2, 2, 9, 12, 16, sampled=5, gated=True, padded=True),),
    exceptions={
        ("sparse-fp32-50-by-7", "_sparse_bwd", 100): Excuse(
            "spills: ",
            "8 bytes, although 168 registers are in use: the compiler keeps to three programs on a multiprocessor",
        ),
        ("sparse-50-by-7", "_sparse_bwd", 100): Excuse(
            "spills: ",
            "8 bytes, although 72 registers are in use: the compiler's choice around its tensor memory",
        ),
    },
    survivors={
        "sparse_attention._places:drop-other:1": Survivor(
            "tl.load(index + sequence.to(tl.int64) * K + qi, mask=qi < K, other=0) -> tl.load(index + "
            "sequence.to(tl.int64) * K + qi, mask=qi < K)",
            "masked lanes are queries past the last, whose rows load_rows and store_rows leave out",
        ),
        "sparse_attention._weights:drop-float32:2": Survivor(
            "tl.load(key_gate + sequence.to(tl.int64) * M + ki, mask=ki < M, other=0.0).to(tl.float32) -> "
            "tl.load(key_gate + sequence.to(tl.int64) * M + ki, mask=ki < M, other=0.0)",
            "tl.max widens bfloat16 by itself; in float16 a difference from the largest gate is exact if it is small",
        ),
    },
)
