"""Layer-wise relevance propagation by the deep Taylor rules of Chefer et al., arXiv 2012.09838: each takes what a layer
was given and the relevance of its output, and gives the relevance of its inputs.

LayerNorm, GELU, softmax, dropout and factors of channels pass relevance on as it is, and need no rule.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-9


def divided(r: Tensor, z: Tensor) -> Tensor:
    """r / z, and 0 where z is 0."""
    shifted = z + _EPS
    return torch.where(z == 0, 0.0, r / torch.where(shifted == 0, _EPS, shifted))


def linear(x: Tensor, weight: Tensor, r: Tensor) -> Tensor:
    """Of x weight^T: in proportion to the positive contributions (equation 3 with alpha = 1, beta = 0)."""
    parts = [(x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0))]
    share = divided(r, sum((F.linear(one, own) for one, own in parts), r.new_zeros(())))
    return sum((one * (share @ own) for one, own in parts), r.new_zeros(()))


def proportional(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], r: Tensor) -> tuple[Tensor, ...]:
    """Of a function that is linear in each input: x dz/dx r / z (equation 2)."""
    with torch.enable_grad():
        given = tuple(x.detach().requires_grad_() for x in inputs)
        z = function(*given)
        slopes = torch.autograd.grad(z, given, divided(r, z.detach()))
    return tuple(x * slope for x, slope in zip(inputs, slopes, strict=True))


def added(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Of a + b, scaled so that relevance is kept and the parts share it by their size (equations 8 to 10)."""
    share = divided(r, a + b)
    ra, rb = a * share, b * share
    sizes = ra.sum().abs(), rb.sum().abs()
    whole = [divided(size, sizes[0] + sizes[1]) * r.sum() for size in sizes]
    return ra * divided(whole[0], ra.sum()), rb * divided(whole[1], rb.sum())


def copied(x: Tensor, *relevances: Tensor) -> Tensor:
    """Of an input that several layers read."""
    return x * sum((divided(r, x) for r in relevances), x.new_zeros(()))


def picture(x: Tensor, weight: Tensor, stride: tuple[int, int], r: Tensor) -> Tensor:
    """Of patches cut out of an image (B, 3, height, width), whose values lie between its smallest and largest: the
    z-beta rule (Montavon et al., arXiv 1512.02479, section 5.2)."""
    low, high = (x * 0 + x.amin((1, 2, 3), keepdim=True)), (x * 0 + x.amax((1, 2, 3), keepdim=True))
    parts = [(x, weight, 1.0), (low, weight.clamp(min=0), -1.0), (high, weight.clamp(max=0), -1.0)]
    z = sum((sign * F.conv2d(one, own, stride=stride) for one, own, sign in parts), r.new_zeros(()))
    share = r / (z + _EPS)
    rest = [x.shape[2 + i] - (z.shape[2 + i] - 1) * stride[i] - weight.shape[2 + i] for i in range(2)]
    back = [sign * one * F.conv_transpose2d(share, own, stride=stride, output_padding=rest) for one, own, sign in parts]
    return sum(back, r.new_zeros(()))
