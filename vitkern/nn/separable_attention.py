"""Separable self-attention as a module (Mehta and Rastegari, arXiv 2206.02680)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.embed import pair
from vitkern.ops.separable_attention import separable_attention


class SeparableSelfAttention(nn.Module):
    """1x1 convolution to scores, keys and values, `vitkern.ops.separable_attention.separable_attention`, 1x1
    convolution; named as in timm's `LinearSelfAttention` of MobileViT v2, of which it takes weights.

    With ``patch_size`` None the input is that of timm, unfolded: (B, C, P, N), P pixels of N patches; else it is the
    image, (B, C, H, W), of any memory format, and nothing is unfolded. The result is like the input.
    ``forward(x, x_prev)``: scores and keys are those of ``x_prev``, values those of ``x``; their sizes may differ, but
    not P.

    Args:
        embed_dim: channels C.
        attn_drop: dropout of the softmax's weights; above 0, in training, PyTorch computes the attention. Read, not
            called: its hooks do not run.
        proj_drop: dropout of the result.
        bias: the convolutions have one.
        patch_size: pixels, divides the height and the width.

    Raises:
        ValueError: x and x_prev, unfolded, have patches of other sizes.
    """

    def __init__(
        self,
        embed_dim: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        bias: bool = True,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.patch_size = None if patch_size is None else pair(patch_size)
        self.qkv_proj = nn.Conv2d(embed_dim, 1 + 2 * embed_dim, 1, bias=bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.out_proj = nn.Conv2d(embed_dim, embed_dim, 1, bias=bias)
        self.out_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, x_prev: Tensor | None = None) -> Tensor:
        if x_prev is None:
            return self._attend(x.shape, self.qkv_proj(x), None)
        if self.patch_size is None and x_prev.shape[2] != x.shape[2]:
            raise ValueError(
                f"SeparableSelfAttention: pixels of a patch differ: got x {tuple(x.shape)}, x_prev "
                f"{tuple(x_prev.shape)}; expected (B, C, P, N) and (B, C, P, M). Unfold both with one patch size."
            )
        keys = 1 + self.embed_dim
        return self._attend(x.shape, self._projected(x_prev, slice(keys)), self._projected(x, slice(keys, None)))

    def _attend(self, shape: torch.Size, qkv: Tensor, value: Tensor | None) -> Tensor:
        dropout_p = self.attn_drop.p if self.training else 0.0
        out = separable_attention(qkv, value, patch_size=self.patch_size or (shape[2], 1), dropout_p=dropout_p)
        return self.out_drop(self.out_proj(out))

    def _projected(self, x: Tensor, rows: slice) -> Tensor:
        """``x`` by some rows of the first convolution."""
        weight, bias = self.qkv_proj.weight, self.qkv_proj.bias
        return F.conv2d(x, weight[rows], None if bias is None else bias[rows])

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, patch_size={self.patch_size}"
