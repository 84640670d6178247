"""Separable attention as the plain formula, on patches that are unfolded (Mehta and Rastegari, arXiv 2206.02680)."""

import torch
from torch import Tensor

from vitkern.reference.rounding import rounded


def separable_attention(
    qkv: Tensor,
    value: Tensor | None = None,
    *,
    patch_size: tuple[int, int],
    low_precision: torch.dtype | None = None,
) -> Tensor:
    """``relu(v) * sum_n softmax_n(q) k``, n running over patches, each pixel of a patch by itself.

    Args:
        qkv: (B, 1 + 2 C, H, W), a score, C keys, C values; (B, 1 + C, H', W') with a value. float64 is computed in
            float64, everything else in float32.
        value: (B, C, H, W) or None.
        patch_size: divides heights and widths.
        low_precision: dtype that a kernel would store; the result is rounded to it once, and nothing else is.

    Returns:
        (B, C, H, W); float64 or float32.
    """
    dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    channels = (qkv.shape[1] - 1) // 2 if value is None else value.shape[1]
    parts = qkv.to(dtype).split((1, channels, channels), 1) if value is None else qkv.to(dtype).split((1, channels), 1)
    q, k, v = (unfolded(part, patch_size) for part in (*parts, *(() if value is None else (value.to(dtype),))))
    context = (q.softmax(-1) * k).sum(-1, keepdim=True)  # (B, C, P, 1)
    height, width = (qkv if value is None else value).shape[2:]
    return rounded(folded(v.relu() * context, patch_size, height, width), low_precision)


def unfolded(image: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, P, N): P pixels of a patch, N patches."""
    (height, width), (patch_h, patch_w) = image.shape[2:], patch_size
    image = image.reshape(*image.shape[:2], height // patch_h, patch_h, width // patch_w, patch_w)
    return image.permute(0, 1, 3, 5, 2, 4).flatten(4, 5).flatten(2, 3)


def folded(patches: Tensor, patch_size: tuple[int, int], height: int, width: int) -> Tensor:
    """The inverse of `unfolded`."""
    patch_h, patch_w = patch_size
    image = patches.reshape(*patches.shape[:2], patch_h, patch_w, height // patch_h, width // patch_w)
    return image.permute(0, 1, 4, 2, 5, 3).reshape(*patches.shape[:2], height, width)
