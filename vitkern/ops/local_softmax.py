"""Local attention in PyTorch: tiles of neighbouring queries against the keys that any of them sees, those of one mask
at a time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.ops.localities import Locality, Tiles, tiles_of


def local_softmax(
    qkv, table, rel_h, rel_w, padding, num_heads, block, halo, border, dilation, neighbor, scale, return_lse
) -> tuple[Tensor, Tensor | None]:
    """Arguments as `vitkern.ops.local_attention.local_attention` checks them: out (B, img_h, img_w, C), and lse (B, H,
    img_h, img_w) float32 with ``return_lse``."""
    batch, height, width, packed = qkv.shape
    tokens, channels, head_dim = height * width, packed // 3, packed // 3 // num_heads
    if not qkv.numel():
        return qkv.new_empty(batch, height, width, channels), qkv.new_empty(batch, num_heads, height, width).float()
    localities = tuple(Locality(*axis) for axis in zip(block, halo, (border, border), dilation, strict=True))
    outside = qkv.new_zeros(packed) if padding is None else padding
    rows = torch.cat([qkv.reshape(batch, tokens, packed), outside.expand(batch, 1, packed)], 1)  # -1: no token
    rows = rows.view(batch, tokens + 1, 3, num_heads, head_dim)
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32 if not qkv.is_cuda else qkv.dtype
    rel = None if rel_h is None else tuple(t.reshape(batch, tokens, num_heads, -1).to(wide) for t in (rel_h, rel_w))
    outs, logs, places = [], [], []
    for tiles in tiles_of((height, width), localities, qkv.device):
        q, k, v = (_chosen(rows, part, tiles.keys if part else tiles.queries) for part in range(3))
        mask = _seen(tiles, neighbor, block)
        terms = [] if table is None else [_table_bias(table.to(wide), tiles)]
        terms += [] if rel is None else [_rel_bias(*rel, tiles)]
        if terms:
            mask = sum(terms).masked_fill(~mask, -math.inf)
        if return_lse:
            out, lse = _explicit(q, k, v, mask, scale)
            logs.append(lse.view(batch, -1, *lse.shape[1:]).transpose(1, 2).reshape(batch, num_heads, -1))
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)  # (B * G, H, N, D)
        outs.append(out.transpose(1, 2).reshape(batch, tiles.queries.numel(), channels))
        places.append(tiles.queries.reshape(-1))
    place = torch.cat(places)
    order = torch.empty(tokens + 1, dtype=torch.long, device=qkv.device)
    order[place] = torch.arange(place.shape[0], device=qkv.device)  # queries outside, -1, land in the last place
    out = torch.cat(outs, 1).index_select(1, order[:tokens]).view(batch, height, width, channels)
    if not return_lse:
        return out, None
    return out, torch.cat(logs, 2).index_select(2, order[:tokens]).view(batch, num_heads, height, width)


def kernel_in_pytorch(
    qkv, table, rel_h, rel_w, padding, num_heads, block, halo, border, dilation, neighbor, scale
) -> tuple[Tensor, Tensor]:
    """What `vitkern.kernels.local_attention.local_attention_forward` returns, from its arguments."""
    pairs = (tuple(block), tuple(halo), border, tuple(dilation), tuple(neighbor))
    return local_softmax(qkv, table, rel_h, rel_w, padding, num_heads, *pairs, scale, True)


def _chosen(rows: Tensor, part: int, where: Tensor) -> Tensor:
    """(B, tokens + 1, 3, H, D) -> q, k or v of the tokens ``where`` (G, N): (B * G, H, N, D)."""
    where = torch.where(where < 0, rows.shape[1] - 1, where)
    chosen = rows[:, :, part].index_select(1, where.reshape(-1))
    return chosen.view(-1, where.shape[1], *rows.shape[3:]).transpose(1, 2)


def _seen(tiles: Tiles, neighbor: tuple, block: tuple) -> Tensor:
    """(N, M) bool."""
    if not neighbor:
        return tiles.seen
    dy, dx = tiles.place_h // block[0] - 1, tiles.place_w // block[1] - 1
    own, chosen = (
        (dy == a)[:, None, :, None] & (dx == b)[None, :, None, :] for a, b in ((0, 0), neighbor)
    )  # fmt: skip
    return tiles.seen & (own | chosen).reshape(tiles.seen.shape)


def _table_bias(table: Tensor, tiles: Tiles) -> Tensor:
    """(H, T_h, T_w) -> (H, N, M)."""
    y, x = tiles.offset_h + table.shape[1] // 2, tiles.offset_w + table.shape[2] // 2
    where = y[:, None, :, None] * table.shape[2] + x[None, :, None, :]
    return table.flatten(1).index_select(1, where.reshape(-1)).view(-1, *tiles.seen.shape)


def _rel_bias(rel_h: Tensor, rel_w: Tensor, tiles: Tiles) -> Tensor:
    """(B, tokens, H, E_h) and (..., E_w) -> (B * G, H, N, M)."""
    side_h, side_w = tiles.place_h.shape[0], tiles.place_w.shape[0]
    parts = []
    for rel, place in (
        (rel_h, tiles.place_h.repeat_interleave(side_w, 0)),
        (rel_w, tiles.place_w.repeat(side_h, 1)),
    ):
        chosen = rel.index_select(1, tiles.queries.clamp_min(0).reshape(-1))
        chosen = chosen.view(-1, tiles.queries.shape[1], *rel.shape[2:]).transpose(1, 2)  # (B * G, H, N, E)
        parts.append(chosen.gather(3, place.expand(*chosen.shape[:2], *place.shape)))
    return (parts[0][..., :, None] + parts[1][..., None, :]).flatten(3)


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention and the logarithm of its denominators, in float32 at least."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = (q.to(wide) @ k.to(wide).mT) * scale
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.to(wide)
    lse = scores.logsumexp(-1)
    return ((scores - lse[..., None]).exp() @ v.to(wide)).to(v.dtype), lse
