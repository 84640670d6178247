"""Attention with decomposed relative positions, over windows or the image: ViTDet (arXiv 2203.16527), SAM (arXiv
2304.02643), from MViTv2 (arXiv 2112.01526)."""

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.nn.embed import pair
from vitkern.nn.heads import head_dim
from vitkern.ops.decomposed_attention import projected_decomposed_attention


class DecomposedAttention(nn.Module):
    """softmax(q k^T / sqrt(D) + q . Rh + q . Rw) v, Rh and Rw learnt vectors of the row and column offsets.

    (B, img_h, img_w, C) -> the same. Parameters are named as in timm's `vision_transformer_sam.Attention` and in the
    attention of VitDet and SAM of transformers: qkv, proj, rel_pos_h, rel_pos_w. To pad the image and cut it into
    windows is the op's work: padded tokens hold the bias of ``qkv`` and are attended to.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        input_size: tokens of the image, one number or (height, width). Images of another size interpolate the vectors.
        window_size: tokens, one number or (height, width); None: the image is one window.
        qkv_bias: q, k and v projections have a bias.
        proj_drop: dropout after the output projection, in training.

    Raises:
        ValueError: heads do not divide the channels, or a size is not above 0.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        input_size: int | tuple[int, int] | None = None,
        window_size: int | tuple[int, int] | None = None,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        channels = head_dim("DecomposedAttention", dim, num_heads)
        given = input_size if window_size is None else window_size
        if given is None:
            raise ValueError(
                "DecomposedAttention: the relative positions have no size: got neither input_size nor window_size; "
                "expected one of them."
            )
        self.num_heads = num_heads
        size = pair(given)
        self.window_size = None if window_size is None else size
        if min(size) <= 0:
            raise ValueError(f"DecomposedAttention: the size is not usable: got {size}; expected numbers above 0.")
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rel_pos_h, self.rel_pos_w = (nn.Parameter(torch.zeros(2 * n - 1, channels)) for n in size)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        out = projected_decomposed_attention(
            x, self.qkv, self.rel_pos_h, self.rel_pos_w, num_heads=self.num_heads, window=self.window_size
        )
        return self.proj_drop(self.proj(out))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window_size={self.window_size}"
