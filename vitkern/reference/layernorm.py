"""Layer normalisation as the plain formula (Ba et al., arXiv 1607.06450, equation 4)."""

import torch
from torch import Tensor

from vitkern.reference.rounding import rounded


def layernorm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    *,
    low_precision: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``(s - mean) / sqrt(variance + eps) * weight + bias`` over the last dimension of ``s = x + residual``.

    Args:
        x: (..., C). float64 is computed in float64, everything else in float32.
        weight, bias: (C,) or None.
        eps: added to the biased variance.
        residual: as x; then ``s`` is returned as well.
        low_precision: dtype that a kernel would store; the sum and the result are rounded to it once, and nothing
            else is.

    Returns:
        y, or (y, s); float64 or float32.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x.to(dtype) if residual is None else rounded(x.to(dtype) + residual.to(dtype), low_precision)
    y = rounded(normalised(total, weight, bias, eps), low_precision)
    return y if residual is None else (y, total)


def normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The formula alone, in the dtype of x."""
    centred = x - x.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(x.dtype)
    return y if bias is None else y + bias.to(x.dtype)
