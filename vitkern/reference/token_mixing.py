"""The token mixing of MLP-Mixer as the plain formula (Tolstikhin et al., arXiv 2105.01601, equation 1)."""

import torch
from torch import Tensor

from vitkern.reference.layernorm import normalised
from vitkern.reference.layernorm_mlp import _linear, activation
from vitkern.reference.rounding import rounded, with_value


def token_mixing(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    eps: float,
    act: str = "gelu",
    row_scale: Tensor | None = None,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """``x + row_scale * fc2(act(fc1(norm(x)^T)))^T``, the MLP along the tokens of each channel.

    Args:
        x: (B, N, C). float64 is computed in float64, everything else in float32.
        norm_weight, norm_bias: (C,) or None.
        fc1_weight, fc1_bias: (S, N) and (S,). fc2_weight, fc2_bias: (N, S) and (N,). Biases may be None.
        row_scale: (B,), the factor of a whole sample.
        low_precision: dtype of the operands of matrix products, in forward and backward, and of what the backward
            reads of fc1. The sums stay float32 and the result is rounded once.

    Returns:
        as x; float64 or float32.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = x.to(dtype)
    pre = _linear(normalised(wide, norm_weight, norm_bias, eps).mT, fc1_weight, fc1_bias, low_precision)

    def finish(pre: Tensor) -> Tensor:
        y = _linear(activation(pre, act), fc2_weight, fc2_bias, low_precision).mT
        return rounded(wide + (y if row_scale is None else y * row_scale.to(dtype).view(-1, 1, 1)), low_precision)

    out = finish(pre)
    if low_precision is None or not out.requires_grad:
        return out
    return with_value(finish(with_value(pre, pre.to(low_precision).to(dtype))), out)
