"""Stand-alone self-attention by the book: one pixel after the other (arXiv 1906.05909, equations 2 and 3)."""

import torch
from torch import Tensor


def standalone_attention(
    qkv: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    *,
    num_heads: int,
    kernel: tuple[int, int] = (7, 7),
    scale: float = 1.0,
) -> Tensor:
    """The definition of `vitkern.ops.standalone_attention.standalone_attention`, with the same arguments.

    Computes in float64 when ``qkv`` is float64, else in float32.
    """
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    batch, img_h, img_w, packed = qkv.shape
    head_dim = packed // 3 // num_heads
    tokens = qkv.to(wide).unflatten(-1, (3, num_heads, head_dim))
    q, k, v = (tokens[:, :, :, part] for part in range(3))  # (B, img_h, img_w, H, D)
    nothing = q.new_zeros(batch, num_heads, head_dim)
    rows = []
    for i in range(img_h):
        for j in range(img_w):
            scores, values = [], []
            for a in range(kernel[0]):
                for b in range(kernel[1]):
                    y, x = i + a - kernel[0] // 2, j + b - kernel[1] // 2
                    inside = 0 <= y < img_h and 0 <= x < img_w
                    key = k[:, y, x] if inside else nothing
                    r = torch.cat([rel_h[:, a], rel_w[:, b]], -1).to(wide)  # (H, D)
                    scores.append(scale * (q[:, i, j] * (key + r)).sum(-1))
                    values.append(v[:, y, x] if inside else nothing)
            weights = torch.stack(scores, -1).softmax(-1)  # (B, H, kernel_h kernel_w)
            rows.append((weights[..., None] * torch.stack(values, 2)).sum(2))
    return torch.stack(rows, 1).view(batch, img_h, img_w, packed // 3).to(qkv.dtype)
