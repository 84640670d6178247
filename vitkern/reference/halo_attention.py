"""HaloNet's attention by the book: one query after the other, in the window of its block (arXiv 2103.12731)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def halo_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_rel: Tensor,
    width_rel: Tensor,
    *,
    block: int = 8,
    halo: int = 3,
    scale: float | None = None,
    rel_scale: float = 1.0,
) -> Tensor:
    """The definition of `vitkern.ops.halo_attention.halo_attention`, with the same arguments.

    Computes in float64 when ``q`` is float64, else in float32.
    """
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    (batch, rows, columns, heads, head_dim), dtype = q.shape, q.dtype
    stride, extent = k.shape[1] // rows, block + 2 * halo
    q, k, v, height_rel, width_rel = (t.to(wide) for t in (q, k, v, height_rel, width_rel))
    k, v = (F.pad(part, (0, 0, 0, 0, halo, halo, halo, halo)) for part in (k, v))
    scale, place = head_dim**-0.5 if scale is None else scale, torch.arange(extent)
    out = v.new_zeros(batch, rows, columns, heads, v.shape[4])
    for y in range(rows):
        for x in range(columns):
            top, left = y * stride // block * block, x * stride // block * block  # of the window, in the padded image
            keys, values = (part[:, top : top + extent, left : left + extent] for part in (k, v))
            query = q[:, y, x]  # (B, H, D)
            by_row = query @ height_rel[place - (y - top // stride) + extent - 1].T  # (B, H, E)
            by_column = query @ width_rel[place - (x - left // stride) + extent - 1].T
            scores = torch.einsum("bhd,byxhd->bhyx", query, keys) * scale
            scores = scores + rel_scale * (by_row[..., None] + by_column[..., None, :])
            weights = scores.flatten(2).softmax(-1).view_as(scores)
            out[:, y, x] = torch.einsum("bhyx,byxhd->bhd", weights, values)
    return out.to(dtype)
