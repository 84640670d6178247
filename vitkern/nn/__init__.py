"""Thin modules over `vitkern.ops`: parameters, a reshape, one call. Parameters are named as in timm."""

from vitkern.nn.additive_attention import AdditiveAttention
from vitkern.nn.attention import Attention
from vitkern.nn.attention_pool import AttentionPool
from vitkern.nn.channel_attention import ChannelAttention
from vitkern.nn.class_attention import ClassAttention
from vitkern.nn.convolutional_attention import ConvolutionalAttention
from vitkern.nn.cross_covariance_attention import CrossCovarianceAttention
from vitkern.nn.decomposed_attention import DecomposedAttention
from vitkern.nn.deformable_attention import DeformableAttention
from vitkern.nn.differential_attention import DifferentialAttention
from vitkern.nn.embed import PatchEmbed, PatchMerging
from vitkern.nn.gated_positional_attention import GatedPositionalAttention
from vitkern.nn.halo_attention import HaloAttention
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_glu import GluMlp
from vitkern.nn.layernorm_mlp import Mlp
from vitkern.nn.layers import DropPath, LayerScale
from vitkern.nn.nadaraya_watson import NadarayaWatson
from vitkern.nn.neighborhood_attention import NeighborhoodAttention
from vitkern.nn.parallel_block import ParallelBlock
from vitkern.nn.partition_attention import PartitionAttention
from vitkern.nn.policy_attention import PolicyAttention
from vitkern.nn.rmsnorm import RMSNorm
from vitkern.nn.separable_attention import SeparableSelfAttention
from vitkern.nn.spatial_reduction_attention import SpatialReductionAttention
from vitkern.nn.standalone_attention import StandaloneAttention
from vitkern.nn.talking_heads_attention import TalkingHeadsAttention
from vitkern.nn.token_mixing import TokenMixing
from vitkern.nn.vil_attention import ViLAttention
from vitkern.nn.vil_dense_attention import ViLDenseAttention
from vitkern.nn.window_attention import WindowAttention, WindowAttentionV2

__all__ = [
    "AdditiveAttention",
    "Attention",
    "AttentionPool",
    "ChannelAttention",
    "ClassAttention",
    "ConvolutionalAttention",
    "CrossCovarianceAttention",
    "DecomposedAttention",
    "DeformableAttention",
    "DifferentialAttention",
    "DropPath",
    "GatedPositionalAttention",
    "GluMlp",
    "HaloAttention",
    "LayerNorm",
    "LayerScale",
    "Mlp",
    "NadarayaWatson",
    "NeighborhoodAttention",
    "ParallelBlock",
    "PartitionAttention",
    "PatchEmbed",
    "PatchMerging",
    "PolicyAttention",
    "RMSNorm",
    "SeparableSelfAttention",
    "SpatialReductionAttention",
    "StandaloneAttention",
    "TalkingHeadsAttention",
    "TokenMixing",
    "ViLAttention",
    "ViLDenseAttention",
    "WindowAttention",
    "WindowAttentionV2",
]
