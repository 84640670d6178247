"""What can be said of a case without running it: from its kernels, compiled for a GPU that need not be there."""

import functools
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from benchmarks.rows import OURS, Row
from benchmarks.runs import has_kernel, tensors_of, training
from vitkern import dispatch
from vitkern.lab.compiling import estimate
from vitkern.lab.compiling.compiled import Compiled, compile_launches
from vitkern.report import BadInput, near_matches


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
        raise BadInput(f"--estimate knows no {gpu!r}.{near} There are {known}.")
    if not dispatch.HAS_TRITON or dispatch.INTERPRETED:
        raise BadInput("--estimate compiles kernels: it needs Triton, and TRITON_INTERPRET unset.")


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
    if not has_kernel(case):
        return None
    kernels, products = kernels_of(case, dtype, batch, mode, estimate.GPUS[gpu].arch)
    flops = sum(kernel.work.programs * kernel.work.turns * kernel.work.flop for kernel in kernels)
    seconds = sum(estimate.bound(kernel, estimate.GPUS[gpu]).seconds for kernel in kernels)
    return Static(round(flops) + products, seconds)


def added(row: Row, case, gpu: str | None, device: torch.device) -> Row:
    """``row``, if it is ours and was timed, with what its compiled kernels tell.

    The estimate is for ``gpu``, in bfloat16 where the run is in float32, which GPUs are not used for. The padded
    operations are those of this device's kernels, of the estimate's where this is a CPU.
    """
    if row.contender != OURS or row.seconds is None:
        return row
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    here, dtype = next((known for known in estimate.GPUS if known in name), None), getattr(torch, row.dtype)
    padded = figures_of(case, dtype, row.batch, row.mode, here) if here else None
    if gpu is None:
        return row if padded is None else replace(row, padded=padded.flops)
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    found = figures_of(case, half, row.batch, row.mode, gpu)
    if found is None:
        return row
    estimates = {f"{gpu} {str(half).removeprefix('torch.')}": found.seconds}
    return replace(row, padded=(padded or found).flops, estimates=estimates)
