"""LayerNorm and the two-layer perceptron of a transformer block as the plain formula (Dosovitskiy et al., arXiv
2010.11929, equation 3).
"""

import math

import torch
from torch import Tensor

from vitkern.reference.layernorm import normalised
from vitkern.reference.rounding import rounded, rounded_gradient, with_value


def activation(x: Tensor, act: str) -> Tensor:
    """``"gelu"``: x * Phi(x) (arXiv 1606.08415); ``"gelu_tanh"``: its tanh approximation;
    ``"quick_gelu"``: x * sigmoid(1.702 x).
    """
    if act == "gelu":
        return 0.5 * x * torch.erfc(-x * math.sqrt(0.5))
    if act == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x * torch.sigmoid(1.702 * x)


def layernorm_mlp(
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
    layer_scale: Tensor | None = None,
    row_scale: Tensor | None = None,
    post_norm: bool = False,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """``x + row_scale * layer_scale * fc2(act(fc1(norm(x))))``; with ``post_norm`` the norm is taken of fc2's result
    instead.

    Args:
        x: (B, ..., C). float64 is computed in float64, everything else in float32.
        norm_weight, norm_bias: (C,) or None.
        fc1_weight, fc1_bias: (F, C) and (F,). fc2_weight, fc2_bias: (C, F) and (C,). Biases may be None.
        layer_scale: (C,). row_scale: (B,), the factor of a whole sample.
        low_precision: dtype of the operands of matrix products, in forward and backward, and of what is stored on
            the way: fc2's result before a post-norm and, where the backward reads it, fc1's. The sums stay float32
            and the result is rounded once.

    Returns:
        as x; float64 or float32.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = x.to(dtype)
    normed = wide if post_norm else normalised(wide, norm_weight, norm_bias, eps)
    pre = _linear(normed, fc1_weight, fc1_bias, low_precision)

    def stored(y: Tensor) -> Tensor:
        return with_value(y, y.to(low_precision).to(dtype))

    def finish(pre: Tensor, again: bool) -> Tensor:
        y = _linear(activation(stored(pre) if again else pre, act), fc2_weight, fc2_bias, low_precision)
        if post_norm:
            y = y if low_precision is None else stored(y)  # the norm needs whole rows
            y = normalised(y, norm_weight, norm_bias, eps)
        if layer_scale is not None:
            y = y * layer_scale.to(dtype)
        if row_scale is not None:
            y = y * row_scale.to(dtype).view(-1, *[1] * (x.dim() - 1))
        return rounded(wide + y, low_precision)

    out = finish(pre, False)
    return out if low_precision is None or not out.requires_grad else with_value(finish(pre, True), out)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, low_precision: torch.dtype | None) -> Tensor:
    y = rounded(x, low_precision) @ rounded(weight.to(x.dtype), low_precision).T
    return rounded_gradient(y, low_precision) if bias is None else rounded_gradient(y + bias.to(x.dtype), low_precision)
