"""Neighbourhood attention by the book: each query gathers the keys of its own window (Hassani et al., arXiv 2204.07143;
dilated: Hassani and Shi, arXiv 2209.15001)."""

import torch
from torch import Tensor

from vitkern.reference.local_attention import local_attention
from vitkern.reference.window_attention import _pad


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
    img_h, img_w = qkv.shape[1:3]
    padded = tuple(max(n, k * d) for n, k, d in zip((img_h, img_w), kernel, dilation, strict=True))
    if padded != (img_h, img_w):
        qkv = _pad(qkv, padded, padding.to(qkv.dtype))
    halo = tuple(size // 2 for size in kernel)
    out = local_attention(
        qkv, num_heads=num_heads, block=(1, 1), halo=halo, border="clamp", dilation=dilation, table=table, scale=scale,
        low_precision=low_precision,
    )  # fmt: skip
    return out[:, :img_h, :img_w].contiguous()
