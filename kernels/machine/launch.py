"""The one place where a Triton kernel is started."""

import contextvars
import functools
import math

import torch
import triton

from .switch import Switch

MOST_PROGRAMS = 2**31 - 1  # of a grid; the number of a program is an int32
_receiver = Switch(None)  # of every launch, instead of the device


def launch(kernel, grid, *args, num_warps, num_stages, scratch=False, **constants):
    """Run ``kernel`` over ``grid``; an empty grid is no launch. ``scratch``: the kernel makes descriptors, for which
    Triton needs memory.

    FP fusion is named explicitly because Triton's default for it changes between releases, and with it the last bits.

    Raises:
        ValueError: the grid has more programs than a GPU can count.
    """
    if 0 in grid:
        return
    if math.prod(grid) > MOST_PROGRAMS:
        raise ValueError(
            f"{kernel.__name__}: the problem is too large for one launch: got {math.prod(grid)} programs; expected at "
            f"most {MOST_PROGRAMS}. Split the batch."
        )
    options = dict(num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)
    if _receiver.value is not None:
        _receiver.value(kernel, grid, args, constants, options)
        return
    start = functools.partial(kernel[grid], *args, **constants, **options)
    try:
        contextvars.copy_context().run(_with_scratch, start) if scratch else start()
    except Exception as error:
        error.kernel_of_launch = getattr(kernel, "__name__", str(kernel))  # tells it from errors of the code around
        raise


def _with_scratch(start):
    """``start()`` with an allocator of ours. It is set in a copy of the context, so that the user's own stays set."""
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
    start()


def redirected(receiver):
    """Within the block, hand each launch to ``receiver(kernel, grid, args, constants, options)``; nothing runs."""
    return _receiver.set(receiver)
