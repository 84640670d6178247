"""Integers that follow the size of an image.

Triton compiles a kernel anew where an integer is 1 or a multiple of 16, within a tuple too, where ``do_not_specialize``
does not reach. Those of an image travel in disguise, odd and above 1, so that one kernel serves all sizes.
"""

import triton
import triton.language as tl


def disguised(number):
    """``number``, 0 or more, as a kernel is given it."""
    return 2 * number + 3


def inverse(number):
    """What `divided` takes to divide by ``number``, at least 2; odd, see above."""
    return (2**31 // number + 1) | 1


@triton.jit
def divided(i, inverse):
    """i // number, rounded down, where 0 <= i * number < 2^30. A division of integers takes ten times as long."""
    return tl.umulhi(i * 2, inverse)


@triton.jit
def plain(number):
    """A number from its disguise."""
    return (number - 3) >> 1


@triton.jit
def all_plain(numbers):
    """`plain` of each number of a tuple."""
    found = ()
    for n in tl.static_range(len(numbers)):
        found += (plain(numbers[n]),)
    return found
