"""estimate: what can be said of a recorded run from its kernels, compiled for a GPU that need not be there.

Adds to each of vitkern's rows the operations of all matrix products, padding and recomputation with them, and a lower
bound for the time, which is not calibrated. It takes seconds a case, which a GPU need not wait for.
"""

import functools
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import results
from benchmarks.rows import OURS, Row
from benchmarks.runs import tensors_of, training
from vitkern import dispatch
from vitkern.lab.compiling import estimate
from vitkern.lab.compiling.compiled import Compiled, compile_launches
from vitkern.report import BadInput, near_matches, progress


def add_arguments(parser) -> None:
    parser.add_argument("results", type=Path, help="a file that --save wrote; it is written anew")
    parser.add_argument("--gpu", required=True, help=f"of {', '.join(estimate.GPUS)}")


def run(arguments) -> int:
    from benchmarks.cases import CASES

    check(arguments.gpu)
    recorded, cases = results.load(arguments.results), {(case.op, str(case)): case for case in CASES}
    rows = []
    for i, row in enumerate(recorded["results"], 1):
        case = cases.get((row.op, row.case))
        rows.append(row if case is None else added(row, case, arguments.gpu))
        if rows[-1] is not row:
            progress(f"[{i}/{len(recorded['results'])}] {row.op}: {row.case} {row.mode}")
    results.save(arguments.results, rows, recorded["environment"])
    print(f"saved {arguments.results}: {sum(row.padded is not None for row in rows)} rows of kernels")
    return 0


class Static(NamedTuple):
    """``flops``: of all matrix products, padding and recomputation with them. ``seconds``: a lower bound, not
    calibrated."""

    flops: int
    seconds: float


def check(gpu: str) -> None:
    """
    Raises:
        BadInput: there are no figures of ``gpu``, or kernels cannot be compiled in this process.
    """
    if gpu not in estimate.GPUS:
        near, known = near_matches(gpu, estimate.GPUS), ", ".join(estimate.GPUS)
        raise BadInput(f"there are no figures of {gpu!r}.{near} There are {known}.")
    if not dispatch.HAS_TRITON or dispatch.INTERPRETED:
        raise BadInput("an estimate compiles kernels: it needs Triton, and TRITON_INTERPRET unset.")


def heading(name: str) -> str:
    """Of a column of estimates; ``name``: a key of `Row.estimates`."""
    return f"{name} at least, {estimate.LABEL}"


@contextmanager
def _counted_products(counted: list[int]):
    """Within the block the FLOPs of each torch.mm, which some operators leave to cuBLAS, are added to ``counted``."""
    before = torch.mm

    def mm(a, b, **options):
        counted.append(2 * a.shape[0] * a.shape[1] * b.shape[1])
        return before(a, b, **options)

    torch.mm = mm
    try:
        yield
    finally:
        torch.mm = before


def kernels_of(case, dtype: torch.dtype, batch: int, mode: str, arch: int) -> tuple[list[Compiled], int]:
    """The kernels that ``case`` launches in ``mode``, and the FLOPs that it leaves to PyTorch's matrix product."""
    problem = case.problem(batch)
    tensors = tensors_of(problem, dtype, torch.device("cpu"))
    function = functools.partial(problem.run, **tensors, **problem.options)
    leaves = [tensors[name] for name in problem.gradients]

    def launched(fn: Callable) -> tuple[list[Compiled], int]:
        products = []

        def run():
            with _counted_products(products):
                fn()

        return compile_launches(run, arch), sum(products)

    if mode == "forward":
        return launched(torch.no_grad()(function))
    kernels, products = launched(lambda: training(function, leaves))
    if mode == "training":
        return kernels, products
    before, of_forward = launched(function)
    return [kernel for kernel in kernels if kernel not in before], products - of_forward


def figures_of(case, dtype: torch.dtype, batch: int, mode: str, gpu: str) -> Static | None:
    """None where the operator has no kernel."""
    kernels, products = kernels_of(case, dtype, batch, mode, estimate.GPUS[gpu].arch)
    if not kernels:
        return None
    flops = sum(kernel.work.programs * kernel.work.turns * kernel.work.flop for kernel in kernels)
    seconds = sum(estimate.bound(kernel, estimate.GPUS[gpu]).seconds for kernel in kernels)
    return Static(round(flops) + products, seconds)


def added(row: Row, case, gpu: str | None) -> Row:
    """``row``, if it is ours and was timed, with what the kernels compiled for ``gpu`` tell: the operations of all
    matrix products, and a lower bound, in bfloat16 where the run is in float32, which GPUs are not used for."""
    if gpu is None or row.contender != OURS or row.seconds is None:
        return row
    dtype = getattr(torch, row.dtype)
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    found = figures_of(case, half, row.batch, row.mode, gpu)
    if found is None:
        return row
    return replace(row, padded=found.flops, estimates={f"{gpu} {str(half).removeprefix('torch.')}": found.seconds})
