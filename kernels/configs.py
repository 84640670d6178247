"""Block sizes, warps and stages: plain functions of shape, dtype and architecture. Every entry is compiled in the tests.

``arch`` is 80, 90, 100, 120, ... for NVIDIA, 942 and the like for AMD, and `INTERPRETER` where the kernel is interpreted. The interpreter
gets small tiles, so that small tests cross block boundaries.
"""

import functools
from contextlib import contextmanager
from typing import NamedTuple

import torch

INTERPRETER = 0
_forced_arch = None


class Config(NamedTuple):
    """Tile of a kernel: rows, columns of the inner loop, warps per program, software-pipelining stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@functools.cache
def _device_arch(index):
    if torch.version.hip:
        name = torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
        return int("".join(c for c in name if c.isdigit()) or 942)
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


def head_tile(head_dim):
    """Power of two that holds a head; tl.dot needs at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


def alignment(itemsize, *strides):
    """Largest power of two of elements, up to 16 bytes, that divides every stride.

    Strides travel to a kernel divided by it and are multiplied back by a constexpr: the only way in which the compiler learns that a row
    stride of, say, 216 elements still allows 16-byte loads.
    """
    width = 16 // itemsize
    while width > 1 and any(stride % width for stride in strides):
        width //= 2
    return width
