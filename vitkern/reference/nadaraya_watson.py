"""Nadaraya-Watson kernel regression as the plain formula, f(x) = sum_i softmax_i(-w |x - x_i|^2 / 2) y_i (Nadaraya, On
Estimating Regression, 1964; Watson, Smooth Regression Analysis, 1964)."""

import torch
from torch import Tensor

from vitkern.reference.attention import _softmax


def nadaraya_watson(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    width: Tensor | float = 1.0,
    *,
    squared: bool = False,
    key_padding_mask: Tensor | None = None,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """The definition of `vitkern.ops.nadaraya_watson.nadaraya_watson`, with the same arguments.

    Computes in float64 when ``x`` is float64, else in float32; ``low_precision`` changes nothing but the dtype of the
    result.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    w = torch.as_tensor(width).to(wide).reshape(())
    distances = (x.to(wide)[:, :, None] - keys.to(wide)[:, None]).square().sum(-1)  # (B, N, M)
    scores = -0.5 * (w * w if squared else w) * distances
    if key_padding_mask is not None:
        scores = scores.masked_fill(~key_padding_mask[:, None], float("-inf"))
    return (_softmax(scores)[2] @ values.to(wide)).to(values.dtype)
