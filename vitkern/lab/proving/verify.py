"""Runs one problem: the operator, the ideal of its dtype, and float64; output and every gradient."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitkern.lab.proving.problem import Problem
from vitkern.lab.proving.sizes import sizes_of
from vitkern.testing import Comparison, Pool, compare

GPU_MARGIN = 1.5  # for rule (a): the hardware's exp2 and order of accumulation are not modelled
GPU_POOLED_MARGIN = 1.07
POOLED_CASES = 20  # of one tensor, for rule (b) to judge it: below, one case decides
POOLED_ELEMENTS = 64
POOLED_SHARE = 0.03
POOLED_ERROR = 1e-3
NOTHING = 1e-6  # of the terms: the formula's value is 0, and a kernel's is what the rounding of the terms leaves,
NOTHING_LEFT = 64.0  # so many eps at most
LEFT = {torch.float32: 4.0}  # else: the ideal adds in one order, a kernel in another, and processors in others
PYTORCH_MARGIN = 2.0  # PyTorch rounds between its operators, where one kernel does not


@dataclass(frozen=True)
class Result:
    """How one tensor of a problem compares; ``name`` is an output, or "d" and an input."""

    name: str
    dtype: torch.dtype
    comparison: Comparison
    magnitude: float
    elements: int
    terms: float = 0.0  # size of the terms whose difference it is; far above ``magnitude``, it is their rounding


class Trial:
    """The operands of one problem in one dtype, and what they should give: in float64, and by an ideal kernel.

    ``arrange(name, tensor)`` may give an operand, or the gradient of an output ("grad out"), other strides, another
    place or other values; the references are computed from what it returns.
    """

    def __init__(
        self,
        problem: Problem,
        dtype: torch.dtype,
        device: torch.device,
        *,
        seed: int = 0,
        reference_device: torch.device | str = "cpu",
        arrange: Callable[[str, Tensor], Tensor] | None = None,
    ):
        self.problem, self._grads = problem, None
        self._generator, self._dtype, self._device = torch.Generator().manual_seed(seed), dtype, device
        self._arrange = arrange or (lambda _, tensor: tensor)
        self.operands = {
            name: None if value is None else self._arranged(name, value)
            for name, value in problem.inputs(self._generator).items()
        }
        half = dtype if dtype != torch.float32 else None
        self._exact = self._solve(problem.reference, torch.float64, reference_device)
        self._ideal = self._solve(problem.reference, torch.float32, reference_device, low_precision=half)

    def actual(self) -> dict[str, Tensor]:
        """The operator's outputs and gradients by name; each call runs it."""
        return self._solve(self.problem.run, None, self._device)

    def results(self, actual: dict[str, Tensor], margin: float = 1.0) -> list[Result]:
        eps = torch.finfo(torch.float32).eps
        sizes = sizes_of(self.problem, self.operands, None if self._grads is None else self._grads[0])
        results = []
        for name, value in actual.items():
            reference = self._exact[name].detach()
            if name not in self.problem.outputs:  # of an operand kept in float32: as good as those of the others
                value = value.to(self._dtype)
            ideal = self._ideal[name].detach().to(value.dtype)
            finite = reference[torch.isfinite(reference)]
            magnitude = finite.abs().max().item() if finite.numel() else 0.0
            terms = sizes.terms.get(name, 0.0)
            left = NOTHING_LEFT if magnitude < NOTHING * terms else LEFT.get(value.dtype, 1.0)
            slack = 2 * eps * (1 + sizes.score) * magnitude + left * torch.finfo(value.dtype).eps * terms
            comparison = compare(value, ideal, reference, slack=slack, margin=margin)
            results.append(Result(name, value.dtype, comparison, magnitude, value.numel(), terms))
        return results

    def _arranged(self, name: str, value: Tensor) -> Tensor:
        dtype = self._dtype if value.is_floating_point() else value.dtype
        return self._arrange(name, value.to(device=self._device, dtype=dtype))

    def _solve(self, function: Callable, width: torch.dtype | None, device, **extra) -> dict[str, Tensor]:
        problem, count = self.problem, self.problem.differentiable
        tensors = {
            name: _leaf(value, width, device, name in problem.gradients) for name, value in self.operands.items()
        }
        outputs = function(**tensors, **problem.options, **extra)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        found = dict(zip(problem.outputs, outputs, strict=True))
        if not problem.gradients:
            return found
        if self._grads is None:
            self._grads = [
                self._arranged(f"grad {name}", torch.randn(out.shape, generator=self._generator, dtype=torch.float64))
                for name, out in list(found.items())[:count]
            ]
        reached = [
            (out, grad.to(out.device, out.dtype))
            for out, grad in zip(outputs[:count], self._grads, strict=True)
            if out.requires_grad  # a sum does not where only the norm's weight has a gradient
        ]
        leaves = [tensors[name] for name in problem.gradients]
        gradients = torch.autograd.grad([out for out, _ in reached], leaves, [grad for _, grad in reached])
        return found | {f"d{name}": grad for name, grad in zip(problem.gradients, gradients, strict=True)}


def verify(
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device,
    *,
    seed: int = 0,
    reference_device: torch.device | str = "cpu",
    margin: float | None = None,
) -> list[Result]:
    """Compare the operator of ``problem`` with float64 by the rule of `vitkern.testing`: each output, each gradient.

    ``margin`` is that of `vitkern.testing.compare`; by default 1, on a GPU `GPU_MARGIN`.
    """
    trial = Trial(problem, dtype, device, seed=seed, reference_device=reference_device)
    return trial.results(trial.actual(), margin or (GPU_MARGIN if device.type == "cuda" else 1.0))


def pool_of(results: Iterable[Result]) -> Pool:
    """Rule (b) over the results of many problems that `says_something`."""
    pool = Pool()
    for result in filter(says_something, results):
        pool.add(result.name, result.dtype, result.comparison, result.magnitude)
    return pool


def pooled_failures(results: Iterable[Result], margin: float = 1.0) -> list[str]:
    """Rule (b), its limit twice as wide for the float32 tensors of a few cases: the ideal's error there is that of one
    order of summation, which differs between processors."""
    results = list(results)
    counts = Counter((result.name, result.dtype) for result in results)
    few = {key for key, count in counts.items() if key[1] == torch.float32 and count < POOLED_CASES}
    failures = pool_of(r for r in results if (r.name, r.dtype) not in few).failures(margin)
    return failures + pool_of(r for r in results if (r.name, r.dtype) in few).failures(2 * margin)


def says_something(result: Result) -> bool:
    """Whether a ratio of mean errors does: not of a few elements, of a difference that is lost in the rounding of its
    terms, or where the ideal has next to no error, as the softmax of one key."""
    comparison, rounding = result.comparison, torch.finfo(result.dtype).eps * result.magnitude
    return (
        result.elements >= POOLED_ELEMENTS
        and math.isfinite(comparison.mean_error)
        and result.magnitude > POOLED_SHARE * result.terms
        and comparison.ideal_mean_error > POOLED_ERROR * rounding
    )


def _leaf(value: Tensor | None, dtype: torch.dtype | None, device, gradient: bool) -> Tensor | None:
    """``dtype`` None: its own."""
    if value is None or not value.is_floating_point():
        return None if value is None else value.to(device)
    return value.detach().to(device=device, dtype=dtype or value.dtype).requires_grad_(gradient)
