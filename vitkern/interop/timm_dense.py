"""timm's plain attention in other clothes: by units and windows, in parallel with the MLP, by differences, on pooled or
projected maps. See `vitkern.interop.sdpa_calls`."""

from timm.layers.attention2d import Attention2d as TimmAttention2d
from timm.layers.attention2d import MultiQueryAttention2d as TimmMultiQueryAttention2d
from timm.layers.diff_attention import DiffAttention as TimmDiffAttention
from timm.models.cpubone import ConvAttention as TimmBoneAttention
from timm.models.fastvit import Attention as TimmFastAttention
from timm.models.hiera import MaskUnitAttention as TimmMaskUnitAttention
from timm.models.hieradet_sam2 import MultiScaleAttention as TimmMultiScaleAttention
from timm.models.iformer import SHMA as TimmSHMA
from timm.models.lowformer import ConvAttention as TimmLowAttention
from timm.models.metaformer import Attention as TimmMetaAttention
from timm.models.nest import Attention as TimmNestAttention
from timm.models.nextvit import EfficientAttention as TimmEfficientAttention
from timm.models.vision_transformer import DiffParallelScalingBlock as TimmDiffParallelScalingBlock
from timm.models.vision_transformer import ParallelScalingBlock as TimmParallelScalingBlock
from timm.models.volo import Attention as TimmVoloAttention

from vitkern.interop.sdpa_calls import Caller


class Attention2d(Caller, TimmAttention2d):
    """`timm.layers.attention2d.Attention2d`."""


class MultiQueryAttention2d(Caller, TimmMultiQueryAttention2d):
    """`timm.layers.attention2d.MultiQueryAttention2d`: its one head of keys is read by every query head."""


class DiffAttention(Caller, TimmDiffAttention):
    """`timm.layers.diff_attention.DiffAttention`: two attentions, whose difference the module takes."""


class BoneAttention(Caller, TimmBoneAttention):
    """`timm.models.cpubone.ConvAttention`."""


class FastAttention(Caller, TimmFastAttention):
    """`timm.models.fastvit.Attention`."""


class MaskUnitAttention(Caller, TimmMaskUnitAttention):
    """`timm.models.hiera.MaskUnitAttention`."""


class MultiScaleAttention(Caller, TimmMultiScaleAttention):
    """`timm.models.hieradet_sam2.MultiScaleAttention`."""


class SHMA(Caller, TimmSHMA):
    """`timm.models.iformer.SHMA`."""


class LowAttention(Caller, TimmLowAttention):
    """`timm.models.lowformer.ConvAttention`."""


class MetaAttention(Caller, TimmMetaAttention):
    """`timm.models.metaformer.Attention`."""


class NestAttention(Caller, TimmNestAttention):
    """`timm.models.nest.Attention`."""


class EfficientAttention(Caller, TimmEfficientAttention):
    """`timm.models.nextvit.EfficientAttention`."""


class DiffParallelScalingBlock(Caller, TimmDiffParallelScalingBlock):
    """`timm.models.vision_transformer.DiffParallelScalingBlock`."""


class ParallelScalingBlock(Caller, TimmParallelScalingBlock):
    """`timm.models.vision_transformer.ParallelScalingBlock`."""


class VoloAttention(Caller, TimmVoloAttention):
    """`timm.models.volo.Attention`."""
