"""check: each kernel against float64, output and every gradient; exit code 1 on failure."""

import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext

import torch

from vitkern import dispatch
from vitkern.commands.again import again
from vitkern.lab.fuzzing.case import DTYPES
from vitkern.lab.proving.problem import Problem
from vitkern.lab.proving.verify import GPU_POOLED_MARGIN, PYTORCH_MARGIN, Result, pool_of, pooled_failures, verify
from vitkern.lab.specimens import gathered, specimens, views
from vitkern.report import BadInput, counted, near_matches, table
from vitkern.testing import Pool

PROBLEMS = sorted(gathered("check"), key=lambda case: case.op)
OPS = tuple(specimens())
FAMILIES = {name: family.of for name, family in views().items()}  # what has no kernel of its own -> its operator
KNOWN = [*OPS, *FAMILIES]


def add_arguments(parser) -> None:
    parser.add_argument(
        "op", nargs="*", help=f"operators, or first words of theirs, of {', '.join(KNOWN)}; all unless given"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="all three unless given")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="cuda where there is a GPU unless given; cpu interprets the kernels"
    )
    parser.add_argument("--pytorch", action="store_true", help="check the PyTorch path instead of the kernels")
    parser.add_argument("--all", action="store_true", help="a line for each tensor, not only for the worst of a case")


def run(arguments) -> int:
    named = dict.fromkeys(found for name in arguments.op for found in _named(name)) or OPS
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(
            "--device cuda was given, and torch sees no GPU. Leave it out to interpret the kernels on the CPU."
        )
    backend = "torch" if arguments.pytorch else "interpreter" if device.type == "cpu" else "triton"
    if backend != "torch" and not dispatch.HAS_TRITON:
        raise BadInput("Triton is not installed, so there is no kernel to check. --pytorch checks the PyTorch path.")
    if backend != "torch" and (backend == "interpreter") != dispatch.INTERPRETED:
        return again(arguments.argv, interpreted=backend == "interpreter")
    dtypes = [DTYPES[arguments.dtype]] if arguments.dtype else list(DTYPES.values())
    cases = [case for case in PROBLEMS if case.op in named or case.family in named]
    place = {
        "torch": f"the PyTorch path on {device}",
        "interpreter": "kernels in Triton's interpreter",
        "triton": f"kernels on {device}",
    }
    with dispatch.use_backend(backend), _repaired() if backend == "interpreter" else nullcontext():
        if backend != "torch" and (reasons := dispatch.why_not([torch.empty(0, device=device)])):
            raise BadInput(f"the kernels cannot run here: {'; '.join(reasons)}.")
        print(
            f"{place[backend]} against float64; use is the error over what the tolerance rule allows (vitkern.testing)"
        )
        for name in named:
            if name in FAMILIES:
                print(f"{name} has no kernel of its own: these are its cases of {FAMILIES[name]}, too few to pool")
        return _check(cases, dtypes, device, backend, every_tensor=arguments.all)


def _named(name: str) -> list[str]:
    """The operators and families of that name, or whose name begins with it and goes on with another word."""
    found = [op for op in KNOWN if op == name] or [op for op in KNOWN if op.startswith(f"{name}_")]
    if not found:
        raise BadInput(f"no operator is called {name!r}.{near_matches(name, KNOWN)} There are {', '.join(KNOWN)}.")
    return found


@contextmanager
def _repaired():
    """Triton's interpreter as a GPU would compute: its own bfloat16 is wrong. Where this Triton's cannot be repaired,
    operators compute bfloat16 in float32 and round."""
    from vitkern.lab.interpreting.interpreter import InterpreterChanged, repaired

    with ExitStack() as stack:
        try:
            stack.enter_context(repaired())
        except InterpreterChanged as error:
            print(f"note: {error} bf16 is computed in fp32 here")
        yield


def _check(
    cases: list[Problem], dtypes: list[torch.dtype], device: torch.device, backend: str, *, every_tensor: bool
) -> int:
    margin = PYTORCH_MARGIN if backend == "torch" else None
    verified, rows, failures = defaultdict(list), [], []
    pairs = [(case, dtype) for case in cases for dtype in dtypes]
    for (case, dtype), _ in zip(
        pairs, counted([f"{case} {_short(dtype)}" for case, dtype in pairs], "check"), strict=True
    ):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", RuntimeWarning
                )  # the interpreter's NumPy takes the logarithm of an empty row's 0
                results = verify(case, dtype, device, margin=margin)
        except Exception as error:
            rows.append((case.op, case.name, _short(dtype), "-", "-", "-", "-", "ERROR"))
            failures.append(f"{case} {_short(dtype)}: {type(error).__name__}: {error}")
            continue
        verified[case.op] += results
        shown = results if every_tensor else [max(results, key=_badness)]
        rows += [_row(case, dtype, result) for result in shown]
        failures += [
            f"{case} {_short(dtype)}: {result.name} fails" for result in results if not result.comparison.passed
        ]
    print(
        table(
            (
                "operator",
                "case",
                "dtype",
                "worst" if not every_tensor else "tensor",
                "error",
                "allowed",
                "use",
                "verdict",
            ),
            rows,
        )
    )
    print()
    whole = {op: found for op, found in verified.items() if all(case in cases for case in PROBLEMS if case.op == op)}
    if whole:
        _print_pooled({op: pool_of(found) for op, found in whole.items()})
    if backend != "torch":
        pooled_margin = 1.0 if device.type == "cpu" else GPU_POOLED_MARGIN
        failures += [f"{op}: {line}" for op, found in whole.items() for line in pooled_failures(found, pooled_margin)]
    for op in dict.fromkeys(case.op for case in cases):
        for name, holds in specimens()[op].properties.items():
            problems = _problems(op, name, holds, device)
            print(f"{op}: {name} {'FAILS' if problems else 'is as it must be'}")
            failures += problems
    print()
    for failure in failures:
        print(f"FAILED  {failure}")
    count = len(pairs)
    print(f"verdict: {len(failures)} failures in {count} checks" if failures else f"verdict: all {count} checks passed")
    return 1 if failures else 0


def _badness(result: Result) -> tuple:
    return not result.comparison.positions_agree, result.comparison.use if math.isfinite(
        result.comparison.use
    ) else math.inf


def _row(case: Problem, dtype: torch.dtype, result: Result) -> tuple:
    comparison = result.comparison
    verdict = "ok" if comparison.passed else "FAIL" if comparison.positions_agree else "FAIL (NaN or inf misplaced)"
    error, allowance = f"{comparison.error:.1e}", f"{comparison.allowance:.1e}"
    return case.op, case.name, _short(dtype), result.name, error, allowance, f"{comparison.use:.2f}", verdict


def _problems(op: str, name: str, holds: Callable, device: torch.device) -> list[str]:
    """What is wrong with a property of an operator."""
    try:
        return holds(device)
    except Exception as error:
        return [f"{op}: {name}: {type(error).__name__}: {error}"]


def _print_pooled(pools: dict[str, Pool]) -> None:
    """Rule (b): mean errors over all cases of an operator, relative to the ideal's."""
    rows = []
    for op, pool in pools.items():
        ratios = pool.ratios()
        for dtype in dict.fromkeys(dtype for _, dtype in ratios):
            worst = max((name for name, other in ratios if other == dtype), key=lambda name: ratios[name, dtype])
            rows.append((op, _short(dtype), worst, f"{ratios[worst, dtype]:.3f}"))
    print("mean error over that of an ideal kernel of the dtype, all cases pooled:")
    print(table(("operator", "dtype", "worst", "ratio"), rows))


def _short(dtype: torch.dtype) -> str:
    return next((name for name, value in DTYPES.items() if value == dtype), str(dtype))
