"""A lower bound of a case's time on a GPU that need not be there: its kernels, compiled and counted."""

import functools

import torch

from benchmarks.measure import runner, tensors_of
from vitkern import dispatch
from vitkern.lab import estimate
from vitkern.report import BadInput


def check(gpu: str) -> None:
    """
    Raises:
        BadInput: there are no figures of ``gpu``, or kernels cannot be compiled in this process.
    """
    if gpu not in estimate.GPUS:
        raise BadInput(f"--estimate knows no {gpu!r}. There are {', '.join(estimate.GPUS)}.")
    if not dispatch.HAS_TRITON or dispatch.INTERPRETED:
        raise BadInput("--estimate compiles kernels: it needs Triton, and TRITON_INTERPRET unset.")


def heading(gpu: str) -> str:
    return f"{gpu} at least, {estimate.LABEL}"


def seconds_of(case, dtype: torch.dtype, batch: int, mode: str, gpu: str) -> float:
    """Seconds that the kernels of ``case`` take at least, by `estimate.time_of`."""
    problem = case.problem(batch)
    tensors = tensors_of(problem, dtype, torch.device("cpu"))
    function = functools.partial(problem.run, **tensors, **problem.options)
    leaves = [tensors[name] for name in problem.gradients]
    if mode == "forward":
        return estimate.time_of(runner(function, leaves, mode), gpu)
    return estimate.time_of(lambda: runner(function, leaves, mode)(), gpu, after=function)
