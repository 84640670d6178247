"""Multi-scale deformable attention in PyTorch: each level sampled as an image, as models do it, or, on a CPU, `bags`.
Both have one derivative; further ones are those of the formula."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern import dispatch
from vitkern.ops.deformable_attention import bags
from vitkern.reference.deformable_attention import deformable_attention as formula

WIDE = 16  # dims of a head from which bags are faster: their indices cost the same for any
MANY, MANY_GRADED = 2**15, 2**19  # and products in all, below which PyTorch's calls are what takes time

Shapes = Sequence[tuple[int, int]]


def in_pytorch(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[int]) -> Tensor:
    """``shapes``: height, width, height, ... of the levels. Float32 within, float64 where the value is."""
    pairs = list(zip(shapes[::2], shapes[1::2], strict=True))
    operands = value, locations, weights
    if dispatch.is_seen() or any([type(x) not in dispatch.PLAIN for x in operands]) or not weights.numel():
        return formula(value, pairs, locations, weights).to(value.dtype)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    v, u, w = value.to(dtype), locations.to(dtype), weights.to(dtype)
    graded = torch.is_grad_enabled() and (v.requires_grad or u.requires_grad or w.requires_grad)
    out: Tensor
    if _takes_bags(value, weights, MANY_GRADED if graded else MANY):
        out = _Bags.apply(v, u, w, pairs) if graded else bags.forward(v, u, w, pairs)
    else:
        out = _Sampled.apply(v, u, w, pairs) if graded else _sampled(v, u, w, pairs)[0]
    return out.to(value.dtype)


def _takes_bags(value: Tensor, weights: Tensor, least: int) -> bool:
    dim = value.shape[3]
    if dim < WIDE or weights.numel() * dim < least or value.device.type != "cpu" or value.numel() >= 2**31:
        return False
    return bool(value.detach().sum().isfinite())  # pixels that weigh 0 are in the bags, too


def _sampled(value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes) -> tuple[Tensor, list[Tensor]]:
    """out, and what gradients need: what was sampled (B * H, D, Q, L * P), an image of each level, a grid of each."""
    batch, queries = weights.shape[:2]
    images, grids = _images(value, shapes), _grids(locations)
    levels = [F.grid_sample(image, grid, align_corners=False) for image, grid in zip(images, grids, strict=True)]
    samples = levels[0] if len(levels) == 1 else torch.stack(levels, 3).flatten(3)
    out = (samples * _by_head(weights).flatten(2)[:, None]).sum(-1)
    return out.view(batch, -1, queries).transpose(1, 2).contiguous(), [samples, *images, *grids]


def _images(value: Tensor, shapes: Shapes) -> list[Tensor]:
    """(B, S, H, D) -> (B * H, D, height, width) of each level."""
    batch, _, heads, dim = value.shape
    levels = value.split([height * width for height, width in shapes], 1)
    return [
        level.permute(0, 2, 3, 1).reshape(batch * heads, dim, *shape)
        for level, shape in zip(levels, shapes, strict=True)
    ]


def _grids(locations: Tensor) -> list[Tensor]:
    """Of each level (B * H, Q, P, 2), what grid_sample counts in; finite, but for NaN."""
    return [_by_head(level) for level in (2 * locations).sub_(1).clamp_(-3, 3).unbind(3)]


def _by_head(points: Tensor) -> Tensor:
    """(B, Q, H, ...) -> (B * H, Q, ...)."""
    return points.transpose(1, 2).flatten(0, 1)


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
        out, made = _sampled(value, locations, weights, shapes)
        ctx.shapes = shapes
        ctx.save_for_backward(value, locations, weights, *made)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights, samples, *made = ctx.saved_tensors
        if _is_more_than_once(grad):
            return *_differentiated(ctx.shapes, (value, locations, weights), ctx.needs_input_grad[:3], grad), None
        heads = value.shape[2]
        grad = grad.unflatten(2, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)[..., None]  # (B * H, D, Q, 1)
        wanted = list(ctx.needs_input_grad[:2])
        levels = zip(made[: len(ctx.shapes)], made[len(ctx.shapes) :], weights.unbind(3), strict=True)
        found = [
            torch.ops.aten.grid_sampler_2d_backward(grad * _by_head(w)[:, None], image, grid, 0, 0, False, wanted)
            for image, grid, w in (levels if any(wanted) else ())
        ]
        dvalue = dlocations = dweights = None
        if wanted[0]:
            rows = torch.cat([image.flatten(2) for image, _ in found], 2)  # (B * H, D, S)
            dvalue = rows.unflatten(0, (-1, heads)).permute(0, 3, 1, 2)
        if wanted[1]:
            dlocations = torch.stack([2 * grid for _, grid in found], 2).unflatten(0, (-1, heads)).transpose(1, 2)
        if ctx.needs_input_grad[2]:
            by_head = (grad * samples).sum(1).unflatten(2, weights.shape[3:])
            dweights = by_head.unflatten(0, (-1, heads)).transpose(1, 2)
        return dvalue, dlocations, dweights, None


class _Bags(torch.autograd.Function):
    """Its backward runs the forward again for the points: what that leaves behind is larger than all operands."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes) -> Tensor:
        ctx.shapes = shapes
        ctx.save_for_backward(value, locations, weights)
        return bags.forward(value, locations, weights, shapes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        operands, needs = ctx.saved_tensors, ctx.needs_input_grad[:3]
        if _is_more_than_once(grad):
            return *_differentiated(ctx.shapes, operands, needs, grad), None
        return *bags.gradients(grad, operands, ctx.shapes, needs), None


def _is_more_than_once(grad: Tensor) -> bool:
    """Whether the backward is to be differentiated, or is of many gradients."""
    return torch.is_grad_enabled() or dispatch.is_batched(grad)


def _differentiated(
    shapes: Shapes, operands: Sequence[Tensor], needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of the formula that are needed; with a graph of their own where that is asked for."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        value, locations, weights = leaves = [
            x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_(needed)
            for x, needed in zip(operands, needs, strict=True)
        ]
        out = formula(value, shapes, locations, weights)
    wanted = [leaf for leaf, needed in zip(leaves, needs, strict=True) if needed]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=again))
    return [next(found) if needed else None for needed in needs]
