"""Multi-scale deformable attention in PyTorch on a CPU: sums over bags of rows, forward and backward.

A point has four corners, each a pixel and a share. Forward, a bag holds the same corner of all points of a query and
head. Backward, points are sorted by the cell between four pixels that they are in, and a bag holds those of a cell.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # y, x
Shapes = Sequence[tuple[int, int]]


class _Levels(NamedTuple):
    """Of each of L * P points, what its level has, int32."""

    height: Tensor
    width: Tensor
    first: Tensor  # pixel
    cell: Tensor  # the first, of (height + 1) (width + 1)

    @classmethod
    def of(cls, shapes: Shapes, points: int) -> "_Levels":
        rows = []
        pixel = cell = 0
        for height, width in shapes:
            rows += [(height, width, pixel, cell)] * points
            pixel, cell = pixel + height * width, cell + (height + 1) * (width + 1)
        return cls(*torch.tensor(rows, dtype=torch.int32).unbind(1))


class _Axis(NamedTuple):
    """Of points (bags, L * P) along one axis: the pixels before and after each, as they are and within the image, and
    their shares, 0 outside of it."""

    before: Tensor
    inside: tuple[Tensor, Tensor]
    shares: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, x: Tensor, size: Tensor) -> "_Axis":
        """x in units of ``size``."""
        scale = size.to(x.dtype)
        x = (x * scale - 0.5).clamp(min=-2.0).minimum(scale + 1.0)  # NaN stays
        floor = x.detach().floor()
        right, before = x - floor, floor.to(torch.int32)
        pixels = before, before + 1
        inside = [pixel.clamp(min=0).minimum(size - 1) for pixel in pixels]
        near, far = (share * (i == p) for share, i, p in zip((1.0 - right, right), inside, pixels, strict=True))
        return cls(before, (inside[0], inside[1]), (near, far))


class _Points(NamedTuple):
    levels: _Levels
    y: _Axis
    x: _Axis
    below: list[Tensor]  # shares in y, times the weight
    bags: tuple[int, int, int]  # B, Q, H

    @classmethod
    def of(cls, locations: Tensor, weights: Tensor, shapes: Shapes) -> "_Points":
        levels = _Levels.of(shapes, weights.shape[4])
        x, y = locations.reshape(-1, len(levels.width), 2).unbind(2)
        rows = _Axis.of(y, levels.height)
        below = [share * weights.reshape(share.shape) for share in rows.shares]
        return cls(levels, rows, _Axis.of(x, levels.width), below, (*weights.shape[:3],))

    def groups(self, count: int) -> Tensor:
        """Of each bag (B * Q * H, 1), ``count`` for each image and head before its own."""
        batch, queries, heads = self.bags
        of_heads = torch.arange(0, batch * heads * count, count, dtype=torch.int32).view(batch, 1, heads)
        return of_heads.expand(-1, queries, -1).reshape(-1, 1)


def forward(value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
    return _sum(value, _Points.of(locations, weights, shapes))


def gradients(
    grad: Tensor, operands: Sequence[Tensor], shapes: Shapes, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those that are needed, of value, locations, weights; computed anew from these."""
    value, *places = operands
    locations, weights = leaves = [x.detach().requires_grad_(n) for x, n in zip(places, needs[1:], strict=True)]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    with torch.enable_grad():
        points = _Points.of(locations, weights, shapes)
        found = iter(torch.autograd.grad(_sum(value.detach(), points), wanted, grad) if wanted else ())
    dvalue = _value_gradient(grad, value, points, shapes) if needs[0] else None
    dlocations, dweights = (next(found) if leaf.requires_grad else None for leaf in leaves)
    return dvalue, dlocations, dweights


def _sum(value: Tensor, points: _Points) -> Tensor:
    """out (B, Q, H * D)."""
    batch, queries, _ = points.bags
    table = value.transpose(1, 2).reshape(-1, value.shape[3])  # (B * H * S, D)
    start = points.groups(value.shape[1]) + points.levels.first
    rows = [start + i * points.levels.width for i in points.y.inside]
    sums = [
        F.embedding_bag(
            rows[j] + points.x.inside[i], table, mode="sum", per_sample_weights=points.below[j] * points.x.shares[i]
        )
        for j, i in CORNERS
    ]
    return (sums[0] + sums[1] + sums[2] + sums[3]).view(batch, queries, -1)


@torch.no_grad()
def _value_gradient(grad: Tensor, value: Tensor, points: _Points, shapes: Shapes) -> Tensor:
    (batch, _, heads, dim), (levels, y, x, below, _) = value.shape, points
    count = 1 + sum((h + 1) * (w + 1) for h, w in shapes)  # the last for points that are in none
    cell = levels.cell + (y.before + 1) * (levels.width + 1) + x.before + 1
    for axis, size in ((y, levels.height), (x, levels.width)):
        cell = cell.where((axis.before >= -1) & (axis.before < size), count - 1)
    cell = (cell + points.groups(count)).flatten()
    order = cell.argsort(stable=True)
    starts = torch.bincount(cell, minlength=batch * heads * count).cumsum(0)
    starts = torch.cat([starts.new_zeros(1), starts[:-1]])
    bags, rows = order // len(levels.width), grad.reshape(-1, dim)
    found = torch.zeros(batch, heads, value.shape[1], dim, dtype=value.dtype)
    for j, i in CORNERS:
        share = (below[j] * x.shares[i]).flatten()[order]
        sums = F.embedding_bag(bags, rows, starts, mode="sum", per_sample_weights=share).view(batch, heads, count, dim)
        pixel = begin = 0
        for h, w in shapes:
            end = begin + (h + 1) * (w + 1)
            grid = sums[:, :, begin:end].view(batch, heads, h + 1, w + 1, dim)
            here = grid[:, :, 1 - j : 1 - j + h, 1 - i : 1 - i + w]  # the cells whose corner a pixel is
            found[:, :, pixel : pixel + h * w].view(here.shape).add_(here)
            pixel, begin = pixel + h * w, end
    return found.transpose(1, 2)
