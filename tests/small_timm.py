"""Small models of timm with attention of further families, and what accelerate makes of them."""

from typing import NamedTuple

import timm
import torch
from swapping import randomise
from timm.models.mlp_mixer import MlpMixer
from torch import nn


class Small(NamedTuple):
    """``create``: a name of timm's, or a class. ``kinds``: class that is swapped -> the operators of its adapter."""

    create: str | type
    options: dict
    kinds: dict[str, tuple[str, ...]]


FUSED = ("layernorm_mlp",)
MODELS = {
    "davit": Small(
        "davit_tiny",
        dict(depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4), window_size=4),
        {"ChannelAttention": ("channel_attention",), "ChannelBlock": FUSED},
    ),
    "davit, later": Small(
        "davit_base_fl",
        dict(depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4), window_size=4),
        {"ChannelAttentionV2": ("channel_attention",)},
    ),
    "xcit": Small(
        "xcit_nano_12_p16_224",
        dict(depth=1, cls_attn_layers=1, embed_dim=16, num_heads=2, img_size=32),
        {"XCA": ("cross_covariance_attention",), "XCABlock": FUSED},
    ),
    "pvt": Small(
        "pvt_v2_b0",
        dict(depths=(1, 1, 1, 1), embed_dims=(16, 16, 16, 16), num_heads=(1, 2, 2, 2)),
        {"Attention": ("attention",)},
    ),
    "pvt, linear": Small(
        "pvt_v2_b2_li",
        dict(depths=(1, 1, 1, 1), embed_dims=(16, 16, 16, 16), num_heads=(1, 2, 2, 2)),
        {"Attention": ("attention",)},
    ),
    "twins": Small(
        "twins_pcpvt_small",
        dict(depths=(1, 1, 1, 1), embed_dims=(16, 16, 16, 16), num_heads=(1, 2, 2, 2), img_size=64),
        {"GlobalSubSampleAttn": ("attention",), "Block": FUSED},
    ),
    "cait": Small(
        "cait_xxs24_224",
        dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, drop_path_rate=0.3),
        {"LayerScaleBlock": FUSED},
    ),
    "convit": Small(
        "convit_tiny",
        dict(img_size=32, patch_size=8, embed_dim=6, num_heads=4, depth=2, local_up_to_layer=1),
        {"GPSA": ("gated_positional_attention",), "MHSA": ("attention",), "Block": FUSED},
    ),
    "eva02": Small(
        "eva02_tiny_patch14_224",
        dict(img_size=28, embed_dim=24, num_heads=3, depth=2, drop_path_rate=0.3, init_values=0.5),
        {"EvaAttention": ("attention",), "EvaBlock": ("layernorm_glu",)},
    ),
    "eva, norm behind": Small(
        "eva02_tiny_patch14_224",
        dict(img_size=28, embed_dim=24, num_heads=3, depth=2, drop_path_rate=0.3, use_post_norm=True, swiglu_mlp=False),
        {"EvaAttention": ("attention",), "EvaBlockPostNorm": FUSED},
    ),
    "mixer": Small(
        MlpMixer,
        dict(img_size=32, patch_size=8, embed_dim=32, num_blocks=2, drop_path_rate=0.3),
        {"MixerBlock": ("token_mixing", *FUSED)},
    ),
    "mobilevit": Small("mobilevitv2_050", {}, {"LinearSelfAttention": ("separable_attention",)}),
}
SIZES = dict.fromkeys(MODELS, (32, 32)) | {
    "pvt": (64, 96),
    "pvt, linear": (64, 96),
    "twins": (64, 64),
    "eva02": (28, 28),
    "eva, norm behind": (28, 28),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    create, options, _ = MODELS[name]
    model = timm.create_model(create, num_classes=5, **options) if isinstance(create, str) else create(5, **options)
    return randomise(model).eval()
