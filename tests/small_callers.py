"""Small modules of timm that call scaled_dot_product_attention, each with what it is given."""

import torch
from timm.layers import attention2d, attention_pool2d, other_pool
from timm.layers.attention import AttentionRope
from timm.layers.attention_pool import AttentionPoolLatent, AttentionPoolPrr
from timm.layers.diff_attention import DiffAttention
from timm.layers.pos_embed_rel import RelPosBias
from timm.models import (
    beit,
    cpubone,
    fastvit,
    hiera,
    hieradet_sam2,
    iformer,
    lowformer,
    maxxvit,
    metaformer,
    nest,
    nextvit,
    tiny_vit,
    volo,
)  # fmt: skip
from timm.models.eva import EvaAttention
from timm.models.gemma4_vit import Gemma4Attention
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn


def rope(half: bool = False) -> Tensor:
    """Sines, then cosines, of 16 positions and 16 channels."""
    angles = torch.linspace(0, 3, 16)[:, None] * torch.arange(1.0, 9.0)
    angles = torch.cat([angles, angles], -1) if half else angles.repeat_interleave(2, -1)
    return torch.cat([angles.sin(), angles.cos()], -1)


def bias(num_heads: int, **options: object) -> RelPosBias:
    return RelPosBias(window_size=(4, 4), num_heads=num_heads)


PREFIXED, TOKENS, IMAGE, LAST = (1, 17, 32), (1, 16, 32), (1, 32, 4, 4), (1, 4, 4, 32)
TWO = dict(num_heads=2)
NORMED = dict(TWO, qk_norm=True, scale_norm=True, norm_layer=nn.LayerNorm)
GROUPED = dict(num_heads=4, num_kv_heads=2, attn_head_dim=16, qkv_fused=False, rotate_half=True)
SHIFTS = torch.linspace(-2, 2, 17 * 17).view(1, 1, 17, 17)
LOWER = torch.ones(1, 1, 17, 17, dtype=torch.bool).tril()

# name -> module, shape of the input, further arguments
CALLERS = {
    "rope": (AttentionRope(32, **TWO), PREFIXED, (rope(),)),
    "rope, norms, gate, mask": (AttentionRope(32, **NORMED, gated=True), PREFIXED, (rope(), LOWER)),
    "rope, grouped, by halves": (AttentionRope(32, **GROUPED), PREFIXED, (rope(True), SHIFTS)),
    "rope, causal": (AttentionRope(32, **TWO), PREFIXED, (rope(), None, True)),
    "eva": (EvaAttention(32, **TWO, scale_norm=False), PREFIXED, (rope(), LOWER)),
    "eva, norms, gate, bias apart": (
        EvaAttention(32, **NORMED, gated=True, qkv_bias_separate=True), PREFIXED, (rope(), SHIFTS)
    ),
    "eva, projections apart": (EvaAttention(32, **TWO, scale_norm=False, qkv_fused=False), PREFIXED, (rope(),)),
    "gemma4": (
        Gemma4Attention(32, num_heads=4, head_dim=16, num_kv_heads=2),
        TOKENS, (torch.linspace(0, 1, 256).view(1, 16, 16).cos(), torch.linspace(0, 1, 256).view(1, 16, 16).sin()),
    ),
    "beit": (beit.Attention(32, **TWO, qkv_bias=True, window_size=(4, 4)), PREFIXED, ()),
    "beit, shared bias": (beit.Attention(32, **TWO), PREFIXED, (SHIFTS.clone().requires_grad_(),)),
    "relpos": (RelPosAttention(32, **TWO, qk_norm=True, rel_pos_cls=bias), TOKENS, ()),
    "relpos, shared": (RelPosAttention(32, **TWO), PREFIXED, (SHIFTS,)),
    "coatnet": (maxxvit.Attention2d(32, dim_head=16, rel_pos_cls=bias), IMAGE, ()),
    "coatnet, qkv first": (maxxvit.Attention2d(32, dim_head=16, head_first=False), IMAGE, ()),
    "maxvit, parallel": (maxxvit.AttentionCl(32, dim_head=16, rel_pos_cls=bias), LAST, ()),
    "tinyvit": (tiny_vit.Attention(32, 8, 2, 3, resolution=(4, 4)), TOKENS, ()),
    "attention2d": (attention2d.Attention2d(32, num_heads=2), IMAGE, ()),
    "multi-query": (attention2d.MultiQueryAttention2d(32, num_heads=4, key_dim=16), IMAGE, ()),
    "multi-query, strided": (
        attention2d.MultiQueryAttention2d(32, num_heads=4, key_dim=8, value_dim=8, kv_stride=2), IMAGE, ()
    ),
    "differential": (DiffAttention(32, **TWO), PREFIXED, ()),
    "differential, mask": (DiffAttention(32, **TWO, dual_lambda=True), PREFIXED, (LOWER,)),
    "cpubone": (cpubone.ConvAttention(60, att_stride=1), (1, 60, 4, 4), ()),
    "lowformer": (lowformer.ConvAttention(60, head_dim_mul=1.0, att_stride=1), (1, 60, 4, 4), ()),
    "fastvit": (fastvit.Attention(32, head_dim=16), IMAGE, ()),
    "hiera, units": (hiera.MaskUnitAttention(32, 32, 2, 4, 4, use_mask_unit_attn=True), (1, 32, 32), ()),
    "hiera": (hiera.MaskUnitAttention(32, 32, 2), TOKENS, ()),
    "hieradet": (hieradet_sam2.MultiScaleAttention(32, 32, 2, nn.MaxPool2d(2)), LAST, ()),
    "iformer": (iformer.SHMA(32), IMAGE, ()),
    "iformer, windows": (iformer.SHMA(32, window_size=3), IMAGE, ()),
    "caformer": (metaformer.Attention(32, head_dim=16), TOKENS, ()),
    "nest": (nest.Attention(32, num_heads=2), (1, 2, 9, 32), ()),
    "nextvit": (nextvit.EfficientAttention(32, head_dim=16, sr_ratio=2), TOKENS, ()),
    "parallel": (ParallelScalingBlock(32, 2, qk_norm=True), PREFIXED, (LOWER,)),
    "parallel, differential": (DiffParallelScalingBlock(32, 2), PREFIXED, ()),
    "volo": (volo.Attention(32, num_heads=2), LAST, ()),
    "latent": (AttentionPoolLatent(32, num_heads=2, latent_len=3), TOKENS, ()),
    "latent, mask": (AttentionPoolLatent(32, num_heads=2, qk_norm=True), TOKENS, (LOWER[..., :1, 1:],)),
    "residual pool": (AttentionPoolPrr(32, num_heads=2, pre_norm=True), TOKENS, ()),
    "pool2d": (attention_pool2d.AttentionPool2d(32, feat_size=4, num_heads=2), IMAGE, ()),
    "pool2d, rotated": (attention_pool2d.RotAttentionPool2d(32, num_heads=2), IMAGE, ()),
    "simpool": (other_pool.SimPool1d(32, num_heads=2), TOKENS, ()),
    "simpool2d, powers": (other_pool.SimPool2d(32, num_heads=2, gamma=1.25), IMAGE, ()),
}  # fmt: skip
