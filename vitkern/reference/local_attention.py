"""Local attention by the book: each query gathers the keys of its own interval of rows and columns.

One definition for neighbourhood attention (arXiv 2204.07143, 2209.15001), HaloNet (arXiv 2103.12731), stand-alone
self-attention (arXiv 1906.05909), the chunks of ViL (arXiv 2103.15358), windows and grids, with tables of relative
positions or decomposed ones (MViTv2, arXiv 2112.01526, equation 4).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vitkern.reference.attention import _softmax, read_back
from vitkern.reference.rounding import rounded, rounded_gradient


class Interval(NamedTuple):
    """Of each position of an axis its E keys, each (size, E).

    position: of the key, -1 where there is no token. offset: steps from the query to the key. seen: bool.
    """

    position: Tensor
    offset: Tensor
    seen: Tensor


def intervals(size: int, block: int, halo: int, border: str, dilation: int) -> Interval:
    """Positions with the same remainder modulo ``dilation`` see one another; ranks count them. A query of rank r sees
    the block + 2 halo ranks from r // block * block - halo on."""
    position = torch.arange(size)
    first, rank = position % dilation, position // dilation
    count = ((size - first + dilation - 1) // dilation)[:, None]  # ranks of the class
    begin = (rank // block * block - halo)[:, None]
    if border == "clamp":
        begin = begin.clamp_min(0).minimum(count - (block + 2 * halo))
    keys = begin + torch.arange(block + 2 * halo)
    offset = keys - rank[:, None]
    if border == "wrap":
        keys = keys % (-(-count // block) * block)
    inside = (keys >= 0) & (keys < count)
    seen = torch.ones_like(inside) if border == "keep" else inside
    return Interval(torch.where(inside, first[:, None] + keys * dilation, -1), offset, seen)


def local_attention(
    qkv: Tensor,
    *,
    num_heads: int,
    block: tuple[int, int],
    halo: tuple[int, int] = (0, 0),
    border: str = "keep",
    dilation: tuple[int, int] = (1, 1),
    table: Tensor | None = None,
    rel_h: Tensor | None = None,
    rel_w: Tensor | None = None,
    padding: Tensor | None = None,
    neighbor: tuple[int, int] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    low_precision: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of `vitkern.ops.local_attention.local_attention`, with the same arguments.

    Computes in float64 when ``qkv`` is float64, else in float32. ``low_precision`` gives the ideal kernel of that
    dtype.
    """
    dtype, (batch, img_h, img_w, packed) = qkv.dtype, qkv.shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    channels, tokens = packed // 3, img_h * img_w
    head_dim = channels // num_heads
    outside = qkv.new_zeros(packed, dtype=wide) if padding is None else padding.to(wide)
    rows = torch.cat([qkv.to(wide).reshape(batch, tokens, packed), outside.expand(batch, 1, packed)], 1)
    split = rounded(rows, low_precision).reshape(batch, tokens + 1, 3, num_heads, head_dim)
    q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, tokens + 1, D), the last one outside the image
    q = q[:, :, :tokens]

    y, x = (
        Interval(*(part.to(qkv.device) for part in intervals(size, b, h, border, d)))
        for size, b, h, d in zip((img_h, img_w), block, halo, dilation, strict=True)
    )
    yk, xk = y.position[:, None, :, None], x.position[None, :, None, :]
    where = torch.where((yk < 0) | (xk < 0), tokens, yk * img_w + xk).flatten(2).flatten(0, 1)  # (tokens, E_h E_w)
    seen = y.seen[:, None, :, None] & x.seen[None, :, None, :]
    if neighbor is not None:
        dy, dx = (torch.arange(b + 2 * h, device=qkv.device) // b - 1 for b, h in zip(block, halo, strict=True))
        own, chosen = ((dy[:, None] == a) & (dx == b) for a, b in ((0, 0), neighbor))
        seen = seen & (own | chosen)
    product = torch.einsum("bhnd,bhnkd->bhnk", q, k[:, :, where])
    if low_precision is not None and product.requires_grad:
        product.register_hook(lambda grad: grad.to(low_precision).to(wide))
    scores = product * (head_dim**-0.5 if scale is None else scale)
    if table is not None:
        middle = table.shape[1] // 2, table.shape[2] // 2
        dy, dx = y.offset[:, None, :, None] + middle[0], x.offset[None, :, None, :] + middle[1]
        scores = scores + table.to(wide)[:, dy, dx].flatten(3).flatten(1, 2)
    if rel_h is not None:
        logits = rel_h.to(wide)[..., :, None] + rel_w.to(wide)[..., None, :]  # (B, img_h, img_w, H, E_h, E_w)
        logits = rounded_gradient(logits, low_precision)
        scores = scores + logits.flatten(4).flatten(1, 2).transpose(1, 2)
    scores = scores.masked_fill(~seen.flatten(2).flatten(0, 1), -math.inf)
    pivot, total, weights = _softmax(scores)
    exact, values = weights, v[:, :, where]
    if low_precision is not None:
        weights = weights + (weights.to(low_precision).to(wide) - weights).detach()  # rounded, its gradient is not
    out = rounded(torch.einsum("bhnk,bhnkd->bhnd", weights, values), low_precision)
    if low_precision is not None and out.requires_grad:
        out = read_back(out, torch.einsum("bhnk,bhnkd->bhnd", exact, values), total.log())
    out = out.transpose(1, 2).reshape(batch, img_h, img_w, channels).to(dtype)
    if not return_lse:
        return out
    return out, (pivot + total.log()).reshape(batch, num_heads, img_h, img_w)
