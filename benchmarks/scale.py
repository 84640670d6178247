"""scale: how time and peak memory grow with tokens, batch, heads and window, and how far they fit.

Each sweep changes one size of a case and keeps the others. The exponent is that of the power law through the upper half
of a sweep, by least squares: 2 means that twice the size takes four times as long.
"""

import functools
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import memory, results, timers
from benchmarks.cases import KINDS
from benchmarks.measure import reason_of, verify
from benchmarks.peers import EAGER, peers_of
from benchmarks.rows import FAILED, OURS, WRONG, Row
from benchmarks.runs import runner, tensors_of
from vitkern.commands.numbers import real
from vitkern.commands.timing import peak_memory
from vitkern.lab.compiling.layer import Layer
from vitkern.report import BadInput, is_shortage, near_matches, progress, seconds, table
from vitkern.report import memory as bytes_text

CONTENDERS = (OURS, EAGER)
MODES = ("forward", "training")


@dataclass(frozen=True)
class Sweep:
    """``case`` with ``size`` set to each of ``values``; "batch" is the images of a call, all others are fields."""

    name: str
    case: Layer
    size: str
    values: tuple[int, ...]
    batch: int = 1

    def shortened(self) -> "Sweep":
        """Its two smallest sizes."""
        return replace(self, values=self.values[:2])

    def problems(self) -> Iterator[tuple[int, Layer, int]]:
        """(value, case, batch) of each point."""
        for value in self.values:
            if self.size == "batch":
                yield value, self.case, value
            else:
                yield value, replace(self.case, **{self.size: value}), self.batch


Attention, Window, Neighborhood, Mlp = (
    KINDS[op] for op in ("attention", "window_attention", "neighborhood_attention", "layernorm_mlp")
)
TOKENS = (49, 197, 577, 1024, 4096, 16384, 50176, 200704)
SWEEPS = (
    Sweep("attention-tokens", Attention("tokens", 6, 197, 64), "tokens", TOKENS),
    Sweep("attention-batch", Attention("batch", 6, 197, 64), "batch", tuple(2**i for i in range(15))),
    Sweep("attention-heads", Attention("heads", 1, 197, 64), "heads", (1, 2, 3, 6, 12, 24, 48, 96), batch=4),
    Sweep("window-side", Window("side", 56, 96, 3, 7, 3), "side", (14, 28, 56, 112, 224, 448, 896)),
    Sweep("window-batch", Window("batch", 56, 96, 3, 7, 3), "batch", tuple(2**i for i in range(13))),
    Sweep("window-window", Window("window", 96, 96, 3, 7, 3), "window", (4, 6, 8, 12, 16, 24)),
    Sweep("neighborhood-side", Neighborhood("side", 56, 64, 2, 7), "side", (14, 28, 56, 112, 224, 448)),
    Sweep("neighborhood-kernel", Neighborhood("kernel", 56, 64, 2, 7), "kernel", (3, 5, 7, 9, 13, 21), batch=4),
    Sweep("mlp-tokens", Mlp("tokens", 196, 192), "tokens", (49, 196, 784, 3136, 12544, 50176, 200704)),
)


def add_arguments(parser) -> None:
    parser.add_argument("sweep", nargs="*", help=f"of {', '.join(sweep.name for sweep in SWEEPS)}; all unless given")
    parser.add_argument("--limit", type=real(0), default=2.0, help="seconds of one call after which a sweep ends")
    parser.add_argument(
        "--mode", nargs="+", choices=MODES, default=["forward"], help="training: forward and backward together"
    )
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes of each sweep")
    parser.add_argument("--minutes", type=real(0), help="start no further size after so long")
    parser.add_argument("--save", metavar="FILE", help="write JSON; 'auto' chooses benchmarks/results/<device>/")
    parser.add_argument("--resume", action="store_true", help="keep the sweeps that --save's file has as a whole")


def run(arguments) -> int:
    names = [sweep.name for sweep in SWEEPS]
    for name in arguments.sweep:
        if name not in names:
            raise BadInput(f"no sweep is called {name!r}.{near_matches(name, names)} There are {', '.join(names)}.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    deadline = time.monotonic() + 60 * (arguments.minutes or math.inf)
    found, wrong, modes = results.environment(device), 0, tuple(dict.fromkeys(arguments.mode))
    print(f"{found['device']}, {dtype}, {', '.join(modes)}; without a GPU the operators run in PyTorch")
    path = _path(arguments, device, modes)
    rows = results.resumed(path, found) if arguments.resume and path else []
    whole = {(row.case.rsplit(" ", 1)[0], row.mode) for row in rows}
    for mode, sweep in itertools.product(modes, SWEEPS):
        if (arguments.sweep and sweep.name not in arguments.sweep) or (sweep.name, mode) in whole:
            continue
        if time.monotonic() > deadline:
            progress(f"out of time: {sweep.name}, {mode} is not run")
            continue
        sweep = sweep.shortened() if arguments.quick else sweep
        with memory.bounded(device):
            points = list(measure(sweep, dtype, device, mode, arguments.limit, deadline))
        rows += points
        wrong += sum(row.is_bad for row in points)
        _print(sweep, mode, points)
        if path:
            results.save(path, rows, found)
    if path:
        print(f"saved {path}")
    return 1 if wrong else 0


def _path(arguments, device, modes: tuple[str, ...]) -> Path | None:
    if arguments.save != "auto":
        return Path(arguments.save) if arguments.save else None
    parts = ["scale", *modes] + ["part"] * bool(arguments.sweep) + ["quick"] * arguments.quick
    return results.automatic_path(device, "-".join(parts))


def measure(sweep: Sweep, dtype, device, mode: str, limit: float, deadline: float = math.inf) -> Iterator[Row]:
    """A row per contender and size, until one call takes longer than ``limit`` seconds, or memory or time ends.

    The smallest size is verified against float64; where it is wrong, there are no figures.
    """
    alive = list(CONTENDERS)
    for value, case, batch in sweep.problems():
        fields = dict(
            op=f"scale-{case.op}", case=f"{sweep.name} {value}", mode=mode, dtype=str(dtype).removeprefix("torch."),
            batch=batch,
        )  # fmt: skip
        if value == sweep.values[0] and (faults := verify(case, dtype, device)):
            yield Row(**fields, contender=OURS, seconds=None, note=f"{WRONG}: {faults[0]}")
            return
        for contender in list(alive):
            if time.monotonic() > deadline:
                progress(f"out of time: {sweep.name} ends before {sweep.size} {value}")
                return
            progress(f"{sweep.name}: {sweep.size} {value}, {contender}")
            try:
                call = _call(case, batch, dtype, device, contender, mode)
                samples = timers.samples_of(call, device, quick=True)
                peak = peak_memory(call, device)
            except Exception as error:
                alive.remove(contender)
                failed = "" if is_shortage(error) else f"{FAILED}: "
                yield Row(**fields, contender=contender, seconds=None, note=f"{failed}{reason_of(error)}")
                continue
            median = statistics.median(samples)
            if median > limit:
                alive.remove(contender)
            figures = dict(spread=timers.spread_of(samples), samples=len(samples), peak=peak)
            note = "the last that was tried" if median > limit else ""
            yield Row(**fields, contender=contender, seconds=median, note=note, **figures)


def _call(case: Layer, batch: int, dtype, device, contender: str, mode: str):
    """One call of the operator, or of its formula as models write it."""
    problem = case.problem(batch)
    tensors = tensors_of(problem, dtype, device)
    function = functools.partial(problem.run, **problem.options)
    if contender != OURS:
        function = peers_of(case, problem.options, device, compiled=False)[contender]
    leaves = [tensors[name] for name in problem.gradients]
    return runner(functools.partial(function, **tensors), leaves, mode)


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


def largest(rows: list[Row], contender: str) -> tuple[int | None, str]:
    """The largest size at which ``contender`` ran, and what ended the sweep there; empty where nothing did."""
    own = [row for row in rows if row.contender == contender]
    ran = [size_of(row) for row in own if row.seconds is not None]
    return max(ran, default=None), next((row.note for row in own if row.note), "")


def _print(sweep: Sweep, mode: str, rows: list[Row]) -> None:
    lines = []
    for row in rows:
        time = seconds(row.seconds) if row.seconds is not None else row.note
        lines.append((size_of(row), row.contender, time, f"{row.spread:.0%}", bytes_text(row.peak)))
    print(f"\n{sweep.name}, {mode}: {sweep.case}, {sweep.size} changes")
    print(table((sweep.size, "", "median", "spread", "peak memory"), lines))
    for contender, (time, peak) in fitted(rows).items():
        size, why = largest(rows, contender)
        grows = f"time grows as {sweep.size}^{time:.2f}, peak memory as ^{peak:.2f}"
        print(f"{contender}: {grows}; largest {size}{f', {why}' if why else ''}")
