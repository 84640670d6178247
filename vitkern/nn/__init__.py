"""Thin modules over `vitkern.ops`: parameters, a reshape, one call. Parameters are named as in timm."""

from vitkern.nn.attention import Attention
from vitkern.nn.embed import PatchEmbed, PatchMerging
from vitkern.nn.layers import DropPath, LayerScale
from vitkern.nn.mlp import LayerNorm, Mlp
from vitkern.nn.window import WindowAttention, WindowAttentionV2

__all__ = [
    "Attention",
    "DropPath",
    "LayerNorm",
    "LayerScale",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "WindowAttention",
    "WindowAttentionV2",
]
