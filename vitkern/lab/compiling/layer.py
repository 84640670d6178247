"""Layers of models that people run: what is compiled ahead of time, timed and checked, from one list of shapes.

Work counts inputs read once, results written once and no padding. The backward of attention counts the recomputed
scores: 10 B H N M D, as is the custom.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from vitkern.lab.proving.problem import Problem

SCORES = 2**27  # elements of a score matrix, of all heads, that float64 has room for several times over
BATCH = 2  # of what is compiled: an integer argument of 1 becomes a constant and makes another kernel
MANY = 64  # of what is compiled too where that makes another kernel, whose programs walk over groups
HALF = torch.bfloat16


class Work(NamedTuple):
    moved: int  # bytes
    flops: int


@dataclass(frozen=True)
class Layer:
    """layer: of which model. batch: images of a call on a GPU. quick: the small case of its operator. timed: whether
    the benchmarks have it. compiled: the name of its launch, "" where it is not compiled; everywhere: for every
    architecture.
    """

    layer: str
    batch: int = field(default=64, kw_only=True)
    quick: bool = field(default=False, kw_only=True)
    timed: bool = field(default=True, kw_only=True)
    compiled: str = field(default="", kw_only=True)
    everywhere: bool = field(default=False, kw_only=True)
    op = ""

    @property
    def scores(self) -> int:
        """Elements of the score matrices of an image."""
        return 0

    @property
    def operator(self) -> str:
        """The registered operator that launches kernels for ``op``."""
        return self.op

    def problem(self, batch: int) -> Problem:
        """The case as ``python -m vitkern check`` sees it: inputs, operator, reference."""
        raise NotImplementedError

    def checked(self, images: int) -> Problem:
        """What is verified in place of a batch: ``images`` images."""
        return self.problem(images)

    def eager(self, options: dict) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        """``f(**tensors)`` of `problem` in PyTorch, as models write it; ``options`` are the problem's."""
        raise TypeError(f"{self.op}: nothing to compare with: got a layer without `eager`; expected one. Write it.")

    def launch(self, *, batch: int = BATCH, dtype: torch.dtype = HALF, spare: int = 0, trained: bool = True) -> None:
        """Call the public operator, and its backward, on CPU tensors with a model's strides; nothing is computed.

        spare: unused elements at the end of each row. trained: with the backward.
        """
        raise NotImplementedError

    def work(self, batch: int, itemsize: int, mode: str) -> Work:
        """Of one call in ``mode``: "forward", "backward" or "training", which is both."""
        passes = {"forward": (False,), "backward": (True,), "training": (False, True)}[mode]
        return Work(*map(sum, zip(*(self._work(batch, itemsize, backward) for backward in passes), strict=True)))

    def _work(self, batch: int, itemsize: int, backward: bool) -> tuple[int, int]:
        raise NotImplementedError


@dataclass(frozen=True)
class Launch:
    """``layer`` compiled: ``options`` are those of `Layer.launch` that are not as usual.

    everywhere: on every architecture, as the main paths of a family are, and what it takes for every choice of block
        sizes, every hook and every combination of hooks in a model; else it is a variant of its kernels and is compiled
        for one architecture, of which its name decides: a new launch moves no other.
    of: the launch that it is at another batch, whose architectures are its own.
    alone: the one architecture that has such a kernel. in_pytorch: architectures without one, because its tiles do not
        fit. tf32: float32 products may be TF32.
    """

    name: str
    layer: Layer
    options: dict = field(default_factory=dict)
    everywhere: bool = False
    of: str = ""
    alone: int | None = None
    in_pytorch: tuple[int, ...] = ()
    tf32: bool = False

    def run(self) -> None:
        allowed = torch.backends.cuda.matmul
        before, allowed.allow_tf32 = allowed.allow_tf32, self.tf32
        try:
            self.layer.launch(**(dict(dtype=torch.float32) if self.tf32 else {}) | self.options)
        finally:
            allowed.allow_tf32 = before


def compiled(layers: tuple[Layer, ...]) -> tuple[Launch, ...]:
    """The launches of those that have a name for it."""
    return tuple(Launch(one.compiled, one, everywhere=one.everywhere) for one in layers if one.compiled)


def with_many(launches: Iterable[Launch], *names: str, **fields) -> tuple[Launch, ...]:
    """``launches``, and again those of ``names``, at a batch of `MANY`; ``fields``: of these, where others."""
    launches = tuple(launches)
    by_name = {one.name: one for one in launches}
    fields = [
        dict(name=f"{name}-batch-{MANY}", of=name, options=by_name[name].options | dict(batch=MANY)) | fields
        for name in names
    ]
    return *launches, *(replace(by_name[one["of"]], **one) for one in fields)


def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    """An operand with a gradient; its values are whatever the memory held."""
    return torch.empty(shape, dtype=dtype, requires_grad=True)


def backward(out: Tensor | tuple[Tensor, ...]) -> None:
    """That of the first output."""
    out = out[0] if isinstance(out, tuple) else out
    out.backward(torch.empty_like(out))
