"""Policy attention: its problems, random cases, named edge cases, layers of models."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

import vitkern
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.layer import Layer, leaf
from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import SPECIAL, chance, common, thawed
from vitkern.lab.fuzzing.edge import INF, NAN, Edge, nan_only, zero
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.proving.sizes import Sizes, largest
from vitkern.lab.specimens._attention import HEAD_DIMS, length

NAMES = "qkv", "policy"


def problem(
    name: str, batch: int, tokens: int, heads: int, dim: int, *, keep: float = 0.6, soft: bool = False,
    size: float = 1.0, **options,
) -> Problem:  # fmt: skip
    """``keep``: about so many tokens count, for 1, or where ``soft`` for a part of it; ``size`` of the numbers in
    qkv."""

    def inputs(generator):
        qkv = normal(generator, batch, tokens, 3, heads, dim, std=size)
        drawn = torch.rand(batch, tokens, generator=generator, dtype=torch.float64)
        return dict(qkv=qkv, policy=drawn * keep if soft else (drawn < keep).double())

    return Problem("policy_attention", name, inputs, NAMES, options, sizes=_sizes)


def _sizes(operands: dict, options: dict, grad: Tensor | None) -> Sizes:
    q, k, v = operands["qkv"].double().unbind(2)  # (B, N, H, D)
    scale = options.get("scale") or q.shape[-1] ** -0.5
    product = scale * _row(q) * _row(k)
    if grad is None:
        return Sizes(product, {})
    slope = _row(grad) * _row(v) / v.shape[-1] ** 0.5
    dqkv = slope * scale * max(_row(q), _row(k)) / v.shape[-1] ** 0.5
    return Sizes(product, dict(dqkv=dqkv, dpolicy=slope))


def _row(x: Tensor) -> float:
    return largest(x.norm(dim=-1))


@dataclass(frozen=True, kw_only=True)
class PolicyCase(Case):
    """See `problem`."""

    batch: int = 1
    n: int = 1
    heads: int = 1
    dim: int = 1
    keep: float = 0.6
    soft: bool = False
    scale: float | None = None
    eps: float = 1e-6

    def base(self) -> Problem:
        options = dict(keep=self.keep, soft=self.soft, scale=self.scale, eps=self.eps)
        return problem("case", self.batch, self.n, self.heads, self.dim, **options)


def draw(rng: Random) -> PolicyCase:
    drawn = common(rng, NAMES, arch_share=0.5)
    thawed(drawn, NAMES)
    if drawn["dtype"] != "fp32" and chance(rng, 0.7):
        drawn["wide"] = ("policy",)
    batch, n, heads = rng.choice((1, 1, 2, 3)), length(rng), rng.choice((1, 1, 2, 3))
    if chance(rng, SPECIAL) and not drawn["backward"]:
        place = rng.randrange(batch), rng.randrange(n), rng.randrange(3), rng.randrange(heads), 0
        drawn["values"] = {"qkv": ((place, NAN),)}
    return PolicyCase(
        **drawn, batch=batch, n=n, heads=heads, dim=rng.choice((1, *HEAD_DIMS)),
        keep=rng.choice((0.0, 0.3, 0.6, 0.6, 1.0)), soft=chance(rng, 0.3),
        scale=0.3 if chance(rng, 0.2) else None, eps=rng.choice((1e-6, 1e-6, 1e-3)),
    )  # fmt: skip


def tiles(case: PolicyCase) -> int:
    from vitkern.kernels.loop.blocks import stream_forward_config

    itemsize = 4 if case.dtype == "fp32" else 2
    config = stream_forward_config(case.dim, itemsize, case.arch, case.n, True, False, False)
    turns = -(-case.n // config.block_m) * -(-case.n // config.block_n)
    return turns * case.batch * case.heads * (4 if case.backward else 1)


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"policy: {name}", PolicyCase(**dict(batch=2, n=18, heads=2, dim=12) | fields), expected)

    yield edge("no images", batch=0)
    yield edge("no heads", *zero("dpolicy"), heads=0)
    yield edge("no tokens", n=0)
    yield edge("one token", *zero("dpolicy"), n=1, keep=0.0)
    yield edge("one channel", dim=1)
    for tokens in (15, 16, 17, 31, 32, 33):
        yield edge(f"{tokens} tokens", batch=1, n=tokens)
    for dim in (15, 16, 17, 33, 64, 65, 80, 130, 256):
        yield edge(f"head dim {dim}", batch=1, dim=dim, dtype="bf16")
    for dim in (64, 80, 128):
        yield edge(f"head dim {dim}, blocks of a GPU", batch=1, n=70, heads=1, dim=dim, dtype="fp16", arch=90)
    yield edge("all tokens count", keep=1.0)
    yield edge("all tokens count, no eps", keep=1.0, eps=0.0)
    yield edge("no token counts", keep=0.0)
    yield edge("no token counts, no eps", keep=0.0, eps=0.0)
    yield edge("an eps of 1", eps=1.0)
    keys = (0, 2), (0, 18), 1
    for size, name in ((4.0, "far above"), (12.0, "beyond what float32 holds above")):
        large = {"qkv": (((*keys,), 0.1), (((0, 2), 3, 1), size * 12), (((0, 2), (0, 18), 0), 1.0))}
        yield edge(f"a pruned key {name}", values=large | {"policy": ((((0, 2), 3), 0.0),)})
    yield edge("a query far below the keys", values={"qkv": (((*keys,), -9.0), (((0, 2), 3, 1), 9.0))}, keep=0.0)
    yield edge("a policy of 300", values={"policy": (((1, 3), 300.0),)})
    yield edge("NaN in a query", nan_only("out", (1, 3, 1)), values={"qkv": (((1, 3, 0, 1, 5), NAN),)}, backward=False)
    yield edge(
        "NaN in a key", nan_only("out", (1, (0, 18), 1)), values={"qkv": (((1, 3, 1, 1, 5), NAN),)}, backward=False
    )
    one = {"qkv": (((1, 3, 2, 1, 5), NAN),)}
    yield edge("NaN in a value", nan_only("out", (1, (0, 18), 1, 5)), values=one, backward=False)
    yield edge("NaN in a policy", values={"policy": (((1, 3), NAN),)}, backward=False)
    for part in range(3):
        yield edge(f"inf in {'qkv'[part]}", values={"qkv": (((1, 3, part, 1, 5), INF),)}, backward=False)
    yield edge("nothing but zeros", values={"qkv": (((), 0.0),)}, dtype="fp16")
    yield edge("tokens that are all the same", values={"qkv": (((), 0.25),)})
    yield edge("logits of 1e4", factors={"qkv": 60.0}, backward=False)
    yield edge("denormals", factors={"qkv": 1e-40}, backward=False)
    yield edge("small values in fp16", factors={"qkv": 1e-2}, dtype="fp16")
    for layout in ("misaligned", "stepped", "transposed", "expanded", "sliced", "overlapping", "packed"):
        yield edge(f"{layout} operands", layouts=dict.fromkeys((*NAMES, "grad out"), layout), soft=True)
    yield edge("a constant gradient", layouts={"grad out": "constant"})


@dataclass(frozen=True)
class Policy(Layer):
    """``tokens`` of an image, C = heads * head_dim."""

    tokens: int
    heads: int
    head_dim: int
    op = "policy_attention"

    @property
    def scores(self) -> int:
        return self.heads * self.tokens**2

    def problem(self, batch):
        return problem(self.layer, batch, self.tokens, self.heads, self.head_dim)

    def eager(self, options):
        return eager

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        width = 3 * self.heads * self.head_dim
        rows = leaf(batch, self.tokens, width + spare, dtype=dtype)[..., :width]
        qkv = rows.unflatten(-1, (3, self.heads, self.head_dim))
        policy = leaf(batch, self.tokens, 1, dtype=torch.float32)
        with torch.set_grad_enabled(trained):
            out = vitkern.policy_attention(qkv, policy)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        unit = batch * self.tokens * self.heads * self.head_dim
        flops = batch * self.scores * self.head_dim * (10 if backward else 4)
        return itemsize * unit * (8 if backward else 4), flops

    def __str__(self) -> str:
        return f"{self.layer} H{self.heads} N{self.tokens} D{self.head_dim}"


def eager(qkv: Tensor, policy: Tensor) -> Tensor:
    """DynamicViT's, in its order."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D)
    scores = (q @ k.transpose(-2, -1)) * qkv.shape[-1] ** -0.5
    tokens, counts = policy.shape[1], policy[:, None, None, :]
    own = torch.eye(tokens, dtype=counts.dtype, device=counts.device)
    counts = counts + (1.0 - counts) * own
    largest = scores.max(-1, keepdim=True)[0]
    weights = (scores - largest).float().exp_() * counts.float()
    weights = (weights + 1e-6 / tokens) / (weights.sum(-1, keepdim=True) + 1e-6)
    return (weights.type_as(largest) @ v).transpose(1, 2).contiguous()
