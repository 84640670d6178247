"""Checks one case of gradients: value, gradients and finite differences in double precision, and determinism."""

import importlib
import pkgutil
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import vitkern.ops
from vitkern import register
from vitkern.dispatch import use_backend
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.interpreting.sanitizer import ORDERS, sanitized
from vitkern.lab.interpreting.wide import wide

TOLERANCE = 1e-12  # of a value or gradient, against its largest element or 1; the kernels stay below 1e-14
EPS, ATOL, RTOL = 1e-6, 1e-7, 1e-5  # of torch.autograd.gradcheck
FAST_ATOL = 1e-9  # which torch multiplies by the sums of the two directions
NOTHING = 1e-6  # no gradient of a case is this small throughout
_DROPOUT_SEED = 0


@dataclass(frozen=True)
class Outcome:
    """What one case showed. ``kernels`` were launched; ``graded`` holds (operator, input) that got a gradient."""

    name: str
    value_error: float
    gradient_error: float
    findings: tuple[str, ...]
    kernels: frozenset[str]
    graded: frozenset[tuple[str, str]]
    seconds: float

    @property
    def passed(self) -> bool:
        return not self.findings


def operators() -> list[register.KernelOp]:
    """Every registered operator that has a gradient."""
    for module in pkgutil.iter_modules(vitkern.ops.__path__):
        importlib.import_module(f"vitkern.ops.{module.name}")
    return [op for op in register.operators if op.differentiable]


def uncovered(outcomes: Iterable[Outcome], ops: Iterable[register.KernelOp] | None = None) -> list[str]:
    """Differentiable inputs of ``ops``, by default all, whose gradient no case has computed."""
    graded = set().union(*(outcome.graded for outcome in outcomes))
    pairs = [(op.name, name) for op in (operators() if ops is None else ops) for name in op.differentiable]
    return [f"{op}: no case computes the gradient of {name}" for op, name in pairs if (op, name) not in graded]


class _Graded(TorchDispatchMode):
    """Notes which inputs the backward operators are asked for."""

    def __init__(self):
        super().__init__()
        self.pairs: set[tuple[str, str]] = set()
        self._inputs = {op.backward_overload: (op.name, op.differentiable) for op in operators()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self._inputs:
            name, differentiable = self._inputs[func]
            self.pairs |= {(name, one) for one, needed in zip(differentiable, args[-1], strict=True) if needed}
        return func(*args, **(kwargs or {}))


class _Run:
    """One case on one draw of inputs."""

    def __init__(self, case: GradientCase, seed: int, dtype: torch.dtype):
        self.case, self.problem = case, case.problem
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype
        self.operands = {name: self._leaf(name, value) for name, value in self.problem.inputs(self._generator).items()}
        self.leaves = [self.operands[name] for name in self.names]
        self._cotangents: list[Tensor] | None = None

    @property
    def names(self) -> list[str]:
        return [name for name in self.problem.gradients if name not in self.case.tied]

    def _leaf(self, name: str, value: Tensor | None) -> Tensor | None:
        if value is None or not value.is_floating_point():
            return value
        return value.to(self._dtype).requires_grad_(name in self.problem.gradients)

    def outputs(self, function: Callable, *leaves: Tensor) -> tuple[Tensor, ...]:
        operands = self.operands | dict(zip(self.names, leaves, strict=True))
        operands |= {name: operands[other] for name, other in self.case.tied.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_DROPOUT_SEED)
            found = function(**operands, **self.problem.options)
        return found if isinstance(found, tuple) else (found,)

    def differentiable(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        return self.outputs(self.problem.run, *leaves)[: self.problem.differentiable]

    def solve(self, function: Callable) -> dict[str, Tensor]:
        """Outputs, and the gradients of the leaves for one set of random gradients of the outputs."""
        outputs = self.outputs(function, *self.leaves)
        found = dict(zip(self.problem.outputs, outputs, strict=True))
        if not self.leaves:
            return found
        graded = outputs[: self.problem.differentiable]
        if self._cotangents is None:
            self._cotangents = [
                torch.randn(out.shape, generator=self._generator, dtype=torch.float64).to(out.dtype) for out in graded
            ]
        reached = [pair for pair in zip(graded, self._cotangents, strict=True) if pair[0].requires_grad]
        gradients = torch.autograd.grad([out for out, _ in reached], self.leaves, [grad for _, grad in reached])
        return found | {f"d{name}": grad for name, grad in zip(self.names, gradients, strict=True)}


def check(case: GradientCase, seed: int = 0) -> Outcome:
    """Run ``case`` in double precision; needs TRITON_INTERPRET=1."""
    from vitkern.kernels.machine.launch import redirected

    started, findings, kernels = time.perf_counter(), [], set()
    errors = {False: 0.0, True: 0.0}  # of values, of gradients
    graded = _Graded()

    def execute(kernel, grid, args, constants, options):
        kernels.add(kernel.__name__)
        kernel[grid](*args, **constants, **options)

    with wide(), use_backend("interpreter"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(case.seeds):
            run = _Run(case, seed + number, torch.float64)
            with redirected(execute), graded:
                actual = run.solve(case.problem.run)
            expected = run.solve(case.problem.reference)
            for name, value in actual.items():
                error = _error(value.detach(), expected[name].detach())
                is_gradient = name not in case.problem.outputs
                errors[is_gradient] = max(errors[is_gradient], error)
                if not error <= TOLERANCE:
                    findings.append(f"{name} is {error:.1e} off the formula in float64")
                if is_gradient and name[1:] not in case.constant and expected[name].abs().max() < NOTHING:
                    findings.append(f"{name} is zero throughout, so that this case shows nothing")
            if run.leaves and not findings:  # a finite difference would say the same again, more slowly
                findings += _finite_differences(run)
    if case.ordered:
        findings += _orders(case, seed)
    seconds = time.perf_counter() - started
    return Outcome(str(case), *errors.values(), tuple(findings), frozenset(kernels), frozenset(graded.pairs), seconds)


def _error(actual: Tensor, expected: Tensor) -> float:
    finite = torch.isfinite(expected)
    if actual.shape != expected.shape or not torch.equal(actual[~finite], expected[~finite]):
        return float("inf")
    if not finite.any():
        return 0.0
    error = (actual[finite] - expected[finite]).abs().max() / max(1.0, expected[finite].abs().max().item())
    return error.item()


def _finite_differences(run: _Run) -> list[str]:
    full = run.case.full
    try:
        gradcheck(
            run.differentiable,
            run.leaves,
            eps=EPS,
            atol=ATOL if full else FAST_ATOL,
            rtol=RTOL,
            fast_mode=not full,
            check_undefined_grad=full,  # that a gradient which is not there counts as zero
        )
    except GradcheckError as error:
        return [f"gradcheck: {' '.join(str(error).split())[:200]}"]
    return []


def _orders(case: GradientCase, seed: int) -> list[str]:
    """Outputs and gradients in float32 whose bits differ between two runs, or between orders of the programs."""
    found: dict[str, Tensor] = {}
    findings = []
    for order in ("forward", *ORDERS):
        with sanitized(order=order):
            actual = _Run(case, seed, torch.float32).solve(case.problem.run)
        found = found or actual
        findings += [
            f"{name} in float32 has other bits with programs in {order} order"
            for name, value in actual.items()
            if not torch.equal(value, found[name])
        ]
    return findings
