"""Attention of normalised queries and keys: its problems, random cases, named edge cases, layers of models."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
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

WEIGHTS, BIASES = ("q_weight", "k_weight"), ("q_bias", "k_bias")
PARAMETERS = (*WEIGHTS, *BIASES)
GRADIENTS = ("qkv", *WEIGHTS, "q_bias")  # that of k_bias is 0


def problem(
    name: str, batch: int, tokens: int, heads: int, dim: int, *, rms: bool = False, plain: bool = False,
    offset: float = 0.5, **options,
) -> Problem:  # fmt: skip
    """``rms``: RMSNorm; ``plain``: without parameters; ``offset``: mean of the numbers in qkv."""
    names = () if plain else WEIGHTS if rms else PARAMETERS

    def inputs(generator):
        tensors = dict(qkv=offset + normal(generator, batch, tokens, 3, heads, dim))
        return tensors | {x: (x in WEIGHTS) + normal(generator, dim, std=0.4) for x in names}

    gradients = tuple(x for x in GRADIENTS if x in ("qkv", *names))
    options |= dict(norm="rmsnorm") if rms else {}
    return Problem("qk_norm_attention", name, inputs, gradients, options, sizes=_sizes)


def _sizes(operands: dict, options: dict, grad: Tensor | None) -> Sizes:
    q, k, v = operands["qkv"].double().unbind(2)  # (B, N, H, D)
    dim, eps = q.shape[-1], options.get("eps", 1e-6)
    steepest = 1.0
    for x in (q, k):
        centred = x - x.mean(-1, keepdim=True) if options.get("norm") != "rmsnorm" else x
        steepest = max(steepest, largest((centred.square().mean(-1) + eps).rsqrt()))
    weights = [operands.get(x) for x in PARAMETERS]
    weight = max(1.0, *(largest(x) for x in weights if x is not None), 0.0)
    row = 2 * weight * dim**0.5  # of what is normalised
    scale = options.get("scale") or dim**-0.5
    if grad is None:
        return Sizes(scale * row * row, {})
    slope = largest(grad.norm(dim=-1)) * largest(v.norm(dim=-1)) / dim**0.5
    of_row = slope * scale * row / dim**0.5
    terms = dict.fromkeys(("dq_weight", "dk_weight", "dq_bias"), of_row)
    return Sizes(scale * row * row, terms | dict(dqkv=of_row * weight * steepest))


@dataclass(frozen=True, kw_only=True)
class QkNormCase(Case):
    """See `problem`."""

    batch: int = 1
    n: int = 1
    heads: int = 1
    dim: int = 1
    rms: bool = False
    plain: bool = False
    offset: float = 0.5
    scale: float | None = None
    eps: float = 1e-6

    def base(self) -> Problem:
        options = dict(rms=self.rms, plain=self.plain, offset=self.offset, scale=self.scale, eps=self.eps)
        return problem("case", self.batch, self.n, self.heads, self.dim, **options)


def draw(rng: Random) -> QkNormCase:
    rms, plain = chance(rng, 0.4), chance(rng, 0.2)
    names = () if plain else WEIGHTS if rms else PARAMETERS
    drawn = common(rng, ("qkv", *names), arch_share=0.5)
    drawn["without"] = tuple(name for name in names if chance(rng, 0.15))
    thawed(drawn, tuple(x for x in GRADIENTS if x in ("qkv", *names) and x not in drawn["without"]))
    if drawn["dtype"] != "fp32" and chance(rng, 0.7):
        drawn["wide"] = names
    for name in drawn["without"]:
        drawn["layouts"].pop(name, None)
    batch, n, heads = rng.choice((1, 1, 2, 3)), length(rng), rng.choice((1, 1, 2, 3))
    if chance(rng, SPECIAL) and not drawn["backward"]:
        place = rng.randrange(batch), rng.randrange(n), rng.randrange(3), rng.randrange(heads), 0
        drawn["values"] = {"qkv": ((place, NAN),)}
    return QkNormCase(
        **drawn, batch=batch, n=n, heads=heads, dim=rng.choice(HEAD_DIMS), rms=rms, plain=plain,
        offset=rng.choice((0.0, 0.5, 3.0)), scale=0.3 if chance(rng, 0.2) else None, eps=rng.choice((1e-6, 1e-5)),
    )  # fmt: skip


def tiles(case: QkNormCase) -> int:
    from vitkern.kernels.loop.blocks import stream_forward_config

    itemsize = 4 if case.dtype == "fp32" else 2
    config = stream_forward_config(case.dim, itemsize, case.arch, case.n, True, False, False)
    turns = -(-case.n // config.block_m) * -(-case.n // config.block_n)
    return turns * case.batch * case.heads * (4 if case.backward else 1)


def edges() -> Iterator[Edge]:
    def edge(name, *expected, **fields):
        return Edge(f"qk norm: {name}", QkNormCase(**dict(batch=2, n=18, heads=2, dim=12) | fields), expected)

    none = zero("dq_weight", "dk_weight", "dq_bias")
    yield edge("no images", *none, batch=0)
    yield edge("no heads", *none, heads=0)
    yield edge("no tokens", *none, n=0)
    yield edge("one token", n=1)
    for rms in (False, True):
        norm = "RMSNorm" if rms else "LayerNorm"
        for tokens in (15, 16, 17, 33):
            yield edge(f"{tokens} tokens, {norm}", batch=1, n=tokens, rms=rms)
        for dim in (2, 15, 16, 17, 33, 64, 72, 80, 130):
            yield edge(f"head dim {dim}, {norm}", batch=1, dim=dim, rms=rms, dtype="bf16")
        for dim in (64, 80):
            options = dict(batch=1, n=70, heads=1, dim=dim, dtype="fp16", arch=90)
            yield edge(f"head dim {dim}, {norm}, blocks of a GPU", rms=rms, **options)
        yield edge(f"no parameters, {norm}", rms=rms, plain=True)
        yield edge(f"an eps of 1, {norm}", rms=rms, eps=1.0)
    for name in PARAMETERS:
        yield edge(f"no {name}", without=(name,))
    yield edge("one channel", dim=1)
    yield edge("head dim 256", dim=256, batch=1, heads=1, dtype="fp16")
    yield edge("a mean far above", offset=100.0, eps=1e-3, backward=False)
    yield edge("a bias of the keys of 30", values={"k_bias": (((), 30.0),)})
    yield edge("rows of zeros", values={"qkv": (((0, 3), 0.0),)})
    yield edge("nothing but zeros", values={"qkv": (((), 0.0),)}, dtype="fp16")
    yield edge("NaN in a query", nan_only("out", (1, 3, 1)), values={"qkv": (((1, 3, 0, 1, 5), NAN),)}, backward=False)
    yield edge(
        "NaN in a key", nan_only("out", (1, (0, 18), 1)), values={"qkv": (((1, 3, 1, 1, 5), NAN),)}, backward=False
    )
    one = {"qkv": (((1, 3, 2, 1, 5), NAN),)}
    yield edge("NaN in a value", nan_only("out", (1, (0, 18), 1, 5)), values=one, backward=False)
    for part in range(3):
        yield edge(f"inf in {'qkv'[part]}", values={"qkv": (((1, 3, part, 1, 5), INF),)}, backward=False)
    yield edge("large values", factors={"qkv": 300.0}, backward=False)
    yield edge("denormals", factors={"qkv": 1e-40}, backward=False)
    for layout in ("misaligned", "stepped", "transposed", "sliced", "overlapping", "packed", "expanded"):
        yield edge(f"{layout} operands", layouts=dict.fromkeys(("qkv", *PARAMETERS, "grad out"), layout))
    yield edge("a constant gradient", layouts={"grad out": "constant"})


@dataclass(frozen=True)
class QkNorm(Layer):
    """``tokens`` of an image, C = heads * head_dim; ``biased``: the norms have biases."""

    tokens: int
    heads: int
    head_dim: int
    biased: bool = True
    op = "qk_norm_attention"

    @property
    def scores(self) -> int:
        return self.heads * self.tokens**2

    def problem(self, batch):
        return problem(self.layer, batch, self.tokens, self.heads, self.head_dim, rms=False)

    def eager(self, options):
        return eager

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True, rms=False, plain=False):
        width = 3 * self.heads * self.head_dim
        rows = leaf(batch, self.tokens, width + spare, dtype=dtype)[..., :width]
        qkv = rows.unflatten(-1, (3, self.heads, self.head_dim))
        names = () if plain else PARAMETERS if self.biased and not rms else WEIGHTS
        parameters = {x: leaf(self.head_dim, dtype=torch.float32) for x in names}
        with torch.set_grad_enabled(trained):
            out = vitkern.qk_norm_attention(qkv, **parameters, norm="rmsnorm" if rms else "layernorm")
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        unit = batch * self.tokens * self.heads * self.head_dim
        flops = batch * self.scores * self.head_dim * (10 if backward else 4)
        return itemsize * unit * (8 if backward else 4), flops

    def __str__(self) -> str:
        return f"{self.layer} H{self.heads} N{self.tokens} D{self.head_dim}"


def eager(
    qkv: Tensor, q_weight: Tensor | None = None, q_bias: Tensor | None = None, k_weight: Tensor | None = None,
    k_bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """timm's, in its order."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D)
    dim, dtype = qkv.shape[-1:], qkv.dtype
    given = [None if x is None else x.to(dtype) for x in (q_weight, q_bias, k_weight, k_bias)]
    q, k = F.layer_norm(q, dim, *given[:2], 1e-6), F.layer_norm(k, dim, *given[2:], 1e-6)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
