"""Stand-alone self-attention as a module (Ramachandran et al., arXiv 1906.05909)."""

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.nn.embed import pair
from vitkern.nn.heads import head_dim
from vitkern.ops.standalone_attention import standalone_attention


class StandaloneAttention(nn.Module):
    """softmax(q . (k + r)) v over the window around each pixel, in place of a convolution; zeros beyond the image.

    (B, img_h, img_w, C) -> (B, img_h, img_w, dim_out). The vectors r are learnt, half of each for the row offset and
    half for the column offset (arXiv 1906.05909, section 3.2). There is no output projection and no scale.

    Args:
        dim: channels C.
        dim_out: channels of q, k, v and the result; C by default.
        num_heads: H, divides ``dim_out``.
        kernel_size: odd, one number or (height, width).
        qkv_bias: q, k and v projections have a bias.

    Raises:
        ValueError: heads or halves do not divide the channels, or the kernel has no centre.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        num_heads: int = 8,
        kernel_size: int | tuple[int, int] = 7,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        dim_out = dim_out or dim
        half, odd = divmod(head_dim("StandaloneAttention", dim_out, num_heads, "dim_out"), 2)
        if odd:
            raise ValueError(
                "StandaloneAttention: channels do not split into heads with a row and a column half: got "
                f"dim_out={dim_out}, num_heads={num_heads}; expected a multiple of 2 * num_heads. Take fewer heads."
            )
        self.num_heads, self.kernel_size = num_heads, pair(kernel_size)
        if any(size % 2 == 0 or size <= 0 for size in self.kernel_size):
            raise ValueError(
                f"StandaloneAttention: the kernel has no centre: got kernel_size={self.kernel_size}; "
                "expected odd sizes. Take one more or one less."
            )
        self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.rel_h, self.rel_w = (
            nn.Parameter(nn.init.normal_(torch.empty(num_heads, size, half), std=half**-0.5))
            for size in self.kernel_size
        )

    def forward(self, x: Tensor) -> Tensor:
        return standalone_attention(
            self.qkv(x), self.rel_h, self.rel_w, num_heads=self.num_heads, kernel=self.kernel_size
        )

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, kernel_size={self.kernel_size}"
