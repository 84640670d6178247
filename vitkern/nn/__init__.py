"""Thin modules over `vitkern.ops`: parameters, a reshape, one call. Parameters are named as in timm."""

from vitkern.nn.attention import Attention
from vitkern.nn.channel_attention import ChannelAttention
from vitkern.nn.cross_covariance_attention import CrossCovarianceAttention
from vitkern.nn.decomposed_attention import DecomposedAttention
from vitkern.nn.embed import PatchEmbed, PatchMerging
from vitkern.nn.gated_positional_attention import GatedPositionalAttention
from vitkern.nn.halo_attention import HaloAttention
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import Mlp
from vitkern.nn.layers import DropPath, LayerScale
from vitkern.nn.neighborhood_attention import NeighborhoodAttention
from vitkern.nn.partition_attention import PartitionAttention
from vitkern.nn.rmsnorm import RMSNorm
from vitkern.nn.separable_attention import SeparableSelfAttention
from vitkern.nn.standalone_attention import StandaloneAttention
from vitkern.nn.vil_attention import ViLAttention
from vitkern.nn.vil_dense_attention import ViLDenseAttention
from vitkern.nn.window_attention import WindowAttention, WindowAttentionV2

__all__ = [
    "Attention",
    "ChannelAttention",
    "CrossCovarianceAttention",
    "DecomposedAttention",
    "DropPath",
    "GatedPositionalAttention",
    "HaloAttention",
    "LayerNorm",
    "LayerScale",
    "Mlp",
    "NeighborhoodAttention",
    "PartitionAttention",
    "PatchEmbed",
    "PatchMerging",
    "RMSNorm",
    "SeparableSelfAttention",
    "StandaloneAttention",
    "ViLAttention",
    "ViLDenseAttention",
    "WindowAttention",
    "WindowAttentionV2",
]
