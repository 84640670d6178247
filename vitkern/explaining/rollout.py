"""From the tokens that a result reads back to those of the image: rows of tokens through the layers, last one first.

A row takes O(N) memory where a product of maps takes O(N^2): r <- r A for each layer, from the rows that the result
reads, is the same as those rows of the product. Between the stages of a hierarchical model each token shares what it
has equally among the tokens that it was merged from.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vitkern.explaining.layer import Layer

Grads = list[list[Tensor]]  # of each layer, of each of its calls


class Reached(NamedTuple):
    """What each of the tokens (N,) of a layer has; ``grid`` is that of windows."""

    row: Tensor
    grid: tuple[int, int] | None


def attention(layers: Sequence[Layer], start: Tensor) -> Reached:
    """The attention of the last layer, mean over heads: r A."""
    return Reached(layers[-1].through(start), layers[-1].grid)


def rollout(layers: Sequence[Layer], start: Tensor) -> Reached:
    """r <- r (A + I) / 2, A the mean over heads (Abnar and Zuidema, arXiv 2005.00928, section 3)."""
    return _back(layers, start, None, lambda row, seen: (row + seen) / 2)


def relevance(layers: Sequence[Layer], start: Tensor, grads: Grads) -> Reached:
    """r <- r (I + E), E the mean over heads of max(0, P dP), of the gradients of one number (Chefer et al., arXiv
    2103.15679, equations 5 and 6)."""
    return _back(layers, start, grads, torch.add)


def _back(
    layers: Sequence[Layer], start: Tensor, grads: Grads | None, with_residual: Callable[[Tensor, Tensor], Tensor]
) -> Reached:
    row, grid = start, layers[-1].grid
    for i in reversed(range(len(layers))):
        layer = layers[i]
        if row.shape[0] != layer.queries:
            row = _parted(row, grid, layer)
        seen = layer.through(row, None if grads is None else grads[i])
        # queries of their own, such as that of a pooling head, have no residual stream
        row = with_residual(row, seen) if layer.queries == layer.keys else seen
        grid = layer.grid
    return Reached(row, grid)


def _parted(row: Tensor, grid: tuple[int, int] | None, layer: Layer) -> Tensor:
    """What tokens of ``grid`` have, shared among those of the layer before that were merged into each."""
    if grid is None or layer.grid is None:
        raise NotImplementedError(
            f"explain: tokens change on their way: got layers of {layer.queries} and {row.shape[0]} tokens; expected "
            'as many in each, or windows. method="attention" asks the last layer alone.'
        )
    (rows, cols), (height, width) = grid, layer.grid
    y, x = -(-height // rows), -(-width // cols)
    shared = row.view(rows, cols).repeat_interleave(y, 0).repeat_interleave(x, 1)
    return shared[:height, :width].reshape(-1) / (y * x)
