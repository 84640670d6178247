"""What an architecture allows, how many programs fit on one multiprocessor, and lower bounds for one turn of a loop.

The bounds count pipe cycles from the instruction mix. They say what a change makes worse, not how long a kernel takes.
"""

import math
import re
from dataclasses import dataclass

from vitkern.lab.sass import Machine


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor; bytes, and operations per clock."""

    shared_block: int  # most shared memory of one program
    shared: int
    warps: int
    tensor_flop: int  # dense half precision
    fp32_lanes: int
    registers: int = 65536
    blocks: int = 32
    special_lanes: int = 16  # exp2, rsqrt, ...
    issue: int = 4


# CUDA C programming guide, "technical specifications per compute capability"; tensor rates: architecture whitepapers.
LIMITS = {
    80: Limits(shared_block=166912, shared=167936, warps=64, tensor_flop=2048, fp32_lanes=64),
    86: Limits(shared_block=101376, shared=102400, warps=48, tensor_flop=1024, fp32_lanes=128, blocks=16),
    89: Limits(shared_block=101376, shared=102400, warps=48, tensor_flop=1024, fp32_lanes=128, blocks=24),
    90: Limits(shared_block=232448, shared=233472, warps=64, tensor_flop=4096, fp32_lanes=128),
    100: Limits(shared_block=232448, shared=233472, warps=64, tensor_flop=8192, fp32_lanes=128),
    120: Limits(shared_block=101376, shared=102400, warps=48, tensor_flop=1024, fp32_lanes=128, blocks=24),
    942: Limits(shared_block=65536, shared=65536, warps=32, tensor_flop=2048, fp32_lanes=128),
}
_TENSOR_MEMORY = 512  # columns, sm_100
_RESERVED = 1024  # bytes of shared memory that the driver takes per program


def programs_per_sm(arch: int, machine: Machine, num_warps: int, shared: int, tensor_memory: int = 0) -> int:
    """Programs of this kernel that one multiprocessor holds at once, 0 where none fits. AMD is not modelled: 0 or 1."""
    limits = LIMITS[arch]
    if shared > limits.shared_block:
        return 0
    if arch not in (80, 86, 89, 90, 100, 120):
        return 1
    registers = max(8, math.ceil(machine.registers / 8) * 8) * 32 * num_warps
    fits = [
        limits.registers // registers,
        limits.warps // num_warps,
        limits.shared // (shared + _RESERVED),
        limits.blocks,
    ]
    if tensor_memory:
        fits.append(_TENSOR_MEMORY // tensor_memory)
    return min(fits)


def _flop(name: str, num_warps: int) -> int:
    """Floating-point operations of one tensor-core instruction over the whole program."""
    if name.startswith("HMMA"):
        shape = re.search(r"\.(168|1688|16816|1684)\b", name)
        m, n, k = {"1688": (16, 8, 8), "1684": (16, 8, 4)}.get(shape.group(1) if shape else "", (16, 8, 16))
        return 2 * m * n * k * num_warps
    shape = re.search(r"(\d+)x(\d+)x(\d+)", name)
    if shape:
        m, n, k = map(int, shape.groups())
        return 2 * m * n * k * max(1, num_warps // 4)
    return 0


def loop_bounds(arch: int, machine: Machine, num_warps: int) -> dict[str, int]:
    """Cycles that one turn of the innermost loop needs at least on each pipe: tensor, special, fp32, issue."""
    limits, mix = LIMITS[arch], machine.mix
    count = sum(mix.get(name, 0) for name in ("FFMA", "FADD", "FMUL", "FMNMX", "FSEL", "FSETP", "FMNMX3"))
    count += 2 * sum(mix.get(name, 0) for name in ("FFMA2", "FADD2", "FMUL2"))
    cycles = {
        "tensor": sum(_flop(name, num_warps) for name, _ in machine.products) / limits.tensor_flop,
        "special": mix.get("MUFU", 0) * 32 * num_warps / limits.special_lanes,
        "fp32": count * 32 * num_warps / limits.fp32_lanes,
        "issue": sum(mix.values()) * num_warps / limits.issue,
    }
    return {pipe: round(value) for pipe, value in cycles.items()}
