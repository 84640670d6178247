"""torchvision: its transformers, at a size that their windows divide and at one that they do not."""

import importlib
from typing import Any

from torch import nn

from vitkern.covering.family import Family, pictures

LIBRARY = "torchvision"
CLASSES = 5
VIT = dict(patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64)
SWIN = dict(patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[7, 7])
VIDEO = dict(patch_size=[2, 4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 7, 7])
MAXVIT = dict(
    stem_channels=16,
    partition_size=7,
    block_channels=[16, 32],
    block_layers=[1, 1],
    head_dim=8,
    stochastic_depth_prob=0.2,
)
# name -> class, options, image size
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit_b_16": ("VisionTransformer", dict(VIT, image_size=64), 64),
    "swin_t": ("SwinTransformer", SWIN, 112),
    "swin_t, padded": ("SwinTransformer", SWIN, 100),
    "swin_v2_t": ("SwinTransformer", dict(SWIN, window_size=[8, 8]), 128),
    "swin_v2_t, padded": ("SwinTransformer", dict(SWIN, window_size=[8, 8]), 100),
    "maxvit_t": ("MaxVit", MAXVIT, 112),
    "swin3d_t": ("SwinTransformer3d", VIDEO, 56),
}


def families() -> list[Family]:
    return [_family(name, *rest) for name, rest in MODELS.items()]


def _family(name: str, kind: str, options: dict[str, Any], size: int) -> Family:
    def build() -> tuple[nn.Module, dict[str, Any]]:
        models = importlib.import_module("torchvision.models")
        swin = models.swin_transformer
        chosen = dict(options, num_classes=CLASSES)
        images = pictures(size)
        if kind == "MaxVit":
            chosen["input_size"] = (size, size)
        if kind == "SwinTransformer3d":
            images = images[:, :, None].repeat(1, 1, 8, 1, 1)
        if name.startswith("swin_v2"):
            chosen |= dict(block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2)
        rooms = models.maxvit, models.vision_transformer, models.video.swin_transformer, swin
        return next(getattr(room, kind) for room in rooms if hasattr(room, kind))(**chosen), {"images": images}

    return Family(f"{name}, {size} pixels", build)
