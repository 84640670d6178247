"""Decomposed relative positions by the book: each window is cut out, padded and attended to with its whole bias
(MViTv2, arXiv 2112.01526, equations 4 and 5; ViTDet, arXiv 2203.16527)."""

import torch
from torch import Tensor


def decomposed_attention(
    qkv: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    *,
    num_heads: int,
    window: tuple[int, int] | None = None,
    padding: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The definition of `vitkern.ops.decomposed_attention.decomposed_attention`, with the same arguments, for tables
    of the right length.

    Computes in float64 when ``qkv`` is float64, else in float32.
    """
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    batch, img_h, img_w, packed = qkv.shape
    size_h, size_w = (img_h, img_w) if window is None else window
    padded = qkv.new_zeros(batch, -(-img_h // size_h) * size_h, -(-img_w // size_w) * size_w, packed, dtype=wide)
    padded = padded if padding is None else padded + padding.to(wide)
    padded[:, :img_h, :img_w] = qkv.to(wide)
    head_dim = packed // 3 // num_heads
    scale = head_dim**-0.5 if scale is None else scale
    offset_h, offset_w = (torch.arange(size)[:, None] - torch.arange(size) + size - 1 for size in (size_h, size_w))
    vectors_h, vectors_w = rel_pos_h.to(wide)[offset_h], rel_pos_w.to(wide)[offset_w]  # (size, size, D), query first
    out = torch.zeros_like(padded[..., : packed // 3])
    for y in range(0, img_h, size_h):
        for x in range(0, img_w, size_w):
            tokens = padded[:, y : y + size_h, x : x + size_w].unflatten(-1, (3, num_heads, head_dim))
            q, k, v = tokens.permute(3, 0, 4, 1, 2, 5).unbind(0)  # (B, H, size_h, size_w, D)
            scores = torch.einsum("bhyxd,bhijd->bhyxij", q, k) * scale
            scores = scores + torch.einsum("bhyxd,yid->bhyxi", q, vectors_h)[..., None]
            scores = scores + torch.einsum("bhyxd,xjd->bhyxj", q, vectors_w)[..., None, :]
            weights = scores.flatten(4).softmax(-1).view_as(scores)
            found = torch.einsum("bhyxij,bhijd->byxhd", weights, v)
            out[:, y : y + size_h, x : x + size_w] = found.flatten(3)
    return out[:, :img_h, :img_w].contiguous().to(qkv.dtype)
