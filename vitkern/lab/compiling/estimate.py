"""A lower bound for the time of a compiled launch on named GPUs, from its instruction mix, beside the roofline.

UNCALIBRATED: no measurement went into it. It says which resource is the scarcest and what a change makes worse, not how
long a kernel takes; latency, caches, launch overhead and uneven schedules are left out.

Sources: data sheets of A100 SXM 80 GB, H100 SXM, H200, HGX B200 and Instinct MI300X; NVIDIA RTX Blackwell white paper
for the RTX 5090, whose tensor cores accumulate in float32 at half their rate. ``clock`` is peak / (multiprocessors x
operations per clock), which gives the published boost clocks of 1.41, 2.41 and 2.10 GHz for A100, RTX 5090 and MI300X.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vitkern.lab.compiling import budget
from vitkern.lab.compiling.compiled import Compiled, compile_launches

LABEL = "uncalibrated"


@dataclass(frozen=True)
class Gpu:
    arch: int
    multiprocessors: int
    memory: float  # bytes/s
    half: float  # FLOP/s, dense, float32 accumulation
    tensor_flop: int  # per clock and multiprocessor

    @property
    def clock(self) -> float:
        """Hz."""
        return self.half / (self.multiprocessors * self.tensor_flop)


GPUS = {
    "A100": Gpu(80, 108, 2.039e12, 312e12, 2048),
    "H100": Gpu(90, 132, 3.35e12, 989e12, 4096),
    "H200": Gpu(90, 132, 4.8e12, 989e12, 4096),
    "B200": Gpu(100, 148, 8.0e12, 2250e12, 8192),
    "RTX 5090": Gpu(120, 170, 1.792e12, 209.5e12, 512),
    "MI300X": Gpu(942, 304, 5.3e12, 1307.4e12, 2048),
}


@dataclass(frozen=True)
class Bound:
    """Seconds that a launch takes at least; ``by``: the pipe that says so, or "dram"."""

    seconds: float
    by: str
    roofline: float  # seconds: the larger of bytes over bandwidth and matrix products over peak


def turn_bounds(kernel: Compiled, gpu: Gpu | None = None) -> dict[str, float]:
    """Cycles of one turn of the loop on each pipe of a multiprocessor, by `budget.loop_bounds`."""
    cycles = dict(budget.loop_bounds(kernel.arch, kernel.machine, kernel.loop_warps, kernel.work.flop))
    if gpu is not None:
        cycles["tensor"] *= budget.LIMITS[kernel.arch].tensor_flop / gpu.tensor_flop
    return cycles


def bound(kernel: Compiled, gpu: Gpu) -> Bound:
    """The busiest multiprocessor's pipes, or the device memory, whichever takes longer.

    Raises:
        ValueError: the kernel was compiled for another architecture.
    """
    if kernel.arch != gpu.arch:
        raise ValueError(
            f"estimate: another architecture: got {budget.name_of(kernel.arch)}; expected {budget.name_of(gpu.arch)}. "
            "Compile for it."
        )
    cycles, work = turn_bounds(kernel, gpu), kernel.work
    read = budget.loop_flop(kernel.machine, kernel.loop_warps)
    turns = work.turns / max(1, round(read / work.flop) if work.flop else 1)  # a compiler may unroll the loop
    busiest = math.ceil(work.programs / gpu.multiprocessors)
    by = max(cycles, key=cycles.get)
    compute, dram = busiest * turns * cycles[by] / gpu.clock, work.moved / gpu.memory
    roofline = max(dram, work.programs * work.turns * work.flop / gpu.half)
    return Bound(compute, by, roofline) if compute > dram else Bound(dram, "dram", roofline)


def bounds(kernel: Compiled) -> dict[str, Bound]:
    """GPU -> `Bound`, for the GPUs of the architecture that the kernel was compiled for."""
    return {name: bound(kernel, gpu) for name, gpu in GPUS.items() if gpu.arch == kernel.arch}


def time_of(fn: Callable[[], object], gpu: str, *, after: Callable[[], object] | None = None) -> float:
    """Seconds that the kernels of ``fn()`` take at least on ``gpu``, one after the other; see `compile_launches`.

    ``after``: its kernels are left out: the forward, where ``fn`` is forward and backward. What an op leaves to
    PyTorch's own kernels is not counted.
    """
    before = compile_launches(after, GPUS[gpu].arch) if after is not None else []
    kernels = [kernel for kernel in compile_launches(fn, GPUS[gpu].arch) if kernel not in before]
    return sum(bound(kernel, GPUS[gpu]).seconds for kernel in kernels)
