"""scale: how time and peak memory grow with tokens, batch, heads and window, and how far they fit.

Each sweep changes one size of a case and keeps the others. The exponent is that of the power law through the upper half
of a sweep, by least squares: 2 means that twice the size takes four times as long.
"""

import functools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import results
from benchmarks.cases import Attention, Window
from benchmarks.measure import OURS, Row, tensors_of, time_run
from vitkern import dispatch
from vitkern.commands.timing import peak_memory
from vitkern.report import BadInput, memory, near_matches, progress, seconds, table

CONTENDERS = (OURS, "eager")


@dataclass(frozen=True)
class Sweep:
    """``case`` with ``size`` set to each of ``values``; "batch" is the images of a call, all others are fields."""

    name: str
    case: object
    size: str
    values: tuple[int, ...]
    batch: int = 1

    def problems(self) -> Iterator[tuple[int, object, int]]:
        """(value, case, batch) of each point."""
        for value in self.values:
            if self.size == "batch":
                yield value, self.case, value
            else:
                yield value, replace(self.case, **{self.size: value}), self.batch


SWEEPS = (
    Sweep("attention-tokens", Attention("tokens", 6, 197, 64), "tokens", (49, 197, 577, 1024, 4096, 16384, 50176)),
    Sweep("attention-batch", Attention("batch", 6, 197, 64), "batch", (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    Sweep("attention-heads", Attention("heads", 1, 197, 64), "heads", (1, 2, 3, 6, 12, 24), batch=4),
    Sweep("window-side", Window("side", 56, 96, 3, 7, 3), "side", (14, 28, 56, 112, 224, 448)),
    Sweep("window-batch", Window("batch", 56, 96, 3, 7, 3), "batch", (1, 2, 4, 8, 16, 32, 64, 128)),
    Sweep("window-window", Window("window", 96, 96, 3, 7, 3), "window", (4, 6, 8, 12, 16)),
)


def add_arguments(parser) -> None:
    parser.add_argument("sweep", nargs="*", help=f"of {', '.join(sweep.name for sweep in SWEEPS)}; all unless given")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds of one call after which a sweep ends")
    parser.add_argument("--backward", action="store_true", help="time forward and backward together")
    parser.add_argument("--save", metavar="FILE", help="write JSON; 'auto' chooses benchmarks/results/<device>/")


def run(arguments) -> int:
    names = [sweep.name for sweep in SWEEPS]
    for name in arguments.sweep:
        if name not in names:
            raise BadInput(f"no sweep is called {name!r}.{near_matches(name, names)} There are {', '.join(names)}.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    mode = "training" if arguments.backward else "forward"
    found, rows = results.environment(device), []
    print(f"{found['device']}, {dtype}, {mode}; without a GPU the operators run in PyTorch")
    path = results.automatic_path(device, f"scale-{mode}") if arguments.save == "auto" else arguments.save
    for sweep in SWEEPS:
        if arguments.sweep and sweep.name not in arguments.sweep:
            continue
        points = list(measure(sweep, dtype, device, mode, arguments.limit))
        rows += points
        _print(sweep, points)
        if path:
            results.save(Path(path), rows, found)
    if path:
        print(f"saved {path}")
    return 0


def measure(sweep: Sweep, dtype, device, mode: str, limit: float) -> Iterator[Row]:
    """A row per contender and size, until one call takes longer than ``limit`` seconds or memory ends."""
    alive = list(CONTENDERS)
    for value, case, batch in sweep.problems():
        for contender in list(alive):
            progress(f"{sweep.name}: {sweep.size} {value}, {contender}")
            fields = dict(
                op=f"scale-{case.op}", case=f"{sweep.name} {value}", mode=mode,
                dtype=str(dtype).removeprefix("torch."), batch=batch, contender=contender,
            )  # fmt: skip
            try:
                call = _call(case, batch, dtype, device, contender, mode)
                samples = time_run(call, device, quick=True)
                peak = peak_memory(call, device)
            except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
                    raise
                alive.remove(contender)
                yield Row(**fields, seconds=None, note="out of memory")
                continue
            median = statistics.median(samples)
            if median > limit:
                alive.remove(contender)
            note = "the last that was tried" if median > limit else ""
            yield Row(**fields, seconds=median, samples=len(samples), peak=peak, note=note)


def _call(case, batch, dtype, device, contender, mode):
    """One call of the operator or of its formula, forward or forward and backward."""
    problem = case.problem(batch)
    tensors = tensors_of(problem, dtype, device)
    leaves = [tensors[name] for name in problem.gradients]
    function = functools.partial(problem.run if contender == OURS else problem.reference, **tensors, **problem.options)
    if mode == "forward":
        return torch.no_grad()(function)

    def step():
        out = function()
        out = out[0] if isinstance(out, tuple) else out
        return torch.autograd.grad(out.sum(), leaves)

    return step


def exponent(sizes: list[float], values: list[float]) -> float:
    """The power of ``sizes`` that ``values`` grow with, over the upper half of the sizes."""
    points = [(math.log(x), math.log(y)) for x, y in zip(sizes, values, strict=True) if x > 0 and y > 0]
    points = points[len(points) // 2 - (len(points) < 4) :] if len(points) > 2 else points
    if len(points) < 2:
        return math.nan
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def size_of(row: Row) -> int:
    """The size that a row's sweep had there."""
    return int(row.case.rsplit(" ", 1)[1])


def fitted(rows: list[Row]) -> dict[str, tuple[float, float]]:
    """contender -> exponents of time and of peak memory."""
    found = {}
    for contender in dict.fromkeys(row.contender for row in rows):
        timed = [row for row in rows if row.contender == contender and row.seconds is not None]
        sizes = [size_of(row) for row in timed]
        found[contender] = tuple(
            exponent(sizes, values) for values in ([row.seconds for row in timed], [row.peak or 0 for row in timed])
        )
    return found


def _print(sweep: Sweep, rows: list[Row]) -> None:
    lines = []
    for row in rows:
        time = seconds(row.seconds) if row.seconds is not None else row.note
        lines.append((size_of(row), row.contender, time, memory(row.peak)))
    where = "PyTorch" if dispatch.why_not([torch.empty(0)]) and not torch.cuda.is_available() else "the kernel"
    print(f"\n{sweep.name}: {sweep.case}, {sweep.size} changes; vitkern runs in {where}")
    print(table((sweep.size, "", "median", "peak memory"), lines))
    for contender, (time, peak) in fitted(rows).items():
        largest = max((size_of(row) for row in rows if row.contender == contender and row.seconds), default=None)
        print(f"{contender}: time grows as {sweep.size}^{time:.2f}, peak memory as ^{peak:.2f}; largest {largest}")
