"""Gated positional self-attention as the plain formula, with weights (H, N, N) for positions (ConViT, d'Ascoli et al.,
arXiv 2103.10697, section 3.2, equation 7)."""

import math

import torch
from torch import Tensor

from vitkern.reference import attention
from vitkern.reference.rounding import rounded


def gated_positional_attention(
    qk: Tensor,
    v: Tensor,
    position_weights: Tensor,
    gate: Tensor,
    grid: tuple[int, int],
    *,
    scale: float | None = None,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """The definition of `vitkern.ops.gated_positional_attention.gated_positional_attention`, with the same arguments.

    Computes in float64 when ``qk`` is float64, else in float32. ``low_precision`` gives the ideal kernel of that dtype:
    it mixes positions along x, then y, and rounds what are operands of products, and what attention stores.
    """
    wide = torch.float64 if qk.dtype == torch.float64 else torch.float32
    position_weights, gate = position_weights.to(wide), gate.to(wide).view(-1, 1, 1)
    if low_precision is None:
        weights = gated_weights(qk, position_weights, gate, grid, scale)  # (B, H, N, N)
        return (weights @ v.to(wide).transpose(1, 2)).transpose(1, 2).to(qk.dtype)
    q, k = qk.to(wide).permute(2, 0, 3, 1, 4)
    values = rounded(v.to(wide).transpose(1, 2), low_precision)  # (B, H, N, D)
    content = attention.attention(q, k, values, scale=scale, low_precision=low_precision)
    across, along = (_rounded_axis(position_weights, axis, grid, low_precision) for axis in (0, 1))
    mixed = rounded(across[:, None] @ values.unflatten(2, grid), low_precision)  # (B, H, grid_h, grid_w, D)
    mixed = (along @ mixed.flatten(3)).view_as(values)
    return (torch.sigmoid(-gate) * content + torch.sigmoid(gate) * mixed).transpose(1, 2).to(qk.dtype)


def gated_weights(
    qk: Tensor, position_weights: Tensor, gate: Tensor, grid: tuple[int, int], scale: float | None
) -> Tensor:
    """The weights (B, H, N, N) of all pairs of tokens; a row adds up to 1."""
    q, k = qk.to(position_weights.dtype).permute(2, 0, 3, 1, 4)  # (B, H, N, D)
    content = (q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)).softmax(-1)
    relative = relative_positions(grid, qk.device).to(position_weights.dtype)
    positions = torch.einsum("hc,cij->hij", position_weights, relative).softmax(-1)
    gate = gate.view(-1, 1, 1)
    return torch.sigmoid(-gate) * content + torch.sigmoid(gate) * positions


def relative_positions(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(3, N, N): dx, dy, dx^2 + dy^2 from token i to token j, integers."""
    y, x = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    dx, dy = (p.flatten()[None, :] - p.flatten()[:, None] for p in (x, y))
    return torch.stack([dx, dy, dx**2 + dy**2])


def _rounded_axis(position_weights: Tensor, axis: int, grid: tuple[int, int], low_precision: torch.dtype) -> Tensor:
    """(H, n, n), the softmax along x (0) or y (1), rounded, with its derivatives by the two weights rounded: they are
    operands too."""
    place = torch.arange(grid[1 - axis], device=position_weights.device, dtype=position_weights.dtype)
    d = place[None, :] - place[:, None]
    by = position_weights[:, (axis, 2), None, None]  # (H, 2, 1, 1)
    powers = torch.stack([d, d * d])
    exact = (by.detach() * powers).sum(1).softmax(-1)
    means = (exact[:, None] * powers).sum(-1, keepdim=True)
    slopes = rounded(exact[:, None] * (powers - means), low_precision)
    return rounded(exact, low_precision) + ((by - by.detach()) * slopes).sum(1)
