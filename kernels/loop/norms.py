"""Hook: how rows of q and k are normalised once they are loaded.

``NORM(rows, DIM) -> rows`` and ``NORM_BACKWARD(grad, rows, DIM) -> grad`` with ``rows`` a head as heads.py has it, a
tuple of tiles that are zero from DIM on, in the dtype of the operand, and ``grad`` likewise in float32: the gradient of
what NORM returns, then that of what it was given.
"""

import triton
import triton.language as tl

from ..machine.tiles import unit_length
from .heads import inner_products


@triton.jit
def plain(rows, DIM: tl.constexpr):
    """No change."""
    return rows


@triton.jit
def plain_backward(grad, rows, DIM: tl.constexpr):
    return grad


@triton.jit
def unit(rows, DIM: tl.constexpr):
    """Unit length, rounded to the dtype of the operand (Swin V2, arXiv 2111.09883, equation 2)."""
    inverse = unit_length(inner_products(rows, rows))[:, None]
    parts = ()
    for n in tl.static_range(len(rows)):
        parts += ((rows[n].to(tl.float32) * inverse).to(rows[n].dtype),)
    return parts


@triton.jit
def unit_backward(grad, rows, DIM: tl.constexpr):
    inverse = unit_length(inner_products(rows, rows))
    along = tl.where(inverse < 1e12, inner_products(grad, rows) * inverse * inverse, 0.0)  # constant where clamped
    parts = ()
    for n in tl.static_range(len(rows)):
        parts += ((grad[n] - rows[n].to(tl.float32) * along[:, None]) * inverse[:, None],)
    return parts
