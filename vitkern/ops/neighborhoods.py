"""Tiles of neighbourhood attention: which queries are computed together, and which keys they need.

An axis of the image falls into ``dilation`` classes of positions that see one another. Each class is cut into tiles of
neighbouring queries; the keys of a tile are an interval of its class, a little longer than the tile. Where the interval
lies and which of its keys each query sees repeats from tile to tile: those of one *pattern* share one mask.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 8  # queries of an axis in a tile


class Axis(NamedTuple):
    """Tiles of one axis, T of them, with Q queries and K keys each.

    queries: (T, Q), keys: (T, K): positions; a query outside the axis is -1, a key outside is 0 and seen by none.
    pattern: (T,) which row of the next two belongs to each tile.
    seen: (patterns, Q, K) bool; offset: (patterns, Q, K) of the key from the query in steps, plus kernel - 1, within
    [0, 2 kernel - 2] where seen, 0 elsewhere.
    """

    queries: Tensor
    keys: Tensor
    pattern: Tensor
    seen: Tensor
    offset: Tensor


@functools.lru_cache(maxsize=64)
def axis_of(size: int, kernel: int, dilation: int, tile: int = TILE) -> Axis:
    """The tiles of an axis of ``size`` >= kernel * dilation positions, on the CPU."""
    with torch.inference_mode(False):
        return _build(size, kernel, dilation, tile)


def _build(size: int, kernel: int, dilation: int, tile: int) -> Axis:
    found, patterns = [], {}
    for first in range(dilation):
        count = -(-(size - first) // dilation)
        for start in range(0, count, tile):
            rank = torch.arange(start, start + tile)
            begin = (rank.clamp_max(count - 1) - kernel // 2).clamp(0, count - kernel)  # of each query's window
            key = int(begin[0]) + torch.arange(tile + kernel - 1)
            seen = (key >= begin[:, None]) & (key < begin[:, None] + kernel)
            seen[rank >= count] = seen[0].clone()  # rows that are dropped, but must not be empty
            offset = (key - rank[:, None] + kernel - 1).clamp(0, 2 * kernel - 2) * seen
            offset[rank >= count] = offset[0].clone()
            name = (seen.numpy().tobytes(), offset.numpy().tobytes())
            number = patterns.setdefault(name, (len(patterns), seen, offset))[0]
            queries = torch.where(rank < count, first + rank * dilation, -1)
            keys = torch.where(key < count, first + key * dilation, 0)
            found.append((queries, keys, number))
    queries, keys, pattern = zip(*found, strict=True)
    _, seen, offset = zip(*patterns.values(), strict=True)
    return Axis(torch.stack(queries), torch.stack(keys), torch.tensor(pattern), torch.stack(seen), torch.stack(offset))


class Tiles(NamedTuple):
    """Tiles of one pattern of an image: ``queries`` (G, N) and ``keys`` (G, M) are flat tokens, -1 where a query has
    none; ``seen`` (N, M) bool; ``offset`` (N, M) places in a table of (2 kernel_h - 1)(2 kernel_w - 1)."""

    queries: Tensor
    keys: Tensor
    seen: Tensor
    offset: Tensor


@functools.lru_cache(maxsize=64)
def tiles_of(size: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int], device) -> tuple[Tiles, ...]:
    """All tiles of an image of ``size`` tokens, by pattern."""
    rows, cols = (axis_of(*axis) for axis in zip(size, kernel, dilation, strict=True))
    found = []
    with torch.inference_mode(False):
        for i in range(rows.seen.shape[0]):
            for j in range(cols.seen.shape[0]):
                y, x = rows.pattern == i, cols.pattern == j
                queries, keys = (
                    _outer(a[y], b[x], size[1]) for a, b in ((rows.queries, cols.queries), (rows.keys, cols.keys))
                )
                seen = rows.seen[i][:, None, :, None] & cols.seen[j][None, :, None, :]
                offset = rows.offset[i][:, None, :, None] * (2 * kernel[1] - 1) + cols.offset[j][None, :, None, :]
                shape = queries.shape[1], keys.shape[1]
                parts = queries, keys, seen.reshape(shape), (offset * seen).reshape(shape)
                found.append(Tiles(*(part.to(device) for part in parts)))
    return tuple(found)


def _outer(y: Tensor, x: Tensor, width: int) -> Tensor:
    """(T_y, A) rows and (T_x, B) columns -> (T_y * T_x, A * B) flat tokens, -1 where either is."""
    flat = y[:, None, :, None] * width + x[None, :, None, :]
    flat = torch.where((y[:, None, :, None] < 0) | (x[None, :, None, :] < 0), -1, flat)
    return flat.reshape(y.shape[0] * x.shape[0], -1)
