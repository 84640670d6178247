"""gradients: every differentiable operator's gradients against finite differences, in double precision."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

from vitkern.lab import proofs, records
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.differentiating.gradient_check import (
    ATOL,
    EPS,
    FAST_ATOL,
    RTOL,
    TOLERANCE,
    Outcome,
    check,
    operators,
    uncovered,
)
from vitkern.lab.processes import submitted
from vitkern.lab.specimens import owned
from vitkern.report import BadInput, near_matches

_OWNED = owned("gradients")
CASES = tuple(case for _, case in _OWNED)
OPERATORS = tuple(dict.fromkeys(case.operator for case in CASES))


def add_arguments(parser) -> None:
    parser.add_argument("ops", nargs="*", metavar="op", help=f"only these operators: {', '.join(OPERATORS)}")
    parser.add_argument(
        "--seed", type=int, help="of the inputs, and of the choice among what is recorded (default: another each time)"
    )
    parser.add_argument("--jobs", type=int, default=0, help="worker processes (default: one per core)")
    proofs.add_arguments(parser)


def run(arguments) -> int:
    for name in arguments.ops:
        if name not in OPERATORS:
            raise BadInput(
                f"lab gradients: unknown operator: got {name!r}; expected one of {', '.join(OPERATORS)}."
                f"{near_matches(name, OPERATORS)}"
            )
    seed = proofs.new_seed() if arguments.seed is None else arguments.seed
    if arguments.jobs < 0 or seed < 0:
        raise BadInput(f"lab gradients: got --jobs {arguments.jobs} --seed {seed}; expected at least 0.")
    started = time.perf_counter()
    if arguments.ops:
        chosen = [i for i, case in enumerate(CASES) if case.operator in arguments.ops]
    else:
        chosen = proofs.chosen("gradients", range(len(CASES)), _operator, arguments.all, seed)
        print(proofs.explain("gradients", Counter(map(_operator, chosen)), seed))
    jobs = min(arguments.jobs or os.cpu_count() or 1, len(chosen))
    print(
        f"{len(chosen)} cases in float64, in {jobs} processes. Values and gradients: within {TOLERANCE:.0e} of the "
        f"formula.\ngradcheck: eps {EPS:.0e}, rtol {RTOL:.0e}, atol {ATOL:.0e} for whole Jacobians, {FAST_ATOL:.0e} "
        "(times torch's factor) for random directions.",
        flush=True,
    )
    outcomes = []
    try:
        for number, outcome in zip(chosen, outcomes_of(chosen, seed, jobs), strict=True):
            outcomes.append(outcome)
            print(line(CASES[number], outcome), flush=True)
    except BrokenProcessPool:
        print(f"verdict: a worker process died at or after {CASES[chosen[len(outcomes)]]}; --jobs 1 shows where")
        return 1
    if arguments.update and not arguments.ops:
        passed = dict(zip(chosen, (not outcome.findings for outcome in outcomes), strict=True))
        proofs.write("gradients", proofs.counted(chosen, _operator, passed.__getitem__))
    whole = proofs.whole(range(len(CASES)), chosen, _operator)
    return _conclude(outcomes, arguments, seed, whole, time.perf_counter() - started)


def _operator(number: int) -> str:
    return _OWNED[number][0]


def outcomes_of(chosen: list[int], seed: int, jobs: int) -> Iterator[Outcome]:
    """Of the cases with these numbers, in order; in this process where ``jobs`` is 1."""
    if jobs == 1:
        for number in chosen:
            yield _check_number(number, seed)
        return
    with submitted(_check_number, [(number, seed) for number in chosen], jobs, _prepare) as calls:
        for call in calls:
            yield call.result()


def _prepare() -> None:
    import torch

    torch.set_num_threads(1)


def _check_number(number: int, seed: int) -> Outcome:
    return check(CASES[number], seed)


def line(case: GradientCase, outcome: Outcome) -> str:
    """One line, and one more for each finding."""
    if outcome.findings:
        shown = "FAILED"
    elif not case.problem.gradients:
        shown = f"value {outcome.value_error:.0e}"
    else:
        how = "whole Jacobian" if case.full else f"{case.seeds} direction{'s' * (case.seeds > 1)}"
        shown = f"value {outcome.value_error:.0e}  gradients {outcome.gradient_error:.0e}  {how}"
        shown += ", deterministic" if case.ordered else ""
    lines = [f"{case!s:<82} {shown}  ({outcome.seconds:.1f} s)", *(f"  {finding}" for finding in outcome.findings)]
    return "\n".join(lines)


def _conclude(outcomes: list[Outcome], arguments, seed: int, whole: set[str], seconds: float) -> int:
    """``whole``: specimens all of whose cases ran; of the others an input may lack a case here."""
    complete = {case.operator for operator, case in _OWNED if operator in whole}
    ops = [op for op in operators() if op.name in (arguments.ops or complete)]
    missing = uncovered(outcomes, ops)
    for entry in missing:
        print(f"FAILED  {entry}")
    failed = [outcome.name for outcome in outcomes if outcome.findings]
    inputs = sum(len(op.differentiable) for op in ops)
    largest = max(outcome.gradient_error for outcome in outcomes)
    summary = f"{len(outcomes)} cases, {len(failed)} failed; {inputs} inputs of {len(ops)} operators, "
    summary += f"{len(missing)} without a case; largest error {largest:.0e}"
    records.write(
        "gradients",
        passed=not failed and not missing,
        summary=summary + (f" (only {' '.join(arguments.ops)})" if arguments.ops else ""),
        seconds=seconds,
        seed=seed,
        failed=failed,
        uncovered=missing,
        largest_error=largest,
        kernels=sorted(frozenset().union(*(outcome.kernels for outcome in outcomes))),
    )
    if failed or missing:
        print(f"verdict: {len(failed)} of {len(outcomes)} cases failed, {len(missing)} inputs have no case")
        return 1
    print(
        f"verdict: all gradients are right: {len(outcomes)} cases, {inputs} differentiable inputs of {len(ops)} "
        f"operators; largest error {largest:.0e}, in {seconds:.0f} s"
    )
    return 0
