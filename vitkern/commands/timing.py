"""Times two versions of one thing side by side in one run, and measures their memory."""

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition; peak is in bytes."""

    samples: list[float]
    peak: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / self.median


def side_by_side(
    versions: dict[str, Callable[[], object]],
    device: torch.device,
    *,
    budget: float = 10.0,
    minimum: int = 5,
    maximum: int = 100,
    memory: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Timing]:
    """Time each version once per round, in turning order, for about ``budget`` seconds: what slows one slows all.

    Returns the samples of all rounds and the peak memory that one call allocates beyond what was held before it.
    """
    cost = 0.0
    for run in versions.values():
        run()
        run()
        cost += _seconds(run, device)
    rounds = max(minimum, min(maximum, int(budget / max(cost, 1e-9))))
    samples = {name: [] for name in versions}
    names = list(versions)
    for i in range(rounds):
        for name in names if i % 2 == 0 else reversed(names):
            samples[name].append(_seconds(versions[name], device))
        if rounds <= 10 or (i + 1) % (rounds // 5) == 0:
            progress(f"[{i + 1}/{rounds}] timed {' and '.join(names)}")
    return {name: Timing(samples[name], peak_memory(versions[name], device) if memory else None) for name in versions}


def ratio(before: Timing, after: Timing) -> tuple[float, float, float]:
    """How many times as fast ``after`` is: of the medians, and the quartiles of the rounds' own ratios."""
    rounds = [a / b for a, b in zip(before.samples, after.samples, strict=True)]
    low, high = (min(rounds), max(rounds)) if len(rounds) < 4 else statistics.quantiles(rounds, n=4)[::2]
    return before.median / after.median, low, high


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes of tensors alive at once during ``run()``, beyond those before it; None where it cannot be told."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler announces itself on stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    changes = [(e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    if not changes:
        return None
    held = peak = 0
    for _, change in sorted(changes):
        held += change
        peak = max(peak, held)
    return peak
