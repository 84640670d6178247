"""Tiles of local attention for its PyTorch path: which queries are computed together, and which keys they need.

An axis of the image falls into ``dilation`` classes of positions that see one another. Each class is cut into tiles of
neighbouring queries; the keys of a tile are an interval of ranks, a little longer than the tile. Where the interval
lies and which of its keys each query sees repeats from tile to tile: those of one *pattern* share one mask.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vitkern.dispatch import is_eager

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

    queries: (T, Q), keys: (T, K): positions, -1 where there is no token. Of each query and key, (T, Q, K): seen, bool;
    offset, steps from the query to the key; place of the key within the query's interval. The latter two are 0 where
    the key is not seen.
    """

    queries: Tensor
    keys: Tensor
    seen: Tensor
    offset: Tensor
    place: Tensor


def _axis_of(size: int, locality: Locality, device: torch.device | str) -> Axis:
    block, halo, border, dilation = locality
    tile, extent = (TILE if block == 1 else block), locality.extent
    tiles = (size + dilation * tile - 1) // (dilation * tile)  # of a class
    first = torch.arange(dilation, device=device)[:, None, None]
    count = (size - first + dilation - 1) // dilation
    rank = torch.arange(tiles, device=device)[:, None] * tile + torch.arange(tile, device=device)  # (tiles, Q)
    exists = rank < count  # (dilation, tiles, Q)
    rank = torch.where(exists, rank, rank[:, :1].minimum(count - 1).clamp_min(0))  # what is dropped must not be empty
    begin = rank // block * block - halo  # of each query's interval
    if border == "clamp":
        begin = begin.clamp_min(0).minimum(count - extent)
    key = begin[..., :1] + torch.arange(extent if block > 1 else tile + extent - 1, device=device)
    place = key[..., None, :] - begin[..., None]  # (dilation, tiles, Q, K)
    offset, seen = key[..., None, :] - rank[..., None], (place >= 0) & (place < extent)
    if border == "wrap":
        key = key % ((count + block - 1) // block * block).clamp_min(1)
    inside = (key >= 0) & (key < count)
    if border != "keep":
        seen = seen & inside[..., None, :]
    queries = torch.where(exists, first + rank * dilation, -1)
    keys = torch.where(inside, first + key * dilation, -1)
    return Axis(*(part.flatten(0, 1) for part in (queries, keys, seen, offset * seen, place * seen)))


class Tiles(NamedTuple):
    """Tiles of an image that are computed at once, G = T_h T_w of them with N = Q_h Q_w queries and M = K_h K_w keys.

    queries: (G, N), keys: (G, M): flat tokens, -1 where there is none. rows, columns: the masks of an `Axis`, those of
    the T_h tiles, or 1 for all; ``whole``: every query sees every key.
    """

    queries: Tensor
    keys: Tensor
    rows: Axis
    columns: Axis
    whole: bool

    def pairs(self, rows: Tensor, columns: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """``join`` of something of the rows (T_h or 1, Q_h, K_h) and of the columns -> (G or 1, N, M)."""
        joined = join(rows[:, None, :, None, :, None], columns[None, :, None, :, None, :])
        return joined.flatten(4).flatten(2, 3).flatten(0, 1)


def tiles_of(size: tuple[int, int], localities: tuple[Locality, Locality], device: torch.device) -> tuple[Tiles, ...]:
    """All tiles of an image of ``size`` tokens; sorted by pattern, one entry for each, unless they are being traced."""
    if is_eager():
        return _patterns_of(size, localities, device)
    rows, columns = (_axis_of(*axis, device) for axis in zip(size, localities, strict=True))
    return (_tiles(rows, columns, size[1], False),)


@functools.lru_cache(maxsize=64)
def _patterns_of(
    size: tuple[int, int], localities: tuple[Locality, Locality], device: torch.device
) -> tuple[Tiles, ...]:
    found = []
    with torch.inference_mode(False):  # an index made in inference mode could not be saved for a backward
        rows, columns = (_patterns(_axis_of(*axis, "cpu")) for axis in zip(size, localities, strict=True))
        for y in rows:
            for x in columns:
                whole = bool(y.seen.all() and x.seen.all())
                moved_y, moved_x = (Axis(*(part.to(device) for part in axis)) for axis in (y, x))
                found.append(_tiles(moved_y, moved_x, size[1], whole))
    return tuple(found)


def _patterns(axis: Axis) -> list[Axis]:
    """The tiles of each pattern, whose masks have a first dimension of 1."""
    members: dict[tuple[bytes, ...], list[int]] = {}
    for number, masks in enumerate(zip(axis.seen, axis.offset, axis.place, strict=True)):
        members.setdefault(tuple(mask.numpy().tobytes() for mask in masks), []).append(number)
    return [Axis(axis.queries[own], axis.keys[own], *(part[own[:1]] for part in axis[2:])) for own in members.values()]


def _tiles(rows: Axis, columns: Axis, width: int, whole: bool) -> Tiles:
    queries, keys = (_outer(*pair, width) for pair in zip(rows[:2], columns[:2], strict=True))
    return Tiles(queries, keys, rows, columns, whole)


def _outer(y: Tensor, x: Tensor, width: int) -> Tensor:
    """(T_y, A) rows and (T_x, B) columns -> (T_y * T_x, A * B) flat tokens, -1 where either is."""
    y, x = y[:, None, :, None], x[None, :, None, :]
    return torch.where((y < 0) | (x < 0), -1, y * width + x).flatten(2).flatten(0, 1)
