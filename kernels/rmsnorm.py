"""RMSNorm of (..., C), after an addition or not: the launchers of rows/layernorm.py, without a mean and a bias.

Bytes, in units of a tensor (..., C): forward 2 (read x, write y), backward 3 (read dy and x, write dx), which is the
floor; 4 each with a residual. The statistic is 4 bytes a row, and the partial sums of dweight are on top.
"""

from .rows.layernorm import normalise_rows, normalise_rows_backward
from .rows.residual import as_gradients, gradient_rows, gradients_like, norm_outputs
from .rows.tiles import as_rows


def rmsnorm_outputs(x, weight, residual, eps, dtype):
    """y, the sum (empty without a residual), and 1 / root mean square per row."""
    return norm_outputs(x, residual, dtype, statistics=1)


def rmsnorm_forward(x, weight, residual, eps, dtype):
    """x (..., C) -> y in ``dtype``, x + residual, rstd."""
    y, total, rstd = rmsnorm_outputs(x, weight, residual, eps, dtype)
    normalise_rows(
        as_rows(x), weight, None, eps, residual=None if residual is None else as_rows(residual),
        y=y, total=None if residual is None else total, rstd=rstd, centred=False,
    )  # fmt: skip
    return y, total, rstd


def rmsnorm_gradients(grad, grad_total, y, total, rstd, x, weight, residual, eps, dtype, needs):
    """dx, dweight, dresidual; empty where not needed."""
    return gradients_like((x, weight, residual), needs)


def rmsnorm_backward(grad, grad_total, y, total, rstd, x, weight, residual, eps, dtype, needs):
    """Gradients of `rmsnorm_forward`; ``grad`` or ``grad_total`` may be None, a zero."""
    dy, dtotal, s, ds = gradient_rows(grad, grad_total, y, total, x, residual)
    dweight, _ = normalise_rows_backward(dy, s, None, rstd, weight, dtotal=dtotal, dx=ds)
    return as_gradients((ds, dweight, ds), (x, weight, residual), needs, x.dtype)
