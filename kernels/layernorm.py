"""LayerNorm of (..., C), after an addition or not: the launchers of rows/layernorm.py."""

import torch

from .rows.layernorm import normalise_rows, normalise_rows_backward
from .rows.tiles import as_rows


def layernorm_outputs(x, weight, bias, residual, eps, dtype):
    """y, the sum (empty without a residual), mean and 1 / standard deviation per row."""
    statistics_shape = x.shape[:-1]
    total = (0,) if residual is None else x.shape
    total_dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    return (
        torch.empty(x.shape, dtype=dtype, device=x.device),
        torch.empty(total, dtype=total_dtype, device=x.device),
        torch.empty(statistics_shape, dtype=torch.float32, device=x.device),
        torch.empty(statistics_shape, dtype=torch.float32, device=x.device),
    )


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
    inputs = (x, weight, bias, residual)
    return tuple(
        torch.empty(like.shape if needed else (0,), dtype=like.dtype if needed else x.dtype, device=x.device)
        for like, needed in zip(inputs, needs, strict=True)
    )


def layernorm_backward(grad, grad_total, y, total, mean, rstd, x, weight, bias, residual, eps, dtype, needs):
    """Gradients of `layernorm_forward`; ``grad`` or ``grad_total`` may be None, a zero."""
    dx, dweight, dbias, dresidual = layernorm_gradients(
        grad, grad_total, y, total, mean, rstd, x, weight, bias, residual, eps, dtype, needs
    )
    if grad is None:
        grad = torch.zeros_like(y)
    s = x if residual is None else total
    ds = torch.empty(x.shape, dtype=s.dtype, device=x.device)
    dtotal = None if residual is None or grad_total is None else as_rows(grad_total)
    sums = normalise_rows_backward(as_rows(grad), as_rows(s), mean, rstd, weight, dtotal=dtotal, dx=ds)
    for needed, slot, value in zip(needs, (dx, dweight, dbias, dresidual), (ds, *sums, ds), strict=True):
        if needed:
            slot.copy_(value)
    return dx, dweight, dbias, dresidual
