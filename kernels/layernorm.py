"""LayerNorm of (..., C), after an addition or not: the launchers of rows/layernorm.py."""

from .rows.layernorm import normalise_rows, normalise_rows_backward
from .rows.residual import as_gradients, gradient_rows, gradients_like, norm_outputs
from .rows.tiles import as_rows


def layernorm_outputs(x, weight, bias, residual, eps, dtype):
    """y, the sum (empty without a residual), mean and 1 / standard deviation per row."""
    return norm_outputs(x, residual, dtype, statistics=2)


def layernorm_forward(x, weight, bias, residual, eps, dtype):
    """x (..., C) -> y in ``dtype``, x + residual, mean, rstd."""
    y, total, mean, rstd = layernorm_outputs(x, weight, bias, residual, eps, dtype)
    normalise_rows(
        as_rows(x), weight, bias, eps, residual=None if residual is None else as_rows(residual),
        y=y, total=None if residual is None else total, mean=mean, rstd=rstd,
    )  # fmt: skip
    return y, total, mean, rstd


def layernorm_gradients(grad, grad_total, y, total, mean, rstd, x, weight, bias, residual, eps, dtype, needs):
    """dx, dweight, dbias, dresidual; empty where not needed."""
    return gradients_like((x, weight, bias, residual), needs)


def layernorm_backward(grad, grad_total, y, total, mean, rstd, x, weight, bias, residual, eps, dtype, needs):
    """Gradients of `layernorm_forward`; ``grad`` or ``grad_total`` may be None, a zero."""
    dy, dtotal, s, ds = gradient_rows(grad, grad_total, y, total, x, residual)
    sums = normalise_rows_backward(dy, s, mean, rstd, weight, dtotal=dtotal, dx=ds)
    return as_gradients((ds, *sums, ds), (x, weight, bias, residual), needs, x.dtype)
