"""A problem: an operator on one set of inputs, and the formula that computes the same in float64."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Problem:
    """One operator on one set of inputs.

    ``inputs(generator)`` returns float64 (or bool, or int) CPU tensors by argument name; ``gradients`` names those that
    get one. ``outputs`` names what the operator returns, the first ``differentiable`` of which have a gradient.
    ``family``: the operator or module, without a kernel of its own, that calls ``op`` so. ``sizes(operands, options,
    grad)``: its `sizes.Sizes`, for an operator other than attention whose logits or gradients need them.
    """

    op: str
    name: str
    inputs: Callable[[Generator], dict[str, Tensor]]
    gradients: tuple[str, ...]
    options: dict = field(default_factory=dict)
    function: str = ""
    outputs: tuple[str, ...] = ("out",)
    differentiable: int = 1
    formula: Callable | None = None
    family: str = ""
    sizes: Callable | None = None

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"

    @property
    def run(self) -> Callable:
        """The public function of `vitkern.ops`."""
        return self._function("ops")

    @property
    def reference(self) -> Callable:
        """The same function of `vitkern.reference`, or ``formula``; also takes ``low_precision``."""
        return self.formula or self._function("reference")

    def _function(self, layer: str) -> Callable:
        return getattr(importlib.import_module(f"vitkern.{layer}.{self.op}"), self.function or self.op)


def normal(generator: Generator, *shape: int, std: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * std


def only(problem: Problem, *names: str) -> Problem:
    """A gradient for these inputs alone."""
    return replace(problem, name=f"{problem.name}, only d{' d'.join(names)}", gradients=names)


def without(problem: Problem, *names: str) -> Problem:
    """Less some operands: they are None."""

    def inputs(generator):
        return problem.inputs(generator) | dict.fromkeys(names)

    kept = tuple(name for name in problem.gradients if name not in names)
    return replace(problem, name=f"{problem.name}, without {' '.join(names)}", inputs=inputs, gradients=kept)


def forward_alone(problem: Problem) -> Problem:
    """Without a gradient, where other kernels may run."""
    return replace(problem, name=f"{problem.name}, forward alone", gradients=())
