"""timm's attention with relative positions as a bias that the module itself computes: BEiT, relative ViTs, CoAtNet,
MaxViT's parallel form, TinyViT. The bias gets its gradient; see `vitkern.interop.sdpa_calls`."""

from timm.models.beit import Attention as TimmBeitAttention
from timm.models.maxxvit import Attention2d as TimmAttention2d
from timm.models.maxxvit import AttentionCl as TimmAttentionCl
from timm.models.tiny_vit import Attention as TimmTinyAttention
from timm.models.vision_transformer_relpos import RelPosAttention as TimmRelPosAttention

from vitkern.interop.sdpa_calls import Caller


class BeitAttention(Caller, TimmBeitAttention):
    """`timm.models.beit.Attention`."""


class Attention2d(Caller, TimmAttention2d):
    """`timm.models.maxxvit.Attention2d`."""


class AttentionCl(Caller, TimmAttentionCl):
    """`timm.models.maxxvit.AttentionCl`, where no `PartitionAttentionCl` around it was taken whole."""


class TinyAttention(Caller, TimmTinyAttention):
    """`timm.models.tiny_vit.Attention`."""


class RelPosAttention(Caller, TimmRelPosAttention):
    """`timm.models.vision_transformer_relpos.RelPosAttention`."""
