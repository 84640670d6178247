"""Additive attention: scores of a perceptron with one hidden layer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

import vitkern
from vitkern.lab.addressing.offset_case import HALF as STORED
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
from vitkern.lab.specimens._additive_attention import AdditiveCase, draw, edges, problem, tiles


def _gradients() -> Iterator[GradientCase]:
    two = problem("4 by 5, padding", 2, 2, 4, 5, 3, 2, padded=True)
    yield GradientCase(problem("4 by 3", 1, 1, 4, 3, 2, 2), full=True, sample=True)
    yield GradientCase(two, seeds=2, ordered=True)
    yield GradientCase(problem("20 by 19", 1, 1, 20, 19, 2, 2))
    yield from (GradientCase(only(two, name)) for name in ("q", "k", "v", "weight"))


def _beyond(tensors, size, *, launcher: str, dims: Callable, strides: Callable | None = None):
    """``dims(size)``: (B, H, N, D), with as many keys as queries and features as channels; ``strides`` of v."""
    from vitkern.kernels import additive_attention as kernels
    from vitkern.kernels.loop.problem import dense_rows

    batch, heads, n, dim = dims(size)
    q, k = (tensors(lambda s: (dims(s)[0], dims(s)[1], dims(s)[3], dims(s)[2])) for _ in range(2))
    v, out = (dense_rows(tensors(dims, strides=strides)) for _ in range(2))
    mask = tensors(lambda s: (dims(s)[0], dims(s)[2]), torch.bool)
    weight = tensors(lambda s: (dims(s)[1], dims(s)[3]), torch.float32)
    lse = tensors(lambda s: dims(s)[:3], torch.float32)
    operands = kernels.Operands(q, k, v, weight, mask)
    if launcher == "run_forward":
        kernels.run_forward(operands, out, lse)
        return
    delta, grad = tensors(lambda s: dims(s)[:3], torch.float32), dense_rows(tensors(dims, strides=strides))
    found = torch.empty(batch, heads, n, dim, dtype=STORED)
    if launcher == "run_queries":
        kernels.run_queries(operands, out, grad, lse, delta, found)
    else:
        kernels.run_keys(operands, grad, lse, delta, found, dense_rows(tensors(dims, strides=strides)))


def _offsets() -> list[OffsetCase]:
    """Sequences and heads beyond 2^31 in what launchers allocate; strides beyond it in what callers give."""
    cases = []
    for kernel, launcher in (
        ("_additive_fwd", "run_forward"),
        ("_additive_bwd_queries", "run_queries"),
        ("_additive_bwd_keys", "run_keys"),
    ):
        case = partial(scaled, kernel, function=_beyond, launcher=launcher)
        cases += [
            case("sequences", small=3, offset=2**27, dims=lambda s: (s, 1, 16, 1)),
            case("heads", small=3, offset=2**27, dims=lambda s: (1, s, 1, 16)),
        ]
        for axis, what, extents in ((0, "sequence", (3, 1, 16)), (1, "head", (1, 3, 16)), (2, "token", (1, 1, 16))):
            steps = lambda s, axis=axis: tuple(s if i == axis else n for i, n in enumerate((64, 64, 4, 1)))  # noqa: E731
            dims = lambda s, extents=extents: (*extents, 4)  # noqa: E731
            offset = 2**28 if axis == 2 else 2**30
            cases.append(case(f"{what} stride", small=1024, offset=offset, dims=dims, strides=steps))
    return cases


@dataclass(frozen=True)
class Additive(Layer):
    """N queries and M keys of one head, F hidden features, D channels of values."""

    tokens: int
    keys: int
    features: int
    head_dim: int
    heads: int = 1
    op = "additive_attention"

    def problem(self, batch):
        sizes = batch, self.heads, self.tokens, self.keys, self.features, self.head_dim
        return problem(self.layer, *sizes, padded=batch > 1)

    def eager(self, options):
        def run(q, k, v, weight, key_padding_mask=None):
            scores = torch.einsum("bhnmf,hf->bhnm", torch.tanh(q.unsqueeze(3) + k.unsqueeze(2)), weight)
            if key_padding_mask is not None:
                scores = scores.masked_fill(~key_padding_mask[:, None, None], -1e6)
            return scores.softmax(-1) @ v

        return run

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        widths = ((self.tokens, self.features), (self.keys, self.features), (self.keys, self.head_dim + spare))
        q, k, v = (leaf(batch, n, self.heads, width, dtype=dtype).transpose(1, 2) for n, width in widths)
        weight = leaf(self.heads, self.features, dtype=dtype)
        mask = torch.ones(batch, self.keys, dtype=torch.bool)
        with torch.set_grad_enabled(trained):
            out = vitkern.additive_attention(q, k, v[..., : self.head_dim], weight, key_padding_mask=mask)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        n, m, f, d = self.tokens, self.keys, self.features, self.head_dim
        moved = batch * self.heads * (3 * (n * (f + d) + m * (f + d)) if backward else n * (f + d) + m * (f + d))
        return itemsize * moved, (5 if backward else 1) * 2 * batch * self.heads * n * m * (f + d)

    def __str__(self) -> str:
        return f"{self.layer} H{self.heads} N{self.tokens} M{self.keys} F{self.features} D{self.head_dim}"


def _turns(a, programs):
    """Features of each block of tokens, about: the loop around products holds loops of features."""
    return a["features"] * -(-max(a["M"], a["N"]) // a["BLOCK_N"])


LAYERS = (
    Additive("ViT-S tokens, 64 features", 197, 197, 64, 64, quick=True, compiled="additive-197", everywhere=True),
    Additive("RNNsearch-50", 50, 50, 1000, 256, batch=80, compiled="additive-rnnsearch", everywhere=True),
    Additive("Dive into Deep Learning, decoding", 1, 10, 256, 256, compiled="additive-one-query"),
    Additive("pooling of a long history", 1, 1000, 128, 128),
)
_SIZES = Additive("sizes", 64, 128, 128, 128, timed=False)
LAUNCHES = (
    *compiled(LAYERS),
    Launch("additive-128", _SIZES, everywhere=True),
    Launch("additive-fp32", LAYERS[0], dict(dtype=torch.float32), everywhere=True),
    Launch("additive-fp32-128", _SIZES, dict(dtype=torch.float32), everywhere=True),
    Launch("additive-fp16", LAYERS[0], dict(dtype=torch.float16)),
    Launch("additive-odd-strides", LAYERS[0], dict(spare=3)),
)

_SPILLS = {  # launch, kernel, architecture -> versions of Triton
    ("additive-128", "_additive_bwd_keys", 80): ("3.9",),
    ("additive-128", "_additive_bwd_queries", 90): ("3.6",),
    ("additive-128", "_additive_bwd_queries", 942): ("3.9",),
    ("additive-128", "_additive_fwd", 100): ("3.9",),
    ("additive-197", "_additive_bwd_keys", 120): ("3.9",),
    ("additive-197", "_additive_bwd_queries", 90): (
        "3.9",
        "3.6",
    ),
    ("additive-197", "_additive_bwd_queries", 100): ("3.9",),
    ("additive-fp16", "_additive_bwd_queries", 90): (
        "3.9",
        "3.6",
    ),
    ("additive-fp32", "_additive_bwd_keys", 100): ("3.9",),
    ("additive-fp32", "_additive_bwd_keys", 120): ("3.9",),
    ("additive-fp32-128", "_additive_bwd_keys", 80): ("3.9",),
    ("additive-odd-strides", "_additive_bwd_keys", 90): ("3.9",),
    ("additive-one-query", "_additive_bwd_queries", 90): ("3.6",),
    ("additive-rnnsearch", "_additive_bwd_keys", 90): (
        "3.9",
        "3.6",
    ),
    ("additive-rnnsearch", "_additive_bwd_keys", 100): ("3.9",),
    ("additive-rnnsearch", "_additive_bwd_queries", 90): (
        "3.9",
        "3.6",
    ),
    ("additive-rnnsearch", "_additive_fwd", 80): ("3.9",),
}
_KEPT = "8 to 56 bytes around a loop of thousands of terms: the compiler keeps to two to five programs"

_PADDED, _FAR = problem("padding", 2, 2, 20, 33, 5, 20, padded=True), problem("far", 1, 2, 17, 18, 3, 16, spread=15.0)
_SHARES = problem("shares", 1, 1, 3, 4, 257, 3)
TRIALS = (
    *quick(SINGLE, _PADDED, _FAR, apart=1),
    *quick(SINGLE, problem("one key", 1, 1, 5, 1, 3, 4), problem("empty sequence", 2, 1, 9, 8, 3, 4, padded=True)),
    *quick(SINGLE, _SHARES, apart=1),
    *quick(HALF, _PADDED, _FAR, problem("much further", 1, 1, 18, 16, 3, 8, spread=60.0)),
    *quick(HALF, problem("opposed", 2, 1, 5, 18, 3, 8, opposed=True)),
    *quick(HALF, problem("a tile of a GPU", 1, 1, 65, 70, 3, 16), arch=90),
    *quick(BRAIN, _PADDED, problem("wide", 1, 1, 9, 10, 20, 130)),
)

SPECIMEN = Specimen(
    name="additive_attention",
    check=(
        problem("20 by 30, 8 features", 2, 2, 20, 30, 8, 16),
        problem("padding, an empty sequence", 2, 1, 17, 40, 5, 24, padded=True),
        problem("q and k beyond 20", 1, 2, 18, 20, 6, 32, spread=15.0),
        problem("300 features", 1, 1, 5, 6, 300, 40),
    ),
    case=AdditiveCase,
    draw=draw,
    tiles=tiles,
    weight=2,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=LAUNCHES,
    judges=dict.fromkeys(("additive_attention", "additive/features", "additive/blocks"), Checks(TRIALS)),
    integration={
        "additive_attention": Integration(
            lambda q, k, v, weight: vitkern.additive_attention(q, k, v, weight.sigmoid()),
            lambda n: [(2, 2, n, 3), (2, 2, n + 1, 3), (2, 2, n + 1, 4), (2, 3)],
            products=2 * 2 * 2 * 5 * 6 * (3 + 4),
            batched=(0, 1, 2),
        )
    },
    exceptions={
        **{where: Excuse("spills: ", _KEPT, tritons) for where, tritons in _SPILLS.items()},
        ("additive-odd-strides", "_additive_fwd", 90): Excuse(
            "widest global load is 16 bits", "odd strides: an element is all that is aligned"
        ),
    },
    turns=dict.fromkeys(("_additive_fwd", "_additive_bwd_queries", "_additive_bwd_keys"), _turns),
    faults=(problem("padding", 2, 2, 5, 6, 3, 4, padded=True),),
    survivors={
        "additive_attention._additive_fwd:narrow-accumulator:3": Survivor(
            "tl.float32 -> tl.float16",
            "zero is exact in float16 and the sum is float32 from the first addition on; compiled, the change is "
            "refused",
        ),
        "additive_attention._additive_bwd_queries:drop-float32:3": Survivor(
            "tl.load(weight + head.to(tl.int64) * features + f, mask=f < features, other=0.0).to(tl.float32) -> "
            "tl.load(weight + head.to(tl.int64) * features + f, mask=f < features, other=0.0)",
            "it is multiplied by float32, which widens it",
        ),
        "features.are_near:drop-float32:1": Survivor(
            "tl.zeros_like(i).to(tl.float32) -> tl.zeros_like(i)",
            "the maximum with a float32 is one; compiled, the changing type is refused",
        ),
    },
    modules={"AdditiveAttention": Module((2, 5, 8), dict(query_dim=8, key_dim=8, hidden_dim=6))},
)
