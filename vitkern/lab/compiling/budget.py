"""What an architecture allows, how many programs fit on one multiprocessor, and lower bounds for one turn of a loop.

The bounds count pipe cycles from the instruction mix. They say what a change makes worse, not how long a kernel takes.
"""

import math
import re
from dataclasses import dataclass

from vitkern.lab.compiling.sass import Machine

AMD = 900  # architectures from here on are gfx numbers


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor; bytes, and operations per clock."""

    shared_block: int  # most shared memory of one program
    shared: int
    warps: int
    tensor_flop: int  # dense half precision
    fp32_lanes: int
    registers: int = 65536  # per thread of a full multiprocessor: 32 bits each
    blocks: int = 32
    special_lanes: int = 16  # exp2, rsqrt, ...
    issue: int = 4
    memory: int = 128  # bytes to and from shared memory and the first cache
    reserved: int = 1024  # bytes of shared memory that the driver takes per program
    lanes: int = 32  # threads of a warp


# CUDA C programming guide, "technical specifications per compute capability" and "arithmetic instructions"; tensor
# rates: architecture whitepapers. gfx942: CDNA 3 white paper and instruction set guide: four units of 16 lanes, each of
# which takes one wave's vector instruction every 4 clocks, packed ones with two operations a lane.
LIMITS = {
    80: Limits(shared_block=166912, shared=167936, warps=64, tensor_flop=2048, fp32_lanes=64),
    86: Limits(shared_block=101376, shared=102400, warps=48, tensor_flop=1024, fp32_lanes=128, blocks=16),
    89: Limits(shared_block=101376, shared=102400, warps=48, tensor_flop=1024, fp32_lanes=128, blocks=24),
    90: Limits(shared_block=232448, shared=233472, warps=64, tensor_flop=4096, fp32_lanes=128),
    100: Limits(shared_block=232448, shared=233472, warps=64, tensor_flop=8192, fp32_lanes=128),
    120: Limits(shared_block=101376, shared=102400, warps=48, tensor_flop=1024, fp32_lanes=128, blocks=24),
    942: Limits(
        shared_block=65536,
        shared=65536,
        warps=32,
        tensor_flop=2048,
        fp32_lanes=64,
        registers=4 * 512 * 64,
        issue=1,
        reserved=0,
        lanes=64,
    ),
}
_TENSOR_MEMORY = 512  # columns, sm_100
_FP32 = ("FFMA", "FADD", "FMUL", "FMNMX", "FSEL", "FSETP", "FMNMX3")
_FP32_PAIRS = ("FFMA2", "FADD2", "FMUL2")
_AMD_SPECIAL = ("v_exp_", "v_log_", "v_rcp_", "v_rsq_", "v_sqrt_", "v_sin_", "v_cos_")
_AMD_FP32 = re.compile(r"v_(pk_)?(fma|fmac|fmaak|fmamk|add|sub|mul|max|min|max3|min3)_f32")


def name_of(arch: int) -> str:
    """``sm_90`` or ``gfx942``."""
    return f"sm_{arch}" if arch < AMD else f"gfx{arch}"


def programs_per_sm(arch: int, machine: Machine, num_warps: int, shared: int, tensor_memory: int = 0) -> int:
    """Programs of this kernel that one multiprocessor holds at once, 0 where none fits."""
    limits = LIMITS[arch]
    if shared > limits.shared_block:
        return 0
    registers = max(8, math.ceil(machine.registers / 8) * 8) * limits.lanes
    # A warp's registers lie in one of four register files.
    warps = min(limits.warps, limits.registers // 4 // registers * 4)
    fits = [warps // num_warps, limits.blocks]
    if shared + limits.reserved:
        fits.append(limits.shared // (shared + limits.reserved))
    if tensor_memory:
        fits.append(_TENSOR_MEMORY // tensor_memory)
    return min(fits)


def _flop(name: str, num_warps: int) -> int:
    """Floating-point operations of one tensor-core instruction over the whole program; 0 where its name hides them."""
    if name.startswith("HMMA"):
        shape = re.search(r"\.(168|1688|16816|1684)\b", name)
        m, n, k = {"1688": (16, 8, 8), "1684": (16, 8, 4)}.get(shape.group(1) if shape else "", (16, 8, 16))
        return 2 * m * n * k * num_warps
    shape = re.search(r"(\d+)x(\d+)x(\d+)", name)
    if shape:
        m, n, k = map(int, shape.groups())
        blocks = re.search(r"_(\d+)b_", name)
        groups = max(1, num_warps // 4) if name.startswith("HGMMA") else num_warps
        return 2 * m * n * k * groups * (int(blocks.group(1)) if blocks else 1)
    return 0


def loop_flop(machine: Machine, num_warps: int) -> int:
    """Floating-point operations of the tensor cores in one turn of the innermost loop, as far as their names tell."""
    return sum(_flop(name, num_warps) for name, _ in machine.products)


def _counts(arch: int, mix: dict[str, int]) -> tuple[int, int, int]:
    """Instructions of a mix for the special and the fp32 pipe, and all that the scheduler issues to vector pipes."""
    if arch < AMD:
        fp32 = sum(mix.get(name, 0) for name in _FP32) + 2 * sum(mix.get(name, 0) for name in _FP32_PAIRS)
        return mix.get("MUFU", 0), fp32, sum(mix.values())
    special = sum(count for name, count in mix.items() if name.startswith(_AMD_SPECIAL))
    fp32 = sum(count for name, count in mix.items() if _AMD_FP32.match(name))
    vector = sum(count for name, count in mix.items() if name.startswith("v_") and "mfma" not in name)
    return special, fp32, vector


def loop_bounds(arch: int, machine: Machine, num_warps: int, flop: int = 0) -> dict[str, int]:
    """Cycles that one turn of the innermost loop needs at least on each pipe: tensor, special, fp32, issue, memory.

    ``flop``: of the matrix products of a turn, for tensor-core instructions whose names do not tell (sm_100).
    """
    limits, threads = LIMITS[arch], LIMITS[arch].lanes * num_warps
    special, fp32, issued = _counts(arch, machine.mix)
    cycles = {
        "tensor": (loop_flop(machine, num_warps) or (flop if machine.products else 0)) / limits.tensor_flop,
        "special": special * threads / limits.special_lanes,
        "fp32": fp32 * threads / limits.fp32_lanes,
        "issue": issued * num_warps / limits.issue,
        "memory": machine.traffic / 8 * threads / limits.memory,
    }
    return {pipe: round(value) for pipe, value in cycles.items()}
