"""Verify, then time: an operator whose result is wrong gets no figure, a peer whose result is wrong gets a mark."""

import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
import torch._functorch.config as functorch
from torch import Tensor

from benchmarks import peers, timers
from benchmarks.rows import OURS, WRONG, Row
from benchmarks.runs import results_of, runner, tensors_of
from vitkern import dispatch, faults
from vitkern.commands.timing import peak_memory
from vitkern.lab.compiling.layer import SCORES, Layer
from vitkern.lab.proving import verify as checker
from vitkern.report import is_shortage, seconds

PEER_TOLERANCE = 0.05  # of the largest value; a peer further off than this computes something else
FEW, MANY = 2, 16  # images that are verified; 16 take the very kernels that 64 do


def measure(
    case: Layer,
    dtype: torch.dtype,
    device: torch.device,
    *,
    batch: int,
    modes: tuple[str, ...] = ("forward",),
    quick: bool = False,
    compiled: bool = True,
    timed: bool = True,
    peak_flops: float = math.inf,
    limit: float = math.inf,
) -> list[Row]:
    """Every contender on ``case``, ours first: verified, then timed. Ours wrong: rows that say so, and no figures.

    ``compiled``: torch.compile is a peer too. ``peak_flops``: of this device; modes whose matrix products alone would
    take more than ``limit`` seconds there are not run. What does not fit the memory says so. Not ``timed``: everything
    runs once, which fills the caches of compilers.
    """
    blank, rows = {mode: _blank(case, dtype, batch, mode) for mode in modes}, []
    for mode in modes:
        least = blank[mode].flops / peak_flops
        if least > limit:
            rows.append(replace(blank.pop(mode), note=f"skipped: {seconds(least)} at least here"))
    if not blank:
        return rows
    try:
        wrong = verify(case, dtype, device, images=verified(case, batch, dtype))
        if wrong:
            return rows + [replace(row, note=f"{WRONG}: {'; '.join(wrong)}") for row in blank.values()]
        problem = case.problem(batch)
        tensors = tensors_of(problem, dtype, device)
        tensors = timers.copies_of(tensors, timers.last_cache(device)) if timed else [tensors]
    except Exception as error:
        if not is_shortage(error):
            raise
        return rows + [replace(row, note=reason_of(error)) for row in blank.values()]
    if compiled:
        torch.compiler.reset()  # it gives up on a function that was compiled for many shapes
    contenders = {OURS: functools.partial(problem.run, **problem.options)}
    contenders |= peers.peers_of(case, problem.options, device, compiled=compiled)
    options = dict(quick=quick, timed=timed, limit=limit)
    with functorch.patch(donated_buffer=False):  # compiled functions keep what their backward reads: it runs again
        for row in blank.values():
            rows += _compared(case, row, contenders, tensors, problem.gradients, device, **options)
    return rows


def _blank(case: Layer, dtype: torch.dtype, batch: int, mode: str) -> Row:
    """Our row of a case before anything was measured."""
    work = case.work(batch, dtype.itemsize, mode)
    name = str(dtype).removeprefix("torch.")
    return Row(case.op, str(case), mode, name, batch, OURS, None, flops=work.flops, moved=work.moved)


def _compared(
    case: Layer, blank: Row, contenders, tensors, gradients, device, *, quick: bool, timed=True, limit=math.inf
) -> list[Row]:
    """A row of each contender in one mode; all results are held against the first.

    On a GPU one contender after the other, so that each has the memory to itself, and what takes longer than ``limit``
    seconds is timed once; on a CPU all in turn.
    """
    rows, expected = [], None
    for group in [[name] for name in contenders] if device.type == "cuda" else [list(contenders)]:
        ready = {}
        for name in group:
            row = replace(blank, contender=name)
            try:
                results, runs = _prepared(contenders[name], tensors, gradients, row.mode)
                row = replace(row, **(_once(runs[0], device, limit) if timed else {}))
            except Exception as error:
                if name == OURS and not is_shortage(error):
                    raise
                rows.append(replace(row, note=reason_of(error)))
                continue
            expected = results if expected is None else expected
            row = replace(row, note=_note(case, name, row.mode, results, expected))
            if timed and row.seconds is None:
                ready[name] = row, timers.in_turn(runs)
            else:
                rows.append(row)
        try:
            rows += _timed(ready, device, quick)
        except Exception as error:
            if OURS in ready and not is_shortage(error):
                raise
            rows += [replace(row, note=reason_of(error)) for row, _ in ready.values()]
    order = list(contenders)
    return sorted(rows, key=lambda row: order.index(row.contender))


def _once(run: Callable, device: torch.device, limit: float) -> dict:
    """The peak memory of a call; its time too where that is above ``limit`` seconds on a GPU."""
    start = time.perf_counter()
    found = dict(peak=peak_memory(run, device))
    took = time.perf_counter() - start
    return found | dict(seconds=took, samples=1) if device.type == "cuda" and took > limit else found


def _prepared(function: Callable, tensors: list[dict[str, Tensor]], gradients, mode: str):
    """What ``function`` computes in ``mode``, and a call to time on each copy of the tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a backend that refuses says so in its error too
        calls = [functools.partial(function, **inputs) for inputs in tensors]
        leaves = [[inputs[name] for name in gradients] for inputs in tensors]
        results = results_of(calls[0], leaves[0], mode)
        return results, [runner(call, of_call, mode) for call, of_call in zip(calls, leaves, strict=True)]


def _note(case: Layer, name: str, mode: str, results: list[Tensor], expected: list[Tensor]) -> str:
    """What is wrong with a peer; of ours, why PyTorch ran in the place of a kernel."""
    if name == OURS:
        stopped = faults.faulted(results[0].device)  # of some sizes, which the reason names, or of all
        return "; ".join(f"in PyTorch: {reason}" for op, reason in stopped if op == case.operator)
    wrong = peers.known_fault(name, case, mode), difference(results, expected)
    return "; ".join(f"{WRONG}: {fault}" for fault in wrong if fault)


def _timed(ready: dict[str, tuple[Row, Callable]], device: torch.device, quick: bool) -> list[Row]:
    """The rows with their figures."""
    if not ready:
        return []
    rows = []
    samples = timers.samples_in_turn({name: run for name, (_, run) in ready.items()}, device, quick=quick)
    for name, (row, run) in ready.items():
        found = samples[name]
        figures = dict(seconds=statistics.median(found), spread=timers.spread_of(found), samples=len(found))
        if device.type == "cuda" and name == OURS:
            figures |= dict(host=timers.host_seconds(run), latency=timers.latency_seconds(run))
        rows.append(replace(row, **figures))
    return rows


def reason_of(error: Exception) -> str:
    """Why there is no figure, in one line."""
    if is_shortage(error):
        return "out of memory"
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:160]


def verified(case: Layer, batch: int, dtype: torch.dtype) -> int:
    """Images of a call that are verified: as many as float64 has room for, and few in float32, where the order of a
    long sum is seen."""
    many = dtype.itemsize == 2 and batch >= MANY and 2 * MANY * case.scores <= SCORES
    return MANY if many else min(batch, FEW)


def verify(case: Layer, dtype: torch.dtype, device: torch.device, *, images: int = FEW) -> list[str]:
    """What is wrong with the operator on ``case``, a line per tensor. Shapes are the case's but for the batch."""
    in_pytorch = dispatch.why_not([torch.empty(0, device=device, dtype=dtype)])
    margin = checker.PYTORCH_MARGIN if in_pytorch else None
    return [
        f"{result.name} is off by {result.comparison.error:.1e}, {result.comparison.use:.1f} times what is allowed"
        for result in checker.verify(case.checked(images), dtype, device, reference_device=device, margin=margin)
        if not result.comparison.passed
    ]


def difference(actual: list[Tensor], expected: list[Tensor]) -> str:
    """How a peer's results differ from ours, beyond what its own rounding explains; empty where they do not."""
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        a, b = a.float(), b.float()
        if not bool(torch.isfinite(a).all()):
            return f"result {i} is not finite"
        if bool((a - b).abs().max() > PEER_TOLERANCE * b.abs().max()):
            return f"result {i} differs by {((a - b).abs().max() / b.abs().max()).item():.0%} of the largest value"
    return ""
