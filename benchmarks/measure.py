"""Verify, then time: a case whose result is wrong gets no figure."""

import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.utils.benchmark import Measurement, TaskSpec, Timer

from benchmarks.peers import peers_of
from vitkern import dispatch
from vitkern.commands.timing import peak_memory
from vitkern.lab import verify as checker

OURS = "vitkern"
PEER_TOLERANCE = 0.05  # of the largest value; a peer further off than this computes something else
VERIFIED_IMAGES = 2


@dataclass(frozen=True)
class Row:
    """One contender on one case.

    ``seconds`` is the median, None where ``note`` says why. ``host`` is seconds of CPU time, ``peak`` bytes.
    """

    op: str
    case: str
    mode: str
    dtype: str
    batch: int
    contender: str
    seconds: float | None
    spread: float = 0.0
    samples: int = 0
    host: float | None = None
    peak: int | None = None
    note: str = ""

    def record(self) -> dict:
        return asdict(self)


def measure(
    case, dtype: torch.dtype, device: torch.device, *, batch: int, modes=("forward",), quick=False, compiled=True
) -> list[Row]:
    """Every contender on ``case``, ours first: verified, then timed. Ours wrong: rows that say so, and no figures."""
    problem = case.problem(batch)
    fields = dict(op=case.op, case=str(case), dtype=str(dtype).removeprefix("torch."), batch=batch)
    wrong = verify(case, dtype, device)
    if wrong:
        return [Row(**fields, mode=mode, contender=OURS, seconds=None, note=f"WRONG: {wrong[0]}") for mode in modes]
    tensors = tensors_of(problem, dtype, device)
    leaves = [tensors[name] for name in problem.gradients]
    contenders = {OURS: functools.partial(problem.run, **tensors, **problem.options)}
    for name, peer in peers_of(case, problem.options, device, compiled=compiled).items():
        contenders[name] = functools.partial(peer, **tensors)
    rows, expected = [], None
    for mode in modes:
        for name, function in contenders.items():
            try:
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a backend that refuses says so in its error too
                    output = function()
                expected = output if expected is None else expected
                if not agrees(output, expected):
                    raise ArithmeticError("its result differs")
                run = runner(function, leaves, mode)
                samples = time_run(run, device, quick=quick)
                host = host_seconds(run) if device.type == "cuda" else None
                peak = peak_memory(run, device) if device.type == "cuda" else None
            except Exception as error:
                if name == OURS:
                    raise
                rows.append(Row(**fields, mode=mode, contender=name, seconds=None, note=_first_line(error)))
                continue
            figures = dict(spread=spread_of(samples), samples=len(samples), host=host, peak=peak)
            rows.append(Row(**fields, mode=mode, contender=name, seconds=statistics.median(samples), **figures))
    return rows


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {text.splitlines()[0]}"[:160]


def verify(case, dtype: torch.dtype, device: torch.device, *, images: int = VERIFIED_IMAGES) -> list[str]:
    """What is wrong with the operator on ``case``, a line per tensor. Shapes are the case's but for the batch."""
    in_pytorch = bool(dispatch.why_not([torch.empty(0, device=device, dtype=dtype)]))
    problem = case.problem(1 if _scores(case) > 2**24 else images)
    margin = checker.PYTORCH_MARGIN if in_pytorch else None
    return [
        f"{result.name} is off by {result.comparison.error:.1e}, {result.comparison.use:.1f} times what is allowed"
        for result in checker.verify(problem, dtype, device, reference_device=device, margin=margin)
        if not result.comparison.passed
    ]


def _scores(case) -> int:
    """Elements of an image's score matrix."""
    return getattr(case, "heads", 0) * (case.tokens if hasattr(case, "tokens") else 0) ** 2


def tensors_of(problem, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The inputs of a problem as leaves on ``device``."""
    inputs = problem.inputs(torch.Generator().manual_seed(0))
    return {
        name: value.to(device, dtype).requires_grad_(name in problem.gradients)
        if value.is_floating_point()
        else value.to(device)
        for name, value in inputs.items()
    }


def runner(function: Callable[[], object], leaves: list[Tensor], mode: str) -> Callable[[], object]:
    """What is timed: the forward without a graph, or the backward alone."""
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return function()

        return forward
    outputs = function()
    outputs = [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out.requires_grad]
    grads = [torch.randn_like(out) for out in outputs]

    def backward():
        return torch.autograd.grad(outputs, leaves, grads, retain_graph=True)

    return backward


def agrees(actual, expected) -> bool:
    """Whether a peer computes the same, roughly: its own rounding is its own."""
    pairs = zip(*(value if isinstance(value, tuple) else (value,) for value in (actual, expected)), strict=True)
    return all(
        bool((a.detach().float() - b.detach().float()).abs().max() <= PEER_TOLERANCE * b.detach().float().abs().max())
        for a, b in pairs
    )


def time_run(run: Callable[[], object], device: torch.device, *, quick: bool) -> list[float]:
    """Seconds of each repetition: CUDA events with a cold L2 cache on a GPU, `torch.utils.benchmark.Timer` on a CPU."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return [
            ms / 1e3 for ms in do_bench(run, warmup=20 if quick else 50, rep=50 if quick else 200, return_mode="all")
        ]
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    samples = []
    while len(samples) < 5:
        samples += timer.blocked_autorange(min_run_time=0.05 if quick else 0.5).times
    return samples


def host_seconds(run: Callable[[], object]) -> float:
    """Time that one call keeps the CPU busy before it returns, on a GPU that is still working on the ones before."""
    run()
    torch.cuda.synchronize()
    samples = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(10):
            run()
        samples.append((time.perf_counter() - start) / 10)
        torch.cuda.synchronize()
    return statistics.median(samples)


def measurement(row: Row) -> Measurement:
    """For `torch.utils.benchmark.Compare`: a line per case, a column per contender."""
    task = TaskSpec(
        stmt="",
        setup="",
        label=f"{row.op} {row.mode} {row.dtype}",
        sub_label=f"{row.case} batch {row.batch}",
        description=row.contender,
    )
    return Measurement(1, [row.seconds if row.seconds is not None else math.nan], task)


def spread_of(samples: list[float]) -> float:
    """Interquartile range over the median."""
    if len(samples) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4)
    return (high - low) / middle
