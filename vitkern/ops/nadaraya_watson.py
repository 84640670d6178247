"""Nadaraya-Watson kernel regression with a Gaussian kernel (Nadaraya 1964; Watson 1964), as dense attention."""

import torch
from torch import Tensor

from vitkern.dispatch import autocast, no_autocast
from vitkern.ops import checks
from vitkern.ops.attention import _check_terms, attention


def nadaraya_watson(
    x: Tensor,
    keys: Tensor,
    values: Tensor,
    width: Tensor | float = 1.0,
    *,
    squared: bool = False,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """f(x) = sum_i softmax_i(-w |x - x_i|^2 / 2) y_i: a mean of the values of all keys, the nearer the heavier.

    The square is taken apart, -w/2 |x - x_i|^2 = w x . x_i - w/2 |x_i|^2 + what the softmax does not see, and is dense
    attention with a bias for each key: nothing of N x M is held. Keys are moved to their middle first, which no
    distance sees, and all is float32 (float64 where the arguments are): a logit is exact to w |x| |x_i| times its eps.

    Args:
        x: (B, N, D), where to predict; keys: (B, M, D), where the values are known; values: (B, M, V). One floating
            dtype, any strides.
        width: w, a number or a tensor of one element, of any floating dtype and learnt if it wants a gradient.
        squared: w^2 takes the place of w, as where each distance is multiplied by w before it is squared (*Dive into
            Deep Learning*, section 11.2).
        key_padding_mask: (B, M) bool, True for keys that there are.

    Returns:
        (B, N, V) in the dtype of ``values`` (the autocast dtype under autocast), differentiable in all tensors. Where
        there is no key it is 0.

    Raises:
        TypeError: an argument is no dense floating-point tensor, or dtypes differ.
        ValueError: shapes or devices do not fit.
    """
    op = "nadaraya_watson"
    for name, tensor in (("x", x), ("keys", keys), ("values", values)):
        checks.check_tensor(op, name, tensor, ndim=3)
    x, keys, values = autocast(x, keys, values)
    checks.check_same(op, x=x, keys=keys, values=values)
    checks.check_shape(op, "keys", keys, (x.shape[0], None, x.shape[2]), lambda: f"(B, M, D) beside x {tuple(x.shape)}")
    checks.check_shape(op, "values", values, (*keys.shape[:2], None), lambda: f"(B, M, V) beside {tuple(keys.shape)}")
    dtype, wide = values.dtype, torch.float64 if values.dtype == torch.float64 else torch.float32
    x, keys, values = x.to(wide), keys.to(wide), values.to(wide)
    w = _width(op, width, x).to(wide)
    w = w * w if squared else w
    if key_padding_mask is not None:
        _check_terms(op, x[:, None], keys[:, None], None, None, key_padding_mask, False, None, 0.0)
        keys = keys.masked_fill(~key_padding_mask[..., None], 0.0)  # else what pads would move the middle
    if keys.shape[1]:
        middle = _middle(keys.detach(), key_padding_mask)
        x, keys = x - middle, keys - middle
    with no_autocast(x):
        bias = -0.5 * w * keys.square().sum(-1)[:, None, None, :]  # (B, 1, 1, M)
        q, k, v = (tensor[:, None] for tensor in (w * x, keys, values))
        out = attention(q, k, v, bias=bias, key_padding_mask=key_padding_mask, scale=1.0)
    return out[:, 0].to(dtype)


def _middle(keys: Tensor, mask: Tensor | None) -> Tensor:
    """(B, 1, D): the mean of the keys that there are; others are 0."""
    if mask is None:
        return keys.mean(1, keepdim=True)
    return keys.sum(1, keepdim=True) / mask.sum(1).clamp(min=1)[:, None, None]


def _width(op: str, width: Tensor | float, like: Tensor) -> Tensor:
    if not isinstance(width, Tensor):
        checks.check_number(op, "width", width, "w")
        return like.new_tensor(width)
    checks.check_tensor(op, "width", width)
    if width.numel() != 1:
        raise ValueError(f"{op}: width has the wrong shape: got {tuple(width.shape)}; expected one element.")
    if width.device != like.device:
        raise ValueError(f"{op}: devices differ: got x on {like.device}, width on {width.device}; expected one.")
    return width.reshape(())
