"""Local attention as models without a kernel of their own compute it: queries in groups, each group with a copy of the
keys that it sees, and a bias in memory.

With ``low_precision`` relative logits are rounded to it and back: the terms of an ideal kernel of that dtype.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.reference.rounding import rounded


class Groups(NamedTuple):
    """q (G, H, n, D), k and v (G, H, m, D). ``image`` maps a result like q to that of the layer.

    Added to the scores: ``bias``, which broadcasts over (G, H, n, m); ``rows`` and ``columns``, (G, H, n, E) each, to
    the keys in row i and column j of a window of E x E.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    image: Callable[[Tensor], Tensor]
    bias: Tensor | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None

    def added(self) -> Tensor | None:
        """All that is added, in memory."""
        return self.bias if self.rows is None else (self.rows[..., :, None] + self.columns[..., None, :]).flatten(3)


def heads_of(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, img_h, img_w, 3 * C) -> three (B, img_h, img_w, H, D)."""
    return qkv.unflatten(-1, (3, heads, -1)).unbind(3)


def cut(x: Tensor, extent: int, step: int) -> Tensor:
    """(B, img_h, img_w, H, D) -> its extents x extents that begin every ``step``: (G, H, extent * extent, D)."""
    parts = x.unfold(1, extent, step).unfold(2, extent, step)  # (B, g_h, g_w, H, D, extent, extent)
    return parts.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5).flatten(0, 2)


def joined(out: Tensor, batch: int, side: int, width: int) -> Tensor:
    """What `cut` made of an image of side x side in steps of ``width`` -> (B, img_h, img_w, C)."""
    count = side // width
    out = out.reshape(batch, count, count, out.shape[1], width, width, -1)
    return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, side, side, -1)


def framed(x: Tensor, halo: int) -> Tensor:
    """(B, img_h, img_w, ...) with ``halo`` rows and columns of zeros around it."""
    return F.pad(x, (0, 0) * (x.dim() - 3) + (halo, halo) * 2)


def _relative(q: Tensor, side: int, steps: Tensor, by_row: Tensor, by_column: Tensor, low) -> tuple[Tensor, Tensor]:
    """q (G, H, side * side, D) times the vectors of the rows, and of the columns, of its window; ``steps`` (side, E)
    says which."""
    q = q.unflatten(2, (side, side))
    rows = torch.einsum("ghyxd,yed->ghyxe", q, by_row[steps])
    columns = torch.einsum("ghyxd,xed->ghyxe", q, by_column[steps])
    return tuple(rounded(logits.flatten(2, 3), low) for logits in (rows, columns))


def halo(qkv, height_rel, width_rel, *, num_heads: int, block: int, halo: int, low_precision=None) -> Groups:
    """HaloNet, as timm's `HaloAttn`: blocks of queries, windows of keys and values cut out of a padded image."""
    (batch, side), extent = qkv.shape[:2], block + 2 * halo
    q, k, v = heads_of(qkv, num_heads)
    q, (k, v) = cut(q, block, block), (cut(framed(part, halo), extent, block) for part in (k, v))
    steps = torch.arange(extent, device=q.device) - torch.arange(block, device=q.device)[:, None] + extent - 1
    rows, columns = _relative(q, block, steps, height_rel, width_rel, low_precision)
    return Groups(q, k, v, lambda out: joined(out, batch, side, block), rows=rows, columns=columns)


def standalone(qkv, rel_h, rel_w, *, num_heads: int, kernel: tuple[int, int], low_precision=None) -> Groups:
    """Stand-alone self-attention: each pixel unfolds its own keys and values."""
    (batch, side), (extent, _) = qkv.shape[:2], kernel
    q, k, v = heads_of(qkv, num_heads)
    q, (k, v) = cut(q, 1, 1), (cut(framed(part, extent // 2), extent, 1) for part in (k, v))
    halves = (torch.einsum("ghnd,hed->ghne", *pair) for pair in zip(q.chunk(2, -1), (rel_h, rel_w), strict=True))
    rows, columns = (rounded(half, low_precision) for half in halves)
    return Groups(q, k, v, lambda out: joined(out, batch, side, 1), rows=rows, columns=columns)


def decomposed(qkv, rel_pos_h, rel_pos_w, padding=None, *, num_heads: int, width: int, low_precision=None) -> Groups:
    """ViTDet and SAM: pad, partition, and a bias of all queries and keys out of two small products."""
    batch, side = qkv.shape[:2]
    if side % width:
        inside = F.pad(qkv.new_ones(side, side, 1), (0, 0) + (0, -side % width) * 2)
        qkv = F.pad(qkv, (0, 0) + (0, -side % width) * 2) + (1 - inside) * padding
    padded = qkv.shape[1]
    q, k, v = (cut(part, width, width) for part in heads_of(qkv, num_heads))
    place = torch.arange(width, device=q.device)
    steps = place[:, None] - place + width - 1
    rows, columns = _relative(q, width, steps, rel_pos_h, rel_pos_w, low_precision)
    return Groups(q, k, v, lambda out: joined(out, batch, padded, width)[:, :side, :side], rows=rows, columns=columns)


def grid(qkv, table, *, num_heads: int, size: int, low_precision=None) -> Groups:
    """MaxViT's grids: tokens spread over the image are brought together; a table of relative positions."""
    batch, side = qkv.shape[:2]
    steps = side // size

    def parted(x):  # (B, img_h, img_w, H, D) -> (G, H, n, D)
        x = x.reshape(batch, size, steps, size, steps, *x.shape[3:])
        return x.permute(0, 2, 4, 5, 1, 3, 6).flatten(4, 5).flatten(0, 2)

    def image(out):
        out = out.reshape(batch, steps, steps, num_heads, size, size, -1)
        return out.permute(0, 4, 1, 5, 2, 3, 6).reshape(batch, side, side, -1)

    token = torch.arange(size * size, device=qkv.device)
    dy, dx = (part[None, :] - part[:, None] + size - 1 for part in (token // size, token % size))
    return Groups(*map(parted, heads_of(qkv, num_heads)), image, table[:, dy, dx][None])


def chunks(qkv, *, num_heads: int, side: int, window: int, num_global: int, low_precision=None) -> Groups:
    """ViL: each chunk sees itself, the eight around it and the global tokens; what is beyond the image is masked."""
    batch, count = qkv.shape[0], side // window
    rows = qkv.unflatten(-1, (3, num_heads, -1))  # (B, N, 3, H, D)
    q, k, v = rows[:, num_global:].unflatten(1, (side, side)).unbind(3)
    q, (k, v) = cut(q, window, window), (cut(framed(part, window), 3 * window, window) for part in (k, v))
    to_all = (part.transpose(1, 2).repeat_interleave(count * count, 0) for part in rows[:, :num_global, 1:].unbind(2))
    k, v = (torch.cat([own, part], 2) for own, part in zip(to_all, (k, v), strict=True))
    inside = cut(framed(qkv.new_ones(1, side, side, 1, 1), window), 3 * window, window)[..., 0]  # (g, 1, 9 w^2)
    inside = F.pad(inside, (num_global, 0), value=1.0)
    bias = torch.zeros_like(inside).masked_fill(inside == 0, -torch.inf).repeat(batch, 1, 1)
    return Groups(q, k, v, lambda out: joined(out, batch, side, window).flatten(1, 2), bias[:, :, None])
