"""Neighbourhood attention by the book: each query gathers the keys of its own window (Hassani et al., arXiv 2204.07143;
dilated: Hassani and Shi, arXiv 2209.15001)."""

import torch
from torch import Tensor

from vitkern.reference.attention import _softmax
from vitkern.reference.rounding import rounded
from vitkern.reference.window_attention import _pad


def neighbours(size: int, kernel: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Of each of ``size`` positions of an axis its ``kernel`` keys, (size, kernel), and their offsets from the query in
    steps of ``dilation``, plus kernel - 1.

    A window that would leave the axis is moved inside: every query has ``kernel`` keys.
    """
    position = torch.arange(size)
    first, rank = position % dilation, position // dilation  # position = first + rank * dilation
    count = (size - first + dilation - 1) // dilation  # positions that share the remainder
    start = (rank - kernel // 2).clamp_min(0).minimum(count - kernel)
    keys = start[:, None] + torch.arange(kernel)
    return first[:, None] + keys * dilation, keys - rank[:, None] + kernel - 1


def neighborhood_attention(
    qkv: Tensor,
    *,
    num_heads: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    table: Tensor | None = None,
    padding: Tensor | None = None,
    scale: float | None = None,
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """The definition of `vitkern.ops.neighborhood_attention.neighborhood_attention`, with the same arguments.

    Computes in float64 when ``qkv`` is float64, else in float32. ``low_precision`` gives the ideal kernel of that
    dtype.
    """
    dtype, (batch, img_h, img_w, packed) = qkv.dtype, qkv.shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    qkv = qkv.to(wide)
    padded = tuple(max(n, k * d) for n, k, d in zip((img_h, img_w), kernel, dilation, strict=True))
    if padded != (img_h, img_w):
        qkv = _pad(qkv, padded, padding.to(wide))
    height, width = padded
    channels, tokens = packed // 3, height * width
    split = rounded(qkv, low_precision).reshape(batch, tokens, 3, num_heads, channels // num_heads)
    q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, tokens, D)

    (y, dy), (x, dx) = (neighbours(*axis) for axis in zip(padded, kernel, dilation, strict=True))
    where = (y[:, None, :, None] * width + x[None, :, None, :]).reshape(tokens, -1).to(qkv.device)  # (tokens, keys)
    product = torch.einsum("bhnd,bhnkd->bhnk", q, k[:, :, where])
    if low_precision is not None and product.requires_grad:
        product.register_hook(lambda grad: grad.to(low_precision).to(wide))
    scores = product * (q.shape[-1] ** -0.5 if scale is None else scale)
    if table is not None:
        chosen = table.to(wide)[:, dy[:, None, :, None].to(qkv.device), dx[None, :, None, :].to(qkv.device)]
        scores = scores + chosen.reshape(num_heads, tokens, -1)
    weights = _softmax(scores)[2]
    if low_precision is not None:
        weights = weights + (weights.to(low_precision).to(wide) - weights).detach()
    out = torch.einsum("bhnk,bhnkd->bnhd", weights, v[:, :, where]).reshape(batch, height, width, channels)
    return rounded(out[:, :img_h, :img_w], low_precision).to(dtype).contiguous()
