"""Tiles of local attention for its PyTorch path: which queries are computed together, and which keys they need.

An axis of the image falls into ``dilation`` classes of positions that see one another. Each class is cut into tiles of
neighbouring queries; the keys of a tile are an interval of ranks, a little longer than the tile. Where the interval
lies and which of its keys each query sees repeats from tile to tile: those of one *pattern* share one mask.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

TILE = 8  # queries of an axis in a tile, where blocks are of one query


class Locality(NamedTuple):
    """Along one axis: what `vitkern.ops.local_attention.local_attention` calls so."""

    block: int
    halo: int
    border: str
    dilation: int

    @property
    def extent(self) -> int:
        return self.block + 2 * self.halo


class Axis(NamedTuple):
    """Tiles of one axis, T of them, with Q queries and K keys each.

    queries: (T, Q), keys: (T, K): positions, -1 where there is no token.
    pattern: (T,) which row of the next three belongs to each tile.
    seen: (patterns, Q, K) bool; offset: (patterns, Q, K) steps from the query to the key; place: (patterns, Q, K) of
    the key within the query's interval. The latter two are 0 where the key is not seen.
    """

    queries: Tensor
    keys: Tensor
    pattern: Tensor
    seen: Tensor
    offset: Tensor
    place: Tensor


def _axis_of(size: int, locality: Locality) -> Axis:
    block, halo, border, dilation = locality
    tile, extent = (TILE if block == 1 else block), locality.extent
    found, patterns = [], {}
    for first in range(min(dilation, size)):
        count = -(-(size - first) // dilation)
        for start in range(0, count, tile):
            rank = torch.arange(start, start + tile)
            begin = rank.clamp_max(count - 1) // block * block - halo  # of each query's interval
            if border == "clamp":
                begin = begin.clamp(0, count - extent)
            rank, begin = rank[:, None], begin[:, None]
            key = int(begin[0]) + torch.arange(extent if block > 1 else tile + extent - 1)
            seen, offset, place = (key >= begin) & (key < begin + extent), key - rank, key - begin
            if border == "wrap":
                key = key % (-(-count // block) * block)
            inside = (key >= 0) & (key < count)
            if border != "keep":
                seen = seen & inside
            row = torch.where(rank[:, 0] < count, torch.arange(tile), 0)  # what is dropped must not be empty
            masks = tuple(part[row] for part in (seen, offset * seen, place * seen))
            name = tuple(mask.numpy().tobytes() for mask in masks)
            number = patterns.setdefault(name, (len(patterns), masks))[0]
            queries = torch.where(rank[:, 0] < count, first + rank[:, 0] * dilation, -1)
            found.append((queries, torch.where(inside, first + key * dilation, -1), number))
    queries, keys, pattern = zip(*found, strict=True)
    seen, offset, place = (torch.stack(part) for part in zip(*(masks for _, masks in patterns.values()), strict=True))
    return Axis(torch.stack(queries), torch.stack(keys), torch.tensor(pattern), seen, offset, place)


class Tiles(NamedTuple):
    """Tiles of one pattern of an image.

    queries: (G, N), keys: (G, M): flat tokens, -1 where there is none. seen: (N, M) bool. offset_h, place_h:
    (Q_h, K_h), offset_w, place_w: (Q_w, K_w), as in `Axis`, N = Q_h Q_w and M = K_h K_w.
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor
    offset_h: Tensor
    offset_w: Tensor
    place_h: Tensor
    place_w: Tensor


@functools.lru_cache(maxsize=64)
def tiles_of(size: tuple[int, int], localities: tuple[Locality, Locality], device) -> tuple[Tiles, ...]:
    """All tiles of an image of ``size`` tokens, by pattern."""
    found = []
    with torch.inference_mode(False):  # an index made in inference mode could not be saved for a backward
        rows, cols = (_axis_of(*axis) for axis in zip(size, localities, strict=True))
        for i in range(rows.seen.shape[0]):
            for j in range(cols.seen.shape[0]):
                y, x = rows.pattern == i, cols.pattern == j
                queries, keys = (
                    _outer(a[y], b[x], size[1]) for a, b in ((rows.queries, cols.queries), (rows.keys, cols.keys))
                )
                seen = rows.seen[i][:, None, :, None] & cols.seen[j][None, :, None, :]
                parts = (queries, keys, seen.reshape(queries.shape[1], keys.shape[1]))
                axes = (rows.offset[i], cols.offset[j], rows.place[i], cols.place[j])
                found.append(Tiles(*(part.to(device) for part in (*parts, *axes))))
    return tuple(found)


def _outer(y: Tensor, x: Tensor, width: int) -> Tensor:
    """(T_y, A) rows and (T_x, B) columns -> (T_y * T_x, A * B) flat tokens, -1 where either is."""
    flat = y[:, None, :, None] * width + x[None, :, None, :]
    flat = torch.where((y[:, None, :, None] < 0) | (x[None, :, None, :] < 0), -1, flat)
    return flat.reshape(y.shape[0] * x.shape[0], -1)
