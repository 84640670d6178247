"""Larger vision transformers: g/14 and G/14 (Zhai et al. 2021, arXiv 2106.04560), named as in timm; e/14 (PaLI, Chen et
al. 2022, arXiv 2209.06794, table 1). With "map" in the name, and e/14: pooling by attention and no class token, as
published; timm's names of g/14 and G/14 have a class token."""

from vitkern.models.plain.vit import VisionTransformer
from vitkern.models.registry import register

SCALING = "Scaling Vision Transformers, Zhai et al. 2021, arXiv 2106.04560"
PALI = "PaLI: A Jointly-Scaled Multilingual Language-Image Model, Chen et al. 2022, arXiv 2209.06794"

MAP = dict(global_pool="map", class_token=False)
SIZES = {
    "giant": dict(embed_dim=1408, depth=40, num_heads=16, mlp_ratio=6144 / 1408),
    "gigantic": dict(embed_dim=1664, depth=48, num_heads=16, mlp_ratio=8192 / 1664),
}

for _size, _arguments in SIZES.items():
    register(f"vit_{_size}_patch14_224", VisionTransformer, SCALING, patch_size=14, **_arguments)
    register(f"vit_{_size}_patch14_map_224", VisionTransformer, SCALING, patch_size=14, **MAP, **_arguments)
_arguments = dict(embed_dim=1792, depth=56, num_heads=16, mlp_ratio=15360 / 1792)
register("vit_e_patch14_224", VisionTransformer, PALI, patch_size=14, **MAP, **_arguments)
