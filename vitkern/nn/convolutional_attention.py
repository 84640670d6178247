"""Attention with convolutional projections: CvT (Wu et al., arXiv 2103.15808, section 3.2)."""

from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.attention import dropped_attention
from vitkern.nn.grid import as_image, as_tokens
from vitkern.nn.heads import head_dim
from vitkern.ops.bypass import may_bypass
from vitkern.ops.sizes import fixed


class DepthwiseProjection(nn.Module):
    """Depthwise convolution without a bias, then BatchNorm: (B, C, H, W) -> (B, C, H', W'). With the statistics of
    evaluation both are one convolution, and it is that which runs."""

    def __init__(self, dim: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, stride=stride, padding=padding, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        conv, bn = self.conv, self.bn
        folds = may_bypass(conv, nn.Conv2d) and may_bypass(bn, nn.BatchNorm2d) and bn.running_var is not None
        if bn.training or not folds or conv.bias is not None or conv.padding_mode != "zeros":
            return bn(conv(x))
        mean, variance = cast(Tensor, bn.running_mean), cast(Tensor, bn.running_var)
        factor = torch.rsqrt(variance + bn.eps)
        factor = factor if bn.weight is None else factor * bn.weight
        offset = -mean * factor if bn.bias is None else bn.bias - mean * factor
        dtype = conv.weight.dtype  # BatchNorm's may be wider
        weight, offset = (conv.weight * factor.view(-1, 1, 1, 1)).to(dtype), offset.to(dtype)
        return F.conv2d(x, weight, offset, conv.stride, conv.padding, conv.dilation, conv.groups)


class ConvolutionalAttention(nn.Module):
    """Queries, keys and values of depthwise convolutions, each followed by a linear map; keys of every ``stride_kv``-th
    pixel. Named as in CvT's own code (``conv_proj_q.conv``, ``conv_proj_q.bn``, ``proj_q``, ...).

    The scale is dim^-1/2 as in that code, not that of the head dim. A class token comes first, and takes no part in
    convolutions.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        kernel_size: of the convolutions.
        stride_q, stride_kv: of those of queries, and of keys and values.
        padding: of all of them.
        qkv_bias: the linear maps to q, k and v have a bias.
        attn_drop: dropout of the attention weights, 0 <= p < 1, in training.
        proj_drop: dropout after the output projection, in training.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        kernel_size: int = 3,
        stride_q: int = 1,
        stride_kv: int = 2,
        padding: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, dim**-0.5
        self.head_dim = head_dim("ConvolutionalAttention", dim, num_heads)
        self.conv_proj_q = DepthwiseProjection(dim, kernel_size, stride_q, padding)
        self.conv_proj_k = DepthwiseProjection(dim, kernel_size, stride_kv, padding)
        self.conv_proj_v = DepthwiseProjection(dim, kernel_size, stride_kv, padding)
        self.proj_q = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj_k = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj_v = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, N, C), the tokens of an image of ``size`` = (H, W) row by row, or a class token and these -> as many
        tokens as queries: N with ``stride_q`` of 1.

        Raises:
            ValueError: N is neither H * W nor H * W + 1.
        """
        token = fixed(x.shape[1]) - size[0] * size[1]
        first, image = x[:, :token], as_image("ConvolutionalAttention", x[:, token:] if token == 1 else x, size)

        def heads(conv: nn.Module, project: nn.Module) -> Tensor:
            """(B, H, N, D)"""
            found = as_tokens(conv(image))
            found = torch.cat((first, found), 1) if token else found
            return project(found).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

        q = heads(self.conv_proj_q, self.proj_q)
        k, v = heads(self.conv_proj_k, self.proj_k), heads(self.conv_proj_v, self.proj_v)
        out = dropped_attention(self, q, k, v, self.scale).transpose(1, 2)
        return self.proj_drop(self.proj(out.flatten(2)))
