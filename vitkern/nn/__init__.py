"""Thin modules over `vitkern.ops`: parameters, a reshape, one call. Parameters are named as in timm."""

from vitkern.nn.attention import Attention
from vitkern.nn.decomposed import DecomposedAttention
from vitkern.nn.embed import PatchEmbed, PatchMerging
from vitkern.nn.grid import PartitionAttention
from vitkern.nn.halo import HaloAttention
from vitkern.nn.layers import DropPath, LayerScale
from vitkern.nn.mlp import LayerNorm, Mlp
from vitkern.nn.neighborhood import NeighborhoodAttention
from vitkern.nn.standalone import StandaloneAttention
from vitkern.nn.vil import ViLAttention
from vitkern.nn.vil_dense import ViLDenseAttention
from vitkern.nn.window import WindowAttention, WindowAttentionV2

__all__ = [
    "Attention",
    "DecomposedAttention",
    "DropPath",
    "HaloAttention",
    "LayerNorm",
    "LayerScale",
    "Mlp",
    "NeighborhoodAttention",
    "PartitionAttention",
    "PatchEmbed",
    "PatchMerging",
    "StandaloneAttention",
    "ViLAttention",
    "ViLDenseAttention",
    "WindowAttention",
    "WindowAttentionV2",
]
