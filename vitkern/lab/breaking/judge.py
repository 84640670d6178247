"""Whether the laboratory finds fault with the kernels of this process, and by what."""

import contextlib
import math
import os
import warnings
from collections import defaultdict
from pathlib import Path

import torch

from vitkern.lab.breaking.checks import Checks, Quick
from vitkern.lab.proving.verify import Result, Trial, pooled_failures
from vitkern.lab.specimens import gathered, merged

TESTS = Path(__file__).resolve().parents[3] / "tests" / "interpreter"
# Tests of how operators are registered, not of what kernels compute.
NOT_OF_KERNELS = "not opcheck and not contract and not compile and not export and not checkpoint"

UNUSABLE = "the tests cannot run"  # nothing is found by that


def fault(checks: Checks, trials: list[Trial], file: str) -> str:
    """The first fault that the list finds, in a line; empty if it finds none.

    The memory sanitizer and rules (a) and (c) after each trial, rule (b) over all of them, then the special checks.
    """
    from vitkern import dispatch

    pools = defaultdict(list)
    with warnings.catch_warnings(), dispatch.use_backend("interpreter"):
        warnings.simplefilter("ignore")
        for one, trial in zip(checks.trials, trials, strict=True):
            found, results = _try(trial, one)
            if found:
                return f"{trial.problem}: {found}"
            if one.pool:
                pools[one.pool] += results
        for results in pools.values():
            if failures := pooled_failures(results):
                return f"rule (b): {failures[0]}"
        for name in checks.special:
            if found := _special(name, file):
                return found
    return ""


def _try(trial: Trial, one: Quick) -> tuple[str, list[Result]]:
    from vitkern.lab.interpreting.sanitizer import MemoryFault, sanitized

    try:
        with _configured(one), sanitized(order="random", scratch=gathered("scratch")):
            actual = trial.actual()
        results = trial.results(actual)
    except MemoryFault as error:
        return f"sanitizer: {error}", []
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", []
    for result in results:
        if not result.comparison.positions_agree:
            return f"rule (c): {result.name} has NaN or infinity in other places", []
        if not result.comparison.use <= 1.0:
            return f"rule (a): {result.name} is {_times(result.comparison.use)} the allowance off", []
    return "", results


@contextlib.contextmanager
def _configured(one: Quick):
    """Imports the kernels, so that an error in one is found as any other."""
    from vitkern.kernels.loop.stream_hopper import descriptors
    from vitkern.kernels.machine import architecture

    forced = architecture.forced_arch(one.arch) if one.arch else contextlib.nullcontext()
    with forced, descriptors(True) if one.descriptors else contextlib.nullcontext():
        yield


def _times(use: float) -> str:
    return f"{use:.3g} times" if math.isfinite(use) else "infinitely many times"


def _special(name: str, file: str) -> str:
    from vitkern.lab.interpreting.interpreter import repaired

    try:
        with repaired():
            found = _offsets(file) if name == "offsets" else merged("properties")[name](torch.device("cpu"))
    except Exception as error:
        found = [f"{type(error).__name__}: {error}"]
    return f"{name}: {found[0]}" if found else ""


def _offsets(file: str) -> list[str]:
    """Offsets beyond 2^31, those of the file's own kernels first."""
    from vitkern.lab.addressing import offsets

    kernels, coverage = offsets.launched_kernels(), offsets.Coverage()
    own = file.replace("/", ".")
    elsewhere = {name: not kernel.fn.__module__.endswith(f".{own}") for name, kernel in kernels.items()}
    for case in sorted(offsets.all_cases(), key=lambda case: elsewhere[case.kernel]):
        if found := offsets.check(case, coverage):
            return found
    return []


def failed_test(checks: Checks) -> str:
    """The first test of the family that fails; empty if none does, or where there are no tests to run."""
    if not checks.tests or not TESTS.is_dir():
        return ""
    import pytest

    class FirstFailure:
        name = ""

        def pytest_runtest_logreport(self, report):
            if report.failed and not self.name:
                self.name = report.nodeid

    plugin = FirstFailure()
    os.chdir(TESTS.parent.parent)
    files = [str(TESTS / name) for name in checks.tests]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", NOT_OF_KERNELS, *files], plugins=[plugin])
    if code == pytest.ExitCode.OK:
        return ""
    if code == pytest.ExitCode.TESTS_FAILED:
        return f"test: {plugin.name}"
    return f"{UNUSABLE}: pytest ends with {code!r}"
