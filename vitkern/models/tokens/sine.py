"""Positions as sines and cosines (Vaswani et al. 2017, arXiv 1706.03762, section 3.5), of coordinates."""

import math

import torch
from torch import Tensor


def sines(x: Tensor, dim: int) -> Tensor:
    """Coordinates (...) in [0, 1] -> (..., dim), sine and cosine in turn of 2 pi x / 10000^(2 i / dim).

    At least float32: what is next to each other differs by less than half precision tells apart.
    """
    pair = torch.arange(dim, device=x.device) // 2
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    angles = x[..., None] * (2 * math.pi) / 10000 ** (2 * pair / dim)
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2)
