"""Multi-scale deformable attention as the plain formula, a corner at a time (Zhu et al., arXiv 2010.04159, eq. 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitkern.reference.rounding import rounded


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """``sum_lp weights_lp value_l(x, y)``, bilinear, with zeros around each level.

    Args:
        value: (B, S, H, D), S pixels of all levels, each by rows. Where one of the tensors is float64, all is computed
            in float64, else in float32.
        spatial_shapes: (height, width) of each level.
        sampling_locations: (B, Q, H, L, P, 2), x and y in units of a level's width and height.
        attention_weights: (B, Q, H, L, P).
        low_precision: dtype that a kernel would store; the result is rounded to it once, and nothing else is.

    Returns:
        (B, Q, H * D); float64 or float32.
    """
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    value, locations, weights = (x.to(dtype).transpose(1, 2) for x in (value, sampling_locations, attention_weights))
    levels = value.split([height * width for height, width in spatial_shapes], 2)
    out = 0.0
    for i, (height, width) in enumerate(spatial_shapes):
        x, y = locations[..., i, :, 0] * width - 0.5, locations[..., i, :, 1] * height - 0.5  # (B, H, Q, P)
        sampled = _bilinear(levels[i], height, width, x.clamp(-2, width + 1), y.clamp(-2, height + 1))
        out = out + (weights[..., i, :, None] * sampled).sum(3)  # (B, H, Q, D)
    return rounded(out.transpose(1, 2).flatten(2), low_precision)


def _bilinear(value: Tensor, height: int, width: int, x: Tensor, y: Tensor) -> Tensor:
    """value (B, H, height * width, D) at x, y (B, H, Q, P), at most two pixels outside -> (B, H, Q, P, D)."""
    sampled = 0.0
    for j, below in _neighbours(y):
        for i, right in _neighbours(x):
            inside = (i >= 0) & (i < width) & (j >= 0) & (j < height)
            pixel = torch.where(inside, j * width + i, 0).flatten(2)[..., None].expand(-1, -1, -1, value.shape[3])
            rows = value.gather(2, pixel).unflatten(2, (-1, x.shape[3]))
            sampled = sampled + (below * right)[..., None] * torch.where(inside[..., None], rows, 0.0)
    return sampled


def _neighbours(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The pixels before and after x, and the weight of each. NaN, whose weights are NaN, is outside."""
    before = x.floor()
    index = torch.where(x.isnan(), -2.0, before).long()
    return [(index, before + 1.0 - x), (index + 1, x - before)]
