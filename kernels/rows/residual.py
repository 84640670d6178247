"""The norm of x, or of x + residual, and what launchers of rows share: allocations, and what a backward starts from."""

import torch

from .tiles import as_rows


def norm_outputs(x, residual, dtype, statistics):
    """y in ``dtype``, the sum (empty without a residual), and as many float32 ``statistics`` per row."""
    total = (0,) if residual is None else x.shape
    total_dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    return (
        torch.empty(x.shape, dtype=dtype, device=x.device),
        torch.empty(total, dtype=total_dtype, device=x.device),
        *(torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device) for _ in range(statistics)),
    )


def gradients_like(inputs, needs):
    """One for each input; empty where not needed. The first input is x."""
    x = inputs[0]
    return tuple(
        torch.empty(like.shape if needed else (0,), dtype=like.dtype if needed else x.dtype, device=x.device)
        for like, needed in zip(inputs, needs, strict=True)
    )


def rows_per_factor(rows, row_scale):
    """How many of ``rows`` an entry of ``row_scale`` is for."""
    return 1 if row_scale is None else max(1, rows // max(1, row_scale.numel()))


def gradient_rows(grad, grad_total, y, total, x, residual):
    """As rows: the gradient of y, that of the sum (or None), and what was normalised; then its gradient, to be filled.

    ``grad`` or ``grad_total`` may be None, a zero.
    """
    s = x if residual is None else total
    dtotal = None if residual is None or grad_total is None else as_rows(grad_total)
    dy = torch.zeros_like(y) if grad is None else grad
    return as_rows(dy), dtotal, as_rows(s), torch.empty(x.shape, dtype=s.dtype, device=x.device)


def as_gradients(values, inputs, needs, dtype):
    """``values`` as the gradients of ``inputs``: in their dtypes and shapes, no two the same tensor. One that is not
    needed is empty, in ``dtype``."""
    found, taken = [], []
    for value, like, needed in zip(values, inputs, needs, strict=True):
        if not needed:
            found.append(torch.empty(0, dtype=dtype, device=inputs[0].device))
            continue
        made = value.to(like.dtype).view(like.shape)
        found.append(made.clone() if any(made.data_ptr() == other.data_ptr() for other in taken) else made)
        taken.append(made)
    return tuple(found)
