"""Dense attention: its problems, and a case of one."""

import math
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.drawing import SPECIAL, chance, common
from vitkern.lab.fuzzing.edge import NAN
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.specimens._attention import HEAD_DIMS, length

BIASES = "1hnm", "bhnm", "11nm", "b1nm", "hnm", "nm", "bh1m", "1hn1"  # shapes, see `AttentionCase`
MASKS = "11nm", "b1nm", "bhnm", "nm", "1h1m"


def _learned(generator, bias, sinks: int) -> dict[str, Tensor]:
    """A bias of a shape, or None, and so many ``sinks``."""
    found = {} if bias is None else dict(bias=normal(generator, *bias))
    return found | (dict(sinks=normal(generator, sinks)) if sinks else {})


def problem(
    name: str, shape: tuple, *, keys: int | None = None, kv_heads: int = 0, bias=None, sinks=False, width=0, extra=None,
    outputs=("out",), **options,
) -> Problem:  # fmt: skip
    """``shape`` (B, H, N, D); ``bias`` a learned bias's shape; ``width`` of v where it is not D; ``extra(generator)``
    tensors without a gradient."""
    batch, heads, tokens, dim = shape

    def inputs(generator):
        kv = (batch, kv_heads or heads, tokens if keys is None else keys, dim)
        tensors = dict(q=normal(generator, *shape), k=normal(generator, *kv))
        tensors["v"] = normal(generator, *kv[:3], width or dim)
        return tensors | _learned(generator, bias, sinks * heads) | (extra(generator) if extra else {})

    gradients = ("q", "k", "v", *("bias",) * (bias is not None), *("sinks",) * sinks)
    return Problem("attention", name, inputs, gradients, options, outputs=outputs)


def packed(
    name: str, batch: int, tokens: int, heads: int, dim: int, *, bias=None, sinks=False, extra=None,
    outputs=("out",), **options,
) -> Problem:  # fmt: skip
    """As `problem`, on the output (B, N, 3, H, D) of a joint projection."""

    def inputs(generator):
        tensors = dict(qkv=normal(generator, batch, tokens, 3, heads, dim))
        return tensors | _learned(generator, bias, sinks * heads) | (extra(generator) if extra else {})

    def formula(qkv, **arguments):
        from vitkern.reference.attention import attention

        found = attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0), **arguments)
        return (found[0].transpose(1, 2), *found[1:]) if isinstance(found, tuple) else found.transpose(1, 2)

    gradients = ("qkv", *("bias",) * (bias is not None), *("sinks",) * sinks)
    function = "attention_qkvpacked"
    return Problem("attention", name, inputs, gradients, options, function, outputs=outputs, formula=formula)


@dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    """``share``: query heads that read one key head. ``bias``, ``mask``: the term's dimensions out of "bhnm", "1" where
    it broadcasts; "" for none. ``empty``: queries that the mask lets attend to nothing. ``key_padding``: "some"
    drops random keys, "all" those of the first batch entry too. ``width``: of v where it is not ``dim``."""

    batch: int = 1
    heads: int = 1
    share: int = 1
    n: int = 1
    m: int = 1
    dim: int = 1
    packed: bool = False
    bias: str = ""
    mask: str = ""
    additive: bool = False
    empty: tuple[int, ...] = ()
    key_padding: str = ""
    causal: bool = False
    scale: float | None = None
    lse: bool = False
    width: int = 0
    softcap: float | None = None
    sinks: bool = False

    def _term(self, dimensions: str) -> tuple[int, ...]:
        keys = self.n if self.packed else self.m
        return tuple({"b": self.batch, "h": self.heads, "n": self.n, "m": keys, "1": 1}[d] for d in dimensions)

    def base(self) -> Problem:
        options = dict(causal=self.causal, scale=self.scale, softcap=self.softcap)
        if self.lse:
            options |= dict(return_lse=True, outputs=("out", "lse"))
        terms = dict(bias=self._term(self.bias) if self.bias else None, sinks=self.sinks, extra=self._masks)
        if self.packed:
            return packed("case", self.batch, self.n, self.heads, self.dim, **terms, **options)
        if self.heads % self.share:
            raise ValueError(f"{self.heads} heads in groups of {self.share}")
        shape, kv_heads = (self.batch, self.heads, self.n, self.dim), self.heads // self.share
        return problem("case", shape, keys=self.m, kv_heads=kv_heads, width=self.width, **terms, **options)

    def _masks(self, generator) -> dict[str, Tensor]:
        masks = {}
        if self.mask:
            shape = self._term(self.mask)
            mask = torch.rand(shape, generator=generator) < 0.7
            if self.mask[-2:-1] == "n":
                mask[..., list(self.empty), :] = False
            if self.additive:
                mask = normal(generator, *shape).masked_fill(~mask, -math.inf)
            masks["mask"] = mask
        if self.key_padding:
            keys = self.n if self.packed else self.m
            masks["key_padding_mask"] = torch.rand(self.batch, keys, generator=generator) < 0.7
            if self.key_padding == "all":
                masks["key_padding_mask"][:1] = False
        return masks


def draw(rng: Random) -> AttentionCase:
    packed = chance(rng, 0.25)
    heads = rng.choice((1, 1, 1, 2, 2, 3, 4, 4))
    n, dim = length(rng), rng.choice(HEAD_DIMS)
    m = n if packed or chance(rng, 0.3) else length(rng)
    bias = rng.choice(BIASES) if chance(rng, 0.35) else ""
    mask = rng.choice(MASKS) if chance(rng, 0.3) else ""
    graded = (("qkv",) if packed else ("q", "k", "v")) + ("bias",) * bool(bias)
    drawn = common(rng, graded + ("mask",) * bool(mask), arch_share=0.7)
    if bias and drawn["dtype"] != "fp32" and chance(rng, 0.3):
        drawn["wide"] = ("bias",)
    if not set(drawn["frozen"]) - {"mask"} < set(graded):
        drawn["frozen"] = ()
    case = dict(
        batch=rng.choice((1, 1, 1, 2, 3)),
        heads=heads,
        share=1 if packed else rng.choice([count for count in (1, 2, 2, 3, 4) if heads % count == 0]),
        n=n,
        m=m,
        dim=dim,
        packed=packed,
        bias=bias,
        mask=mask,
        additive=bool(mask) and chance(rng, 0.4),
        empty=tuple(sorted({rng.randrange(n) for _ in range(3)})) if mask[-2:-1] == "n" and chance(rng, 0.5) else (),
        key_padding=rng.choice(("some", "all")) if chance(rng, 0.2) else "",
        causal=chance(rng, 0.2),
        scale=round(rng.choice((0.3, 1.5)) * dim**-0.5, 3) if chance(rng, 0.2) else None,
        lse=chance(rng, 0.3),
        width=rng.choice(HEAD_DIMS) if not packed and chance(rng, 0.1) else 0,
        softcap=rng.choice((0.5, 2.0, 50.0)) if chance(rng, 0.1) else None,
        sinks=chance(rng, 0.1),
    )
    # Where the formula multiplies NaN by the 0 of a forbidden key, a kernel may skip the key, or the whole row.
    forbids = case["causal"] or mask or case["key_padding"]
    if chance(rng, SPECIAL) and not forbids:
        drawn |= _special_rows(rng, "qkv" if packed else rng.choice(("q", "k", "v")), case)
    return AttentionCase(**drawn, **case)


def _special_rows(rng: Random, name: str, case: dict) -> dict:
    batch, token = rng.randrange(case["batch"]), rng.randrange(case["m"] if name in ("k", "v") else case["n"])
    kv_heads = case["heads"] // case["share"]
    head = rng.randrange(kv_heads if name in ("k", "v") else case["heads"])
    index = (batch, token, rng.randrange(3), head) if name == "qkv" else (batch, head, token)
    return dict(values={name: ((index, NAN),)})
