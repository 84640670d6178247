"""Rounding on purpose, for references that imitate an ideal low-precision kernel."""

import torch
from torch import Tensor


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dtype):
        ctx.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype).to(grad.dtype), None


def rounded(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``x`` rounded to ``dtype`` and back, its gradient likewise: an operand that a kernel feeds to a matrix product.
    None: as it is."""
    return x if dtype is None else _Rounded.apply(x, dtype)


class _RoundedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dtype):
        ctx.dtype = dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype).to(grad.dtype), None


def rounded_gradient(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """``x`` as it is, its gradient rounded to ``dtype``: the result of a matrix product whose gradient feeds two more.
    None: as it is."""
    return x if dtype is None else _RoundedGradient.apply(x, dtype)


class _WithValue(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def with_value(x: Tensor, value: Tensor) -> Tensor:
    """``value``, whose gradient is x's: what a kernel computes once exactly and again, for its backward, from what it
    stored."""
    return _WithValue.apply(x, value.detach())
