"""How long a call takes: on the device, on the host, and from the call to the result; how it is kept out of caches."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

LARGEST_ROTATION = 16
BLOCK = 5e-3  # seconds of the calls of one sample on a CPU, at least
SECONDS, QUICK_SECONDS = 0.5, 0.05  # that one contender is timed for on a CPU, at least five times
CPU_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")


def samples_of(run: Callable[[], object], device: torch.device, *, quick: bool) -> list[float]:
    """Seconds of each repetition."""
    return samples_in_turn({"": run}, device, quick=quick)[""]


def samples_in_turn(
    runs: dict[str, Callable[[], object]], device: torch.device, *, quick: bool
) -> dict[str, list[float]]:
    """Seconds of each repetition of each of ``runs``.

    On a GPU by CUDA events with a cold L2 cache, one after the other. On a CPU by `clock`, in rounds, a block of calls
    of each in turning order: what slows one slows all.
    """
    if device.type == "cuda":
        from triton.testing import do_bench

        times = dict(warmup=20, rep=50) if quick else dict(warmup=50, rep=200)
        return {name: [ms / 1e3 for ms in do_bench(run, **times, return_mode="all")] for name, run in runs.items()}
    once = {name: min(_block(run, 1) for _ in range(2)) for name, run in runs.items()}
    counts = {name: max(1, round(BLOCK / seconds)) for name, seconds in once.items()}
    cost = sum(counts[name] * once[name] for name in runs)
    rounds = max(5, round((QUICK_SECONDS if quick else SECONDS) * len(runs) / cost))
    samples = {name: [] for name in runs}
    for i in range(rounds):
        for name in runs if i % 2 == 0 else reversed(runs):
            samples[name].append(_block(runs[name], counts[name]))
    return samples


def clock() -> Callable[[], float]:
    """Of a CPU: with one thread the processor's time, which other processes on the machine take no part of."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _block(run: Callable[[], object], calls: int) -> float:
    """Seconds of a call, as the mean of so many."""
    now = clock()
    start = now()
    for _ in range(calls):
        run()
    return (now() - start) / calls


@functools.cache
def last_cache(device: torch.device) -> int:
    """Bytes of the last cache before the memory; 32 MiB where a CPU does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [path.read_text().strip() for path in CPU_CACHE.glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=32 * 2**20)


def copies_of(tensors: dict[str, Tensor], cache: int) -> list[dict[str, Tensor]]:
    """``tensors`` and as many copies as together exceed twice the ``cache``: a call finds nothing of the one before.

    At most `LARGEST_ROTATION`: what is that small is bound by the launch.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    count = max(2, min(LARGEST_ROTATION, -(-2 * cache // max(size, 1))))
    clones = ({name: tensor.detach().clone() for name, tensor in tensors.items()} for _ in range(count - 1))
    return [
        tensors,
        *({name: copy.requires_grad_(tensors[name].requires_grad) for name, copy in clone.items()} for clone in clones),
    ]


def in_turn(runs: list[Callable[[], object]]) -> Callable[[], object]:
    """A function whose calls run each of ``runs`` in turn."""
    following = itertools.cycle(runs)
    return lambda: next(following)()


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


def latency_seconds(run: Callable[[], object]) -> float:
    """Time from one call to its result on an idle GPU, the host's part included."""
    samples = []
    for _ in range(30):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def spread_of(samples: list[float]) -> float:
    """Interquartile range over the median."""
    if len(samples) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4)
    return (high - low) / middle
