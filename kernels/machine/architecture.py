"""Which GPU a kernel is for: 80, 90, 100, 120, ... for NVIDIA, 942 and the like for AMD, and `INTERPRETER` where it is
interpreted."""

import functools
from contextlib import contextmanager

import torch

INTERPRETER = 0
AMPERE, HOPPER, BLACKWELL, CDNA = "ampere", "hopper", "blackwell", "cdna"
SMALL_SHARED = (86, 89, 120, 121)  # 99 KiB a program, and not 163 or more
_forced_arch = None


@functools.cache
def _device_arch(index):
    if torch.version.hip:
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return max(900, int("".join(c for c in name if c.isdigit()) or 942))  # gfx90a is no Hopper
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


def arch_of(tensor):
    """Architecture that a kernel on ``tensor`` is configured for."""
    if _forced_arch is not None:
        return _forced_arch
    return _device_arch(tensor.device.index or 0) if tensor.is_cuda else INTERPRETER


@contextmanager
def forced_arch(arch):
    """Within the block configure for ``arch`` whatever the tensors' device: how kernels are compiled without a GPU."""
    global _forced_arch
    before, _forced_arch = _forced_arch, arch
    try:
        yield
    finally:
        _forced_arch = before


def family(arch):
    """How a multiprocessor multiplies matrices.

    AMPERE: both operands and the sum in registers (80 to 89; 120 again). HOPPER: operands in shared memory, the sum in
    registers. BLACKWELL: the sum in a memory of its own (100 to 119). CDNA: as Ampere, with warps of 64 lanes, 512
    registers a lane and 64 KiB of shared memory.
    """
    if arch == INTERPRETER:
        return None
    if arch >= 900:
        return CDNA
    return HOPPER if arch == 90 else BLACKWELL if 100 <= arch < 120 else AMPERE
