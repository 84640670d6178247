"""Runs one case under the memory sanitizer and names everything that is wrong with it."""

import time
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vitkern import dispatch
from vitkern.lab.fuzzing.case import DTYPES, Case
from vitkern.lab.proving.verify import Result, Trial
from vitkern.lab.specimens import gathered


@dataclass(frozen=True)
class Finding:
    """``kind``: "memory", "value", "position", "bits", "operand", "no kernel" or the name of an exception."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(frozen=True)
class Outcome:
    findings: tuple[Finding, ...]
    results: tuple[Result, ...]  # of each tensor that could be compared
    tensors: dict[str, Tensor]  # what the operator gave
    seconds: float


class Unusable(ValueError):
    """The case describes no problem: the formula itself refuses it."""


def run_case(case: Case, seed: int) -> Outcome:
    """Rules (a) and (c) of `vitkern.testing`, the memory sanitizer, untouched operands, and bits in another order.

    Raises:
        Unusable: see there.
    """
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trial = Trial(case.problem(), DTYPES[case.dtype], torch.device("cpu"), seed=seed, arrange=case.arrange)
        except Exception as error:
            raise Unusable(f"{type(error).__name__}: {error}") from error
        actual, findings = _actual(case, trial, "random", seed)
        results = trial.results(actual)
        findings += [finding for result in results if (finding := _judged(result))]
        if case.twice and actual and not findings:
            again, findings = _actual(case, trial, "reverse", seed)
            findings += [
                Finding("bits", f"{name} depends on the order of programs")
                for name, value in again.items()
                if not same_bits(value, actual[name])
            ]
    return Outcome(tuple(findings), tuple(results), actual, time.perf_counter() - started)


def _actual(case: Case, trial: Trial, order: str, seed: int) -> tuple[dict[str, Tensor], list[Finding]]:
    from vitkern.lab.interpreting.sanitizer import MemoryFault, sanitized

    before = {name: _bits(value) for name, value in trial.operands.items() if value is not None}
    findings, actual = [], {}
    try:
        with _block_sizes(case.arch), sanitized(order=order, seed=seed, scratch=gathered("scratch")) as sanitizer:
            actual = trial.actual()
        actual = {name: value.detach() for name, value in actual.items()}
        if not sanitizer.launches and actual["out"].numel():
            findings.append(Finding("no kernel", "the operator launched nothing"))
    except MemoryFault as fault:
        findings.append(Finding("memory", str(fault)))
    except Exception as error:
        findings.append(Finding(type(error).__name__, " ".join(str(error).split())[:600]))
    findings += [
        Finding("operand", f"{name}, or what lies around it, was written to")
        for name, bits in before.items()
        if not torch.equal(bits, _bits(trial.operands[name]))
    ]
    return actual, findings


@contextmanager
def _block_sizes(arch: int):
    from vitkern.kernels.machine import architecture

    with ExitStack() as stack:
        stack.enter_context(dispatch.use_backend("interpreter"))
        if arch:
            stack.enter_context(architecture.forced_arch(arch))
        yield


def _judged(result: Result) -> Finding | None:
    comparison = result.comparison
    if not comparison.positions_agree:
        return Finding("position", f"{result.name} has NaN or infinities in other places than the formula")
    if comparison.passed:
        return None
    figures = f"{comparison.error:.3e}, {comparison.use:.1f} times the allowed {comparison.allowance:.3e}"
    return Finding("value", f"{result.name} is off by {figures}")


def _bits(tensor: Tensor) -> Tensor:
    """A copy of everything in the tensor's storage."""
    return torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()).clone()


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
