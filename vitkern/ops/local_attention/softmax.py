"""Local attention in PyTorch: tiles of neighbouring queries against the keys that any of them sees, those of one mask
at a time."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.dispatch import is_eager
from vitkern.ops.local_attention.localities import Locality, Tiles, tiles_of


def local_softmax(
    qkv: Tensor,
    table: Tensor | None,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    padding: Tensor | None,
    num_heads: int,
    block: Sequence[int],
    halo: Sequence[int],
    border: str,
    dilation: Sequence[int],
    neighbor: Sequence[int],
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Arguments as `vitkern.ops.local_attention.local_attention` checks them: out (B, img_h, img_w, C), and lse (B, H,
    img_h, img_w) float32 with ``return_lse``."""
    batch, height, width, packed = qkv.shape
    tokens, channels, head_dim = height * width, packed // 3, packed // 3 // num_heads
    if not qkv.numel():
        return (
            _nothing((batch, height, width, channels), qkv, table, rel_h, rel_w, padding),
            _nothing((batch, num_heads, height, width), qkv, table, rel_h, rel_w, padding).float(),
        )
    rows_near, columns_near = (Locality(*axis) for axis in zip(block, halo, (border, border), dilation, strict=True))
    rows = qkv.reshape(batch, tokens, packed)
    if max(halo) > 0 or any(n % (b * d) for n, b, d in zip((height, width), block, dilation, strict=True)):
        outside = qkv.new_zeros(packed) if padding is None else padding
        rows = torch.cat([rows, outside.expand(batch, 1, packed)], 1)  # -1: no token
    rows = rows.view(batch, -1, 3, num_heads, head_dim)
    is_whole = tuple(block) == (height, width) and min(block) > 1 and max(halo) == 0 and max(dilation) == 1
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32 if not qkv.is_cuda else qkv.dtype
    rel = [t.reshape(batch, tokens, num_heads, -1).to(wide) for t in (rel_h, rel_w) if t is not None]  # both or neither
    outs, logs, places = [], [], []
    for tiles in tiles_of((height, width), (rows_near, columns_near), qkv.device):
        if is_whole:  # one tile, its tokens in their order
            q, k, v = rows.permute(2, 0, 3, 1, 4).unsqueeze(2)  # (B, 1, H, N, D)
        elif max(halo) == 0:  # the keys of a tile are its queries
            q, k, v = _chosen(rows, tiles.keys).permute(3, 0, 1, 4, 2, 5)  # (B, G, H, N, D)
        else:
            q = _chosen(rows[:, :, 0], tiles.queries).transpose(2, 3)
            k, v = _chosen(rows[:, :, 1:], tiles.keys).permute(3, 0, 1, 4, 2, 5)
        terms = [] if table is None else [_table_bias(table.to(wide), tiles)]
        terms += [_rel_bias(rel, block, tiles)] if rel else []
        mask = _mask(tiles, neighbor, block, terms)
        if return_lse:
            out, lse = _explicit(q, k, v, mask, scale)
            logs.append(lse.transpose(1, 2).flatten(2))
        else:
            out = _softmax(q, k, v, mask, scale)
        outs.append(out.transpose(2, 3).flatten(3).flatten(1, 2))  # (B, G * N, C)
        places.append(tiles.queries.reshape(-1))
    order = None if is_whole else _order(torch.cat(places), tokens)
    out = _sorted(outs, 1, order).view(batch, height, width, channels)
    return out, _sorted(logs, 2, order).view(batch, num_heads, height, width) if return_lse else None


def kernel_in_pytorch(*arguments: Any) -> tuple[Tensor, Tensor | None]:
    """What `vitkern.kernels.local_attention.local_attention_forward` returns, from its arguments."""
    return local_softmax(*(*arguments, True))


def _nothing(shape: tuple[int, ...], like: Tensor, *others: Tensor | None) -> Tensor:
    """An empty result of ``shape`` that every tensor has a gradient from, zeros, as from any other batch."""
    out = like.new_empty(shape)
    for tensor in (like, *others):
        if tensor is not None and tensor.requires_grad:
            out = out + tensor.sum().to(out.dtype) * 0.0
    return out


def _chosen(rows: Tensor, where: Tensor) -> Tensor:
    """(B, tokens, ...) -> the tokens ``where`` (G, N), the last one for -1: (B, G, N, ...)."""
    where = torch.where(where < 0, rows.shape[1] - 1, where)
    return rows.index_select(1, where.reshape(-1)).unflatten(1, where.shape)


def _order(place: Tensor, tokens: int) -> Tensor:
    """Where each of ``tokens`` is among the queries of all tiles, which lie at ``place``, -1 for none."""
    order = torch.zeros(tokens + 1, dtype=torch.long, device=place.device)
    number = torch.arange(place.shape[0], device=place.device)
    return order.scatter(0, torch.where(place < 0, tokens, place), number)[:tokens]


def _sorted(parts: list[Tensor], dim: int, order: Tensor | None) -> Tensor:
    """``parts`` one after another along ``dim``, in ``order`` unless they are in order."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    return whole if order is None else whole.index_select(dim, order)


def _mask(tiles: Tiles, neighbor: Sequence[int], block: Sequence[int], terms: list[Tensor]) -> Tensor | None:
    """What SDPA takes as a mask, (G or 1, 1, N, M) or as the terms; None where every key is seen and nothing added."""
    seen = None if tiles.whole else tiles.pairs(tiles.rows.seen, tiles.columns.seen, torch.logical_and)[:, None]
    if neighbor:
        dy, dx = tiles.rows.place // block[0] - 1, tiles.columns.place // block[1] - 1
        own, chosen = (tiles.pairs(dy == a, dx == b, torch.logical_and)[:, None] for a, b in ((0, 0), neighbor))
        seen = own | chosen if seen is None else seen & (own | chosen)
    if not terms:
        return seen
    added = functools.reduce(torch.add, terms)
    return added if seen is None else added.masked_fill(~seen, -math.inf)


def _table_bias(table: Tensor, tiles: Tiles) -> Tensor:
    """(H, T_h, T_w) -> (G or 1, H, N, M)."""
    y, x = tiles.rows.offset + table.shape[1] // 2, tiles.columns.offset + table.shape[2] // 2
    where = tiles.pairs(y * table.shape[2], x, torch.add)
    return table.flatten(1).index_select(1, where.reshape(-1)).unflatten(1, where.shape).transpose(0, 1)


def _rel_bias(rel: list[Tensor], block: Sequence[int], tiles: Tiles) -> Tensor:
    """(B, tokens, H, E_h) and (..., E_w) -> (B, G, H, N, M)."""
    side_h, side_w = tiles.rows.place.shape[1], tiles.columns.place.shape[1]
    count_h, count_w = tiles.rows.queries.shape[0], tiles.columns.queries.shape[0]
    rows = tiles.rows.place.expand(count_h, -1, -1)[:, None, :, None].expand(-1, count_w, -1, side_w, -1)
    columns = tiles.columns.place.expand(count_w, -1, -1)[None, :, None].expand(count_h, -1, side_h, -1, -1)
    parts = []
    for logits, place, queries in zip(rel, (rows, columns), block, strict=True):
        chosen = logits.index_select(1, tiles.queries.clamp_min(0).reshape(-1))
        chosen = chosen.unflatten(1, tiles.queries.shape).transpose(2, 3)  # (B, G, H, N, E)
        if queries == 1:  # the intervals of a block are one, those of single queries move along
            place = place.flatten(2, 3).flatten(0, 1)[None, :, None]  # (1, G, 1, N, K)
            chosen = chosen.gather(4, place.expand(*chosen.shape[:4], -1))
        parts.append(chosen)
    return (parts[0][..., :, None] + parts[1][..., None, :]).flatten(4)


def _softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """SDPA over (B, G, H, N, D), with two of them as one dimension, since PyTorch's kernels and ONNX's take four: G and
    H where a mask is the same for all images, B and G elsewhere."""
    if mask is not None and mask.requires_grad and q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64):
        # SDPA does this too, and more that is for half precision
        scores, empty = _without_empty_rows((q * scale) @ k.transpose(-1, -2) + mask)
        weights = scores.softmax(-1)
        return (weights if empty is None else weights.masked_fill(empty, 0.0)) @ v
    first = 0
    if mask is not None and mask.dim() == 5:
        mask = mask.flatten(0, 1)
    elif mask is not None and mask.shape[0] > 1:
        first, mask = 1, mask.expand(-1, q.shape[2], -1, -1).flatten(0, 1)[None]
    second = q.shape[first + 1]
    q, k, v = (t.flatten(first, first + 1) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).unflatten(first, (-1, second))


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention and the logarithm of its denominators, in float32 at least."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.to(wide)
    scores, empty = _without_empty_rows(scores)
    lse = scores.logsumexp(-1, keepdim=True)
    weights = (scores - lse).exp()
    if empty is not None:
        weights, lse = weights.masked_fill(empty, 0.0), lse.masked_fill(empty, -math.inf)
    return (weights @ v.to(wide)).to(v.dtype), lse.squeeze(-1)


def _without_empty_rows(scores: Tensor) -> tuple[Tensor, Tensor | None]:
    """``scores`` with zeros in the rows that are -inf throughout, and which those are (..., 1), so that no gradient
    meets a NaN there; None where there are none, if that can be told."""
    empty = scores.detach().amax(-1, keepdim=True) == -math.inf
    if is_eager() and scores.device.type == "cpu" and not bool(empty.any()):
        return scores, None
    return scores.masked_fill(empty, 0.0), empty
