"""Root mean square normalisation as the plain formula (Zhang and Sennrich, arXiv 1910.07467, equation 4)."""

import torch
from torch import Tensor

from vitkern.reference.rounding import rounded


def rmsnorm(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    *,
    low_precision: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``s / sqrt(mean(s^2) + eps) * weight`` over the last dimension of ``s = x + residual``.

    Args:
        x: (..., C). float64 is computed in float64, everything else in float32.
        weight: (C,) or None.
        eps: added to the mean square.
        residual: as x; then ``s`` is returned as well.
        low_precision: dtype that a kernel would store; the sum and the result are rounded to it once, and nothing
            else is.

    Returns:
        y, or (y, s); float64 or float32.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x.to(dtype) if residual is None else rounded(x.to(dtype) + residual.to(dtype), low_precision)
    y = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
    y = rounded(y if weight is None else y * weight.to(dtype), low_precision)
    return y if residual is None else (y, total)
