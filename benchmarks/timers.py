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
GPU_SECONDS, QUICK_GPU_SECONDS = 0.06, 0.03  # and on a GPU, at least five times
MOST = 200  # samples of a contender on a GPU
COLD = 2**28  # bytes that are written between two calls, several times the largest second-level cache
LONGEST_WAIT = 0.02  # seconds
CYCLES = 2e9  # of a GPU in a second, at most: how long a wait keeps it busy
CPU_CACHE = Path("/sys/devices/system/cpu/cpu0/cache")


def samples_of(run: Callable[[], object], device: torch.device, *, quick: bool) -> list[float]:
    """Seconds of each repetition."""
    return samples_in_turn({"": run}, device, quick=quick)[""]


def samples_in_turn(
    runs: dict[str, Callable[[], object]], device: torch.device, *, quick: bool
) -> dict[str, list[float]]:
    """Seconds of each repetition of each of ``runs``.

    On a GPU by CUDA events with a cold L2 cache, one after the other; the GPU is kept waiting until a call has been
    issued as a whole, so that gaps between its launches do not count. On a CPU by `clock`, in rounds, a block of calls
    of each in turning order: what slows one slows all.
    """
    if device.type == "cuda":
        return {name: _by_events(run, QUICK_GPU_SECONDS if quick else GPU_SECONDS) for name, run in runs.items()}
    once = {name: min(_block(run, 1) for _ in range(2)) for name, run in runs.items()}
    counts = {name: max(1, round(BLOCK / seconds)) for name, seconds in once.items()}
    cost = sum(counts[name] * once[name] for name in runs)
    rounds = max(5, round((QUICK_SECONDS if quick else SECONDS) * len(runs) / cost))
    samples = {name: [] for name in runs}
    for i in range(rounds):
        for name in runs if i % 2 == 0 else reversed(runs):
            samples[name].append(_block(runs[name], counts[name]))
    return samples


def _by_events(run: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each of as many calls as fit in ``seconds``, from 5 to `MOST`."""
    cold = torch.empty(COLD, dtype=torch.uint8, device="cuda")
    for _ in range(3):  # the last one counts: the first may compile
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        issued = time.perf_counter() - start
        torch.cuda.synchronize()
        once = time.perf_counter() - start
    count = max(5, min(MOST, round(seconds / (issued + once))))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        cold.zero_()
        torch.cuda._sleep(round(min(2 * issued, LONGEST_WAIT) * CYCLES))
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


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
    return _median_on_the_host(run, calls=10, waits=False)


def latency_seconds(run: Callable[[], object]) -> float:
    """Time from one call to its result on an idle GPU, the host's part included."""
    return _median_on_the_host(run, calls=1, waits=True)


def _median_on_the_host(run: Callable[[], object], calls: int, waits: bool) -> float:
    """Seconds of a call, as the median of blocks of ``calls``, for about `GPU_SECONDS`; ``waits`` for its result."""
    samples, begun = [], time.perf_counter()
    while len(samples) < 3 or (time.perf_counter() - begun < GPU_SECONDS and len(samples) < 30):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        if waits:
            torch.cuda.synchronize()
        samples.append((time.perf_counter() - start) / calls)
    torch.cuda.synchronize()
    return statistics.median(samples)


def spread_of(samples: list[float]) -> float:
    """Interquartile range over the median."""
    if len(samples) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4)
    return (high - low) / middle
