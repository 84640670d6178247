"""The one place where a Triton kernel is started."""

import contextvars
import functools
import math
from contextlib import contextmanager

import torch
import triton

from .switch import Switch

MOST_PROGRAMS = 2**31 - 1  # of a grid; the number of a program is an int32
_receiver = Switch(None)  # of every launch, instead of the device
_witness = contextvars.ContextVar("witness", default=None)  # of this thread's launches


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
    if scratch:
        start = functools.partial(with_scratch, start)
    witness = _witness.get()
    try:
        if witness is None:
            start()
        else:
            witness(start, kernel, grid, args, constants, scratch)
    except Exception as error:
        error.kernel_of_launch = getattr(kernel, "__name__", str(kernel))  # tells it from errors of the code around
        raise


def with_scratch(start):
    """``start()`` with an allocator of ours. It is set in a copy of the context, so that the user's own stays set."""
    return contextvars.copy_context().run(_with_allocator, start)


def _with_allocator(start):
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device="cuda"))
    return start()


def redirected(receiver):
    """Within the block, hand each launch to ``receiver(kernel, grid, args, constants, options)``; nothing runs."""
    return _receiver.set(receiver)


def is_redirected():
    """Whether a receiver takes each launch."""
    return _receiver.value is not None


@contextmanager
def witnessed(witness):
    """Within the block, each launch of this thread is ``witness(start, kernel, grid, args, constants, scratch)``, which
    calls ``start()``: that starts it and returns what Triton compiled, None in the interpreter."""
    token = _witness.set(witness)
    try:
        yield
    finally:
        _witness.reset(token)
