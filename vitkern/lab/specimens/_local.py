"""Local attention as problems and as layers of models: which tokens of an image a token sees is a matter of where it
lies."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

import vitkern
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.layer import Layer, leaf
from vitkern.lab.proving.grouping import Groups
from vitkern.lab.proving.problem import Problem, normal

Pair = tuple[int, int]


def _shapes(
    image: Pair, block: Pair, halo: Pair, border: str, *, heads: int, dim: int, batch: int, table: bool, rel: bool,
    padding: bool,
) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Of the operands of `local_attention`."""
    extent = [b + 2 * h for b, h in zip(block, halo, strict=True)]
    found = dict(qkv=(batch, *image, 3 * heads * dim))
    if table:
        reach = [e - 1 if border == "clamp" else b + h - 1 for e, b, h in zip(extent, block, halo, strict=True)]
        found["table"] = (heads, *(2 * r + 1 for r in reach))
    if rel:
        found |= {name: (batch, *image, heads, e) for name, e in zip(("rel_h", "rel_w"), extent, strict=True)}
    if padding:
        found["padding"] = (3 * heads * dim,)
    return found


def problem(
    name: str, image: Pair, block: Pair, halo: Pair = (0, 0), border: str = "keep",
    *, heads=2, dim=16, batch=1, table=False, rel=False, padding=False, lse=False, family="", **options,
) -> Problem:  # fmt: skip
    """``image`` (img_h, img_w). ``table``, ``rel``, ``padding``: such operands are given; ``lse``: it is returned."""
    sizes = dict(heads=heads, dim=dim, batch=batch, table=table, rel=rel, padding=padding)
    shapes = _shapes(image, block, halo, border, **sizes)

    def inputs(generator):
        return {name: normal(generator, *shape) for name, shape in shapes.items()}

    options |= dict(num_heads=heads, block=block, halo=halo, border=border)
    options |= dict(return_lse=True) if lse else {}
    outputs = ("out", "lse") if lse else ("out",)
    found = dict(outputs=outputs, differentiable=len(outputs), family=family)
    return Problem("local_attention", name, inputs, tuple(shapes), options, **found)


class Pattern(NamedTuple):
    """How `local_attention` is called, alike in both directions; ``table``, ``rel``, ``padding`` and ``lse`` as in
    `problem`."""

    block: int = 1
    halo: int = 0
    border: str = "keep"
    dilation: int = 1
    neighbor: Pair | None = None
    table: bool = False
    rel: bool = False
    padding: bool = False
    lse: bool = False


@dataclass(frozen=True)
class Local(Layer):
    """A square image of ``side`` tokens, C channels; head dim is C / H."""

    side: int
    channels: int
    heads: int
    operator = "local_attention"
    vectors = 0  # learnt ones that a query is multiplied with, beside the keys
    scale: ClassVar[float | None] = None  # of the scores; D ** -0.5 by default

    @property
    def head_dim(self) -> int:
        return self.channels // self.heads

    @property
    def seen(self) -> float:
        """Keys of a query, in the mean."""
        raise NotImplementedError

    @property
    def keys(self) -> int:
        """Keys of a group, see `groups`."""
        return self.seen

    @property
    def scores(self) -> int:
        return self.heads * self.side**2 * self.keys

    def pattern(self) -> Pattern:
        """What reaches the kernels."""
        raise NotImplementedError

    def groups(self, **tensors) -> Groups:
        """The layer as queries in groups with copies of their keys; ``tensors`` are those of `problem`."""
        raise NotImplementedError

    def _grouped(
        self, batch: int, options: dict, kind=Problem, function: str = "", tokens: int = 0, **learnt
    ) -> Problem:
        """On qkv, and on tensors of the shapes ``learnt``. ``tokens``: of a sequence in place of the image."""
        shapes = dict(qkv=(batch, *((tokens,) if tokens else (self.side,) * 2), 3 * self.channels)) | learnt

        def inputs(generator):
            std = self.head_dim**-0.5
            return {n: normal(generator, *shape, std=std if "rel" in n else 1.0) for n, shape in shapes.items()}

        def formula(low_precision=None, **arguments):
            from vitkern.reference.attention import attention

            of = self.groups(**{name: arguments[name] for name in shapes}, low_precision=low_precision)
            options = dict(scale=self.scale, low_precision=low_precision)
            return of.image(attention(of.q, of.k, of.v, bias=of.added(), **options))

        options = dict(num_heads=self.heads) | options
        return kind(self.op, self.layer, inputs, tuple(shapes), options, function, formula=formula)

    def _near(self, batch: int) -> tuple[Problem, dict[str, tuple[int, ...]]]:
        """It as a problem of `local_attention`, and the shapes of its operands."""
        of, image = self.pattern(), (self.side,) * 2
        where = image, (of.block,) * 2, (of.halo,) * 2, of.border
        sizes = dict(heads=self.heads, dim=self.head_dim, batch=batch, table=of.table, rel=of.rel, padding=of.padding)
        options = dict(lse=of.lse, dilation=(of.dilation,) * 2, neighbor=of.neighbor)
        return problem(self.layer, *where, **sizes, **options), _shapes(*where, **sizes)

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        near, shapes = self._near(batch)
        *rows, width = shapes.pop("qkv")
        operands = dict(qkv=leaf(*rows, width + spare, dtype=dtype)[..., :width])
        for name, shape in shapes.items():
            operands[name] = leaf(*shape, dtype=torch.float32 if name == "table" else dtype)
        with torch.set_grad_enabled(trained):
            out = vitkern.local_attention(**operands, **near.options)
        if trained and isinstance(out, tuple):
            torch.autograd.backward(out, [torch.empty_like(one) for one in out])
        elif trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        unit = batch * self.side**2 * self.channels
        flops = unit * ((10 if backward else 4) * self.seen + (4 if backward else 2) * self.vectors)
        return itemsize * unit * (7 if backward else 4), round(flops)

    def __str__(self) -> str:
        return f"{self.layer} {self.side}x{self.side} C{self.channels} H{self.heads}"


@dataclass(frozen=True)
class Near(Local):
    """A layer as the operator itself has it."""

    seen_as: Pattern
    op = "local_attention"

    @property
    def seen(self) -> int:
        return (self.seen_as.block + 2 * self.seen_as.halo) ** 2

    @property
    def vectors(self) -> int:
        return 2 * (self.seen_as.block + 2 * self.seen_as.halo) * self.seen_as.rel

    def pattern(self):
        return self.seen_as

    def problem(self, batch):
        return self._near(batch)[0]

    def __str__(self) -> str:
        usual, given = Pattern()._asdict(), self.seen_as._asdict()
        words = (name if value is True else f"{name} {value}" for name, value in given.items() if value != usual[name])
        return f"{super().__str__()}: {', '.join(words)}"
