"""Cases: everything that one run of an operator depends on, as plain values that print, compare and shrink.

A default is the simplest value of its field. A case is a `Problem` (shapes, options, special values) in a dtype, with
its operands laid out in some way, by the block sizes of some architecture.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitkern.lab.fuzzing.layouts import LAYOUTS, lay_out
from vitkern.lab.proving.problems import (
    Problem,
    attention_problem,
    layernorm_problem,
    local_problem,
    mlp_problem,
    normal,
    packed_problem,
    sparse_problem,
    window_problem,
)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the cases of all operators have in common.

    dtype: of the operands, but for those in ``wide``, which are float32.
    arch: whose block sizes run; 0 the interpreter's own.
    backward: whether gradients are computed; ``frozen`` names operands that get none.
    without: operands left out.
    layouts: operand, or "grad out" -> one of `LAYOUTS`; contiguous where not named.
    factors: operand -> a number that it is multiplied by.
    values: operand -> ((index, value), ...); the part of it at ``index`` is set: a number or a (start, stop) for each
        dimension, the last ones may be missing.
    twice: whether another order of programs must give the same bits.
    """

    dtype: str = "fp32"
    arch: int = 0
    backward: bool = True
    twice: bool = False
    without: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    layouts: dict[str, str] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    values: dict[str, tuple] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether its numbers are random and of ordinary size, so that rule (b) speaks of them."""
        return not self.factors and not self.values

    def base(self) -> Problem:
        """The problem before operands are left out or changed."""
        raise NotImplementedError

    def problem(self) -> Problem:
        base = self.base()
        gradients = [name for name in base.gradients if name not in (*self.frozen, *self.without)]

        def inputs(generator):
            operands = base.inputs(generator)
            for name, factor in self.factors.items():
                operands[name] = operands[name] * factor
            for name, settings in self.values.items():
                for index, value in settings:
                    operands[name][place(index)] = float(value)
            return operands | dict.fromkeys(self.without)

        return dataclasses.replace(base, inputs=inputs, gradients=tuple(gradients) if self.backward else ())

    def arrange(self, name: str, tensor: Tensor) -> Tensor:
        """An operand as this case has it: see `vitkern.lab.proving.verify.Trial`."""
        if name in self.wide:
            tensor = tensor.float()
        return lay_out(tensor, self.layouts.get(name, "contiguous"))

    def described(self) -> dict:
        """Its fields that are not the simplest."""
        fields = ((entry, getattr(self, entry.name)) for entry in dataclasses.fields(self))
        return {entry.name: value for entry, value in fields if value != simplest(entry)}

    def __str__(self) -> str:
        return json.dumps(self.described())


def place(index) -> tuple:
    """Numbers and (start, stop) pairs as PyTorch indexes with them."""
    return tuple(one if isinstance(one, int) else slice(*one) for one in index)


def simplest(entry: dataclasses.Field):
    return entry.default if entry.default is not dataclasses.MISSING else entry.default_factory()


@dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    """``share``: query heads that read one key head. ``bias``, ``mask``: the term's dimensions out of "bhnm", "1" where
    it broadcasts; "" for none. ``empty``: queries that the mask lets attend to nothing. ``key_padding``: "some"
    drops random keys, "all" those of the first batch entry too."""

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

    def _term(self, dimensions: str) -> tuple[int, ...]:
        keys = self.n if self.packed else self.m
        return tuple({"b": self.batch, "h": self.heads, "n": self.n, "m": keys, "1": 1}[d] for d in dimensions)

    def base(self) -> Problem:
        options = dict(causal=self.causal, scale=self.scale)
        if self.lse:
            options |= dict(return_lse=True, outputs=("out", "lse"))
        terms = dict(bias=self._term(self.bias) if self.bias else None, extra=self._masks)
        if self.packed:
            return packed_problem("case", self.batch, self.n, self.heads, self.dim, **terms, **options)
        if self.heads % self.share:
            raise ValueError(f"{self.heads} heads in groups of {self.share}")
        shape, kv_heads = (self.batch, self.heads, self.n, self.dim), self.heads // self.share
        return attention_problem("case", shape, keys=self.m, kv_heads=kv_heads, **terms, **options)

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
        base = window_problem(
            "case", tuple(self.image), tuple(self.window), **sizes, cosine=self.temperature is not None, **options
        )
        if self.temperature is None:
            return base

        def inputs(generator):
            operands = base.inputs(generator)
            return operands | dict(logit_scale=operands["logit_scale"] + (self.temperature - 2.0))

        return dataclasses.replace(base, inputs=inputs)


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
        return local_problem("case", tuple(self.image), tuple(self.block), tuple(self.halo), self.border, **options)


@dataclass(frozen=True, kw_only=True)
class SparseCase(Case):
    """``sampled`` of the queries attend, all with 0."""

    batch: int = 1
    heads: int = 1
    n: int = 1
    m: int = 1
    dim: int = 1
    sampled: int = 0
    gated: bool = False
    padded: bool = False
    strength: float = 10.0
    scale: float | None = None

    def base(self) -> Problem:
        if self.sampled > self.n:
            raise ValueError(f"{self.sampled} of {self.n} queries")
        sizes = (self.batch, self.heads, self.n, self.m, self.dim)
        terms = dict(sampled=self.sampled, gated=self.gated, padded=self.padded)
        return sparse_problem("case", *sizes, **terms, strength=self.strength, scale=self.scale)


@dataclass(frozen=True, kw_only=True)
class LayerNormCase(Case):
    """``shape``: all dimensions before the channels."""

    shape: tuple[int, ...] = (1,)
    channels: int = 1
    residual: bool = False
    offset: float = 0.0
    eps: float = 1e-5

    def base(self) -> Problem:
        return layernorm_problem(
            "case", tuple(self.shape), self.channels, residual=self.residual, offset=self.offset, eps=self.eps
        )


@dataclass(frozen=True, kw_only=True)
class MLPCase(Case):
    """Without "layer_scale" and "row_scale" it has none; both are there by default."""

    batch: int = 1
    tokens: int = 1
    channels: int = 1
    hidden: int = 1
    act: str = "gelu"
    post_norm: bool = False
    eps: float = 1e-5

    def base(self) -> Problem:
        options = dict(act=self.act, post_norm=self.post_norm, eps=self.eps)
        return mlp_problem("case", self.batch, self.tokens, self.channels, self.hidden, scales=True, **options)


CASES = {
    "attention": AttentionCase,
    "window_attention": WindowCase,
    "local_attention": LocalCase,
    "sparse_attention": SparseCase,
    "layernorm": LayerNormCase,
    "layernorm_mlp": MLPCase,
}


def op_of(case: Case) -> str:
    return next(op for op, kind in CASES.items() if type(case) is kind)


def read_case(op: str, text: str) -> Case:
    """The inverse of ``str(case)``.

    Raises:
        ValueError: no JSON object of that operator's fields.
    """
    fields = json.loads(text)
    known = {entry.name for entry in dataclasses.fields(CASES[op])}
    if not isinstance(fields, dict) or not fields.keys() <= known:
        raise ValueError(f"expected a JSON object with some of {', '.join(sorted(known))}")
    for name, layout in fields.get("layouts", {}).items():
        if layout not in LAYOUTS:
            raise ValueError(f"the layout of {name} is {layout!r}; expected one of {', '.join(LAYOUTS)}")
    return CASES[op](**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
