"""The one place where a Triton kernel is started."""

from contextlib import contextmanager

_redirect = None  # set by `redirected`: receives every launch instead of the device


def launch(kernel, grid, *args, num_warps, num_stages, **constants):
    """Run ``kernel`` over ``grid``; an empty grid is no launch.

    FP fusion is named explicitly because Triton's default for it changes between releases, and with it the last bits.
    """
    if 0 in grid:
        return
    options = dict(num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)
    if _redirect is not None:
        _redirect(kernel, grid, args, constants, options)
        return
    try:
        kernel[grid](*args, **constants, **options)
    except Exception as error:
        error.kernel_of_launch = getattr(kernel, "__name__", str(kernel))  # tells it from errors of the code around
        raise


@contextmanager
def redirected(receiver):
    """Within the block, hand each launch to ``receiver(kernel, grid, args, constants, options)``; nothing runs."""
    global _redirect
    before, _redirect = _redirect, receiver
    try:
        yield
    finally:
        _redirect = before
