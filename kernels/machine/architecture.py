"""Which GPU a kernel is for: 80, 90, 100, 120, ... for NVIDIA, 942 and the like for AMD, and `INTERPRETER` where it is
interpreted."""

import functools

import torch

from .switch import Switch

INTERPRETER = 0
AMPERE, CONSUMER_BLACKWELL, HOPPER, BLACKWELL, CDNA = range(5)  # `family`; in this order in tables of block sizes
SMALL_SHARED = (86, 89, 120, 121)  # 99 KiB a program, and not 163 or more
_forced = Switch(None)


@functools.cache
def _device_arch(index):
    if torch.version.hip:
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return max(900, int("".join(c for c in name if c.isdigit()) or 942))  # gfx90a is no Hopper
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


def arch_of(tensor):
    """Architecture that a kernel on ``tensor`` is configured for."""
    if _forced.value is not None:
        return _forced.value
    return _device_arch(tensor.device.index or 0) if tensor.is_cuda else INTERPRETER


def forced_arch(arch):
    """Within the block configure for ``arch`` whatever the tensors' device: how kernels are compiled without a GPU."""
    return _forced.set(arch)


def family(arch):
    """How a multiprocessor multiplies matrices; None in the interpreter.

    AMPERE: both operands and the sum in registers (80 to 89). CONSUMER_BLACKWELL: likewise, where other tiles spill
    (120 on). HOPPER: operands in shared memory, the sum in registers. BLACKWELL: the sum in a memory of its own (100 to
    119). CDNA: as Ampere, with warps of 64 lanes, 512 registers a lane and 64 KiB of shared memory.
    """
    if arch == INTERPRETER:
        return None
    if arch >= 900:
        return CDNA
    if arch >= 120:
        return CONSUMER_BLACKWELL
    return BLACKWELL if arch >= 100 else HOPPER if arch == 90 else AMPERE
