"""Talking-heads attention: its problems, random cases, named edge cases, layers of models."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

import vitkern
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.layer import Layer, leaf
from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.proving.sizes import Sizes, largest
from vitkern.lab.specimens._attention import HEAD_DIMS, length

HEADS = (1, 2, 3, 4, 6, 8, 9, 16)
MATRICES, BIASES = ("before", "after"), ("before_bias", "after_bias")
GRADIENTS = ("qkv", *MATRICES, "after_bias")  # that of before_bias is 0


def problem(
    name: str, batch: int, tokens: int, heads: int, dim: int, *, plain: bool = False, size: float = 1.0, **options
) -> Problem:
    """``plain``: without biases; ``size`` of the numbers in qkv."""

    def inputs(generator):
        tensors = dict(qkv=normal(generator, batch, tokens, 3, heads, dim, std=size))
        tensors |= {x: normal(generator, heads, heads, std=max(1, heads) ** -0.5) for x in MATRICES}
        return tensors | {x: normal(generator, heads) for x in BIASES if not plain}

    gradients = GRADIENTS[:3] if plain else GRADIENTS
    return Problem("talking_heads_attention", name, inputs, gradients, options, sizes=_sizes)


def _sizes(operands: dict, options: dict, grad: Tensor | None) -> Sizes:
    q, k, v = operands["qkv"].double().unbind(2)  # (B, N, H, D)
    before, after = (largest(operands[name].double().abs().sum(1)) for name in MATRICES)
    scale = options.get("scale") or q.shape[-1] ** -0.5
    product = scale * _row(q) * _row(k)
    if grad is None:
        return Sizes(before * product, {})
    dweights = _row(grad) * _row(v) / v.shape[-1] ** 0.5
    slope = dweights * after  # of the weights of the softmax
    dqkv = slope * before * scale * max(_row(q), _row(k)) / v.shape[-1] ** 0.5
    return Sizes(before * product, dict(dqkv=dqkv, dbefore=slope * product, dafter=dweights, dafter_bias=dweights))


def _row(x: Tensor) -> float:
    return largest(x.norm(dim=-1))


@dataclass(frozen=True, kw_only=True)
class TalkingCase(Case):
    batch: int = 1
    n: int = 1
    heads: int = 1
    dim: int = 1
    scale: float | None = None

    def base(self) -> Problem:
        return problem("case", self.batch, self.n, self.heads, self.dim, scale=self.scale)


# exp(-lse), which a key beyond the last would weigh, is infinite; dbefore is a small difference of large sums
FAR_BELOW_0 = tuple(
    TalkingCase(
        dtype=dtype, batch=2, n=18, heads=3, dim=12, frozen=("before",),
        values={"qkv": ((((0, 2), (0, 18), (0, 2), (0, 3), 0), size),), "before": (((), factor),)},
    )
    for dtype, size, factor in (("fp16", 8.0, -0.5), ("fp32", 6.0, -4.0))
)  # fmt: skip


def draw(rng: Random) -> TalkingCase:
    from vitkern.kernels.talking.blocks import talking_takes

    drawn = common(rng, ("qkv", *MATRICES, *BIASES), arch_share=0.4)
    thawed(drawn, GRADIENTS)
    drawn["without"] = tuple(name for name in BIASES if chance(rng, 0.2))
    if set(GRADIENTS) <= {*drawn["frozen"], *drawn["without"]}:
        drawn["frozen"] = ()
    if drawn["dtype"] != "fp32" and chance(rng, 0.7):
        drawn["wide"] = (*MATRICES, *BIASES)
    itemsize, heads = 4 if drawn["dtype"] == "fp32" else 2, rng.choice(HEADS)
    if not talking_takes(heads, 1, itemsize, drawn["arch"]):
        drawn["arch"] = 0
    fitting = [dim for dim in (1, *HEAD_DIMS) if talking_takes(heads, dim, itemsize, drawn["arch"])]
    return TalkingCase(
        **drawn,
        batch=rng.choice((1, 1, 2, 3)),
        n=length(rng),
        heads=heads,
        dim=rng.choice(fitting),
        scale=0.3 if chance(rng, 0.2) else None,
    )


def tiles(case: TalkingCase) -> int:
    side = -(-case.n // 16)
    lanes = 16 >> (max(1, case.heads) - 1).bit_length()
    return case.batch * -(-side // lanes) * side * (5 if case.backward else 2)


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"talking: {name}", TalkingCase(**dict(batch=2, n=18, heads=3, dim=12) | fields), expected)

    yield edge("no images", batch=0)
    yield edge("no heads", heads=0)
    yield edge("no tokens", n=0)
    yield edge("one token", *zero("dbefore"), n=1)
    yield edge("one channel", dim=1)
    for heads in (1, 2, 4, 5, 7, 8, 9, 15, 16):
        yield edge(f"{heads} heads", batch=1, heads=heads)
    for tokens in (15, 16, 17, 31, 32, 33):
        yield edge(f"{tokens} tokens", batch=1, n=tokens, heads=9)
    for tokens in (63, 64, 65):
        yield edge(f"{tokens} tokens of 4 heads", batch=1, n=tokens, heads=4)
    for dim in (15, 16, 17, 31, 32, 33, 48, 63, 64):
        yield edge(f"head dim {dim}", batch=1, dim=dim, dtype="bf16")
    yield edge("no biases", without=BIASES)
    yield edge("nothing but zeros", *zero("dbefore"), values={"qkv": (((), 0.0),)}, dtype="fp16")
    yield edge("matrices of zeros", values=dict.fromkeys(MATRICES, (((), 0.0),)))
    yield edge("tokens that are all the same", values={"qkv": (((), 0.25),)})
    full = dict(heads=9, backward=False)  # fewer share a program with other tokens
    yield edge("NaN in a query", nan_only("out", (1, 3)), values={"qkv": (((1, 3, 0, 1, 5), NAN),)}, **full)
    yield edge("NaN in a key", nan_only("out", (1,)), values={"qkv": (((1, 3, 1, 1, 5), NAN),)}, **full)
    one = {"qkv": (((1, 3, 2, 1, 5), NAN),)}
    yield edge("NaN in a value", nan_only("out", (1, (0, 18), 1, 5)), values=one, **full)
    for part in range(3):
        yield edge(f"inf in {'qkv'[part]}", values={"qkv": (((1, 3, part, 1, 5), INF),)}, **full)
    yield from (Edge(f"talking: logits far below 0 in {x.dtype}", x) for x in FAR_BELOW_0)
    yield edge("large logits", factors={"before": 300.0}, backward=False)
    yield edge("denormals", factors={"qkv": 1e-40}, backward=False)
    yield edge("small values in fp16", factors={"qkv": 1e-2}, dtype="fp16")
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping", "packed"):
        yield edge(f"{layout} operands", layouts=dict.fromkeys(("qkv", *MATRICES, *BIASES, "grad out"), layout))
    yield edge("a constant gradient", layouts={"grad out": "constant"})
    yield edge("blocks of a GPU", batch=1, n=40, dim=24, dtype="fp16", arch=90)
    yield edge("blocks of a small GPU", batch=1, n=40, dim=16, dtype="fp16", arch=120)
    yield edge("blocks of another maker", batch=1, n=40, dim=24, arch=942)


@dataclass(frozen=True)
class TalkingHeads(Layer):
    """``tokens`` of an image, C = heads * head_dim."""

    tokens: int
    heads: int
    head_dim: int
    op = "talking_heads_attention"

    @property
    def scores(self) -> int:
        return self.heads * self.tokens**2

    def problem(self, batch):
        return problem(self.layer, batch, self.tokens, self.heads, self.head_dim)

    def eager(self, options):
        return _eager

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True, plain=False):
        """plain: without biases."""
        width = 3 * self.heads * self.head_dim
        rows = leaf(batch, self.tokens, width + spare, dtype=dtype)[..., :width]
        qkv = rows.unflatten(-1, (3, self.heads, self.head_dim))
        matrices = [leaf(self.heads, self.heads, dtype=torch.float32) for _ in range(2)]
        biases = [None if plain else leaf(self.heads, dtype=torch.float32) for _ in range(2)]
        with torch.set_grad_enabled(trained):
            out = vitkern.talking_heads_attention(qkv, *matrices, *biases)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        unit, products = batch * self.tokens * self.heads * self.head_dim, 10 if backward else 4
        mixing = 12 if backward else 4
        flops = batch * self.scores * (products * self.head_dim + mixing * self.heads)
        return itemsize * unit * (7 if backward else 4), flops

    def __str__(self) -> str:
        return f"{self.layer} H{self.heads} N{self.tokens} D{self.head_dim}"


def _eager(qkv, before, after, before_bias, after_bias):
    """timm's, in its order."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D)
    mixed = (q * qkv.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    for matrix, bias, last in ((before, before_bias, False), (after, after_bias, True)):
        rows = mixed.permute(0, 2, 3, 1)
        mixed = torch.nn.functional.linear(rows, matrix.to(rows.dtype), bias.to(rows.dtype)).permute(0, 3, 1, 2)
        mixed = mixed if last else mixed.softmax(-1)
    return (mixed @ v).transpose(1, 2).contiguous()
