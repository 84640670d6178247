"""Small modules of timm that multiply out their attention scores, each with what it is given."""

import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from timm.models import (
    crossvit,
    edgenext,
    efficientformer,
    efficientformer_v2,
    gcvit,
    levit,
    mvitv2,
    shvit,
    tnt,
    visformer,
    volo,
)
from timm.models.efficientvit_msra import CascadedGroupAttention
from timm.models.swin_transformer_v2_cr import WindowMultiHeadAttention

TOKENS, IMAGE, WINDOWS = (1, 16, 32), (1, 32, 4, 4), (4, 9, 32)
QUERIES = torch.linspace(-1, 1, 2 * 9 * 32).view(2, 9, 32)
MASK = torch.where(torch.arange(2 * 9 * 9).view(2, 9, 9) % 3 == 0, -100.0, 0.0)
POOLED = dict(kernel_q=(3, 3), kernel_kv=(3, 3), stride_q=(1, 1), stride_kv=(2, 2))
DOWN = dict(in_dim=32, out_dim=24, key_dim=8, num_heads=2, attn_ratio=2.0)

# name -> module, shape of the input, further arguments
PRODUCTS = {
    "botnet": (BottleneckAttn(32, feat_size=(4, 4), num_heads=2), IMAGE, ()),
    "botnet, positions scaled, halved": (
        BottleneckAttn(32, 24, feat_size=(4, 4), stride=2, num_heads=2, dim_head=8, scale_pos_embed=True), IMAGE, ()
    ),
    "crossvit": (crossvit.CrossAttention(32, num_heads=2), TOKENS, ()),
    "edgenext": (edgenext.CrossCovarianceAttn(32, num_heads=2), TOKENS, ()),
    "efficientformer": (efficientformer.Attention(32, 8, 2, 4, resolution=4), TOKENS, ()),
    "efficientformer v2, halved": (
        efficientformer_v2.Attention2dDownsample(32, key_dim=8, num_heads=2, attn_ratio=2, resolution=4), IMAGE, ()
    ),
    "efficientvit": (CascadedGroupAttention(32, 8, 2, attn_ratio=2, resolution=4, kernels=(3, 3)), IMAGE, ()),
    "gcvit": (gcvit.WindowAttentionGlobal(32, 2, (3, 3), use_global=False), WINDOWS, ()),
    "gcvit, global": (gcvit.WindowAttentionGlobal(32, 2, (3, 3)), WINDOWS, (QUERIES,)),
    "levit": (levit.Attention(32, 8, num_heads=2, resolution=(4, 4)), TOKENS, ()),
    "levit, images": (levit.Attention(32, 8, num_heads=2, resolution=(4, 4), use_conv=True), IMAGE, ()),
    "levit, halved": (levit.AttentionDownsample(**DOWN, resolution=(4, 4)), TOKENS, ()),
    "levit, halved images": (levit.AttentionDownsample(**DOWN, resolution=(4, 4), use_conv=True), IMAGE, ()),
    "mvit": (mvitv2.MultiScaleAttention(32, 32, (4, 4), 2, **POOLED), (1, 17, 32), ([4, 4],)),
    "mvit, no class token": (
        mvitv2.MultiScaleAttention(32, 32, (4, 4), 2, **POOLED, has_cls_token=False), TOKENS, ([4, 4],)
    ),
    "mvit, no positions": (
        mvitv2.MultiScaleAttention(32, 32, (4, 4), 2, rel_pos_type="", residual_pooling=False), (1, 17, 32), ([4, 4],)
    ),
    "shvit": (shvit.SHSA(32, 16, 24), IMAGE, ()),
    "swin v2 cr": (WindowMultiHeadAttention(32, 2, (3, 3), sequential_attn=False), WINDOWS, ()),
    "swin v2 cr, shifted": (WindowMultiHeadAttention(32, 2, (3, 3)), WINDOWS, (MASK,)),
    "tnt": (tnt.Attention(32, 16, num_heads=2), TOKENS, ()),
    "visformer": (visformer.Attention(32, num_heads=2), IMAGE, ()),
    "volo, class token": (volo.ClassAttention(32, num_heads=2), TOKENS, ()),
}  # fmt: skip
