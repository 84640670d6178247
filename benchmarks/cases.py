"""The only list of shapes: each is a layer of a model that people run."""

from fnmatch import fnmatchcase

from benchmarks.layers import Attention, Layer, LayerNorm, Mlp, Sampled, Window
from benchmarks.local_layers import Chunks, Decomposed, Grid, Halo, Neighborhood, Standalone
from vitkern.report import BadInput, near_matches

CASES: tuple[Layer, ...] = (
    Attention("ViT-Ti/16 224", 3, 197, 64),
    Attention("ViT-S/16 224", 6, 197, 64, quick=True),
    Attention("ViT-B/16 224", 12, 197, 64),
    Attention("ViT-L/16 224", 16, 197, 64),
    Attention("ViT-L/14 224", 16, 257, 64),
    Attention("ViT-H/14 224", 16, 257, 80),
    Attention("DINOv2-g/14 224", 24, 257, 64),
    Attention("DINOv2-g/14 518", 24, 1370, 64, batch=8),
    Attention("ViT-B/16 384", 12, 577, 64, batch=32),
    Attention("ViT-B/16 384, no class token", 12, 576, 64, masked=True, batch=32),
    Attention("BEiT-B/16 224", 12, 197, 64, bias=True),
    Attention("BEiT-B/16 384", 12, 577, 64, bias=True, batch=32),
    Attention("PVT-S stage 1", 1, 3136, 64, keys=49),
    Attention("PVT-S stage 2", 2, 784, 64, keys=49),
    Attention("PVT-S stage 3", 5, 196, 64, keys=49),
    Attention("PVT-S stage 4", 8, 50, 64, keys=50),
    Attention("iGPT grid, without its mask", 16, 1024, 64, batch=16),
    Attention("ViT-22B head width", 12, 577, 128, batch=16),
    Attention("SAM-B global, ViTDet-B", 12, 4096, 64, batch=4),
    Attention("SAM-H global", 16, 4096, 80, batch=2),
    Attention("pixel ViT 224", 3, 50176, 64, batch=1),
    Window("Swin-T stage 1", 56, 96, 3, 7),
    Window("Swin-T stage 1", 56, 96, 3, 7, 3),
    Window("Swin-T stage 2", 28, 192, 6, 7),
    Window("Swin-T stage 2", 28, 192, 6, 7, 3),
    Window("Swin-T stage 3", 14, 384, 12, 7),
    Window("Swin-T stage 3", 14, 384, 12, 7, 3, quick=True),
    Window("Swin-T stage 4", 7, 768, 24, 7),
    Window("Swin-B stage 1", 56, 128, 4, 7, 3),
    Window("Swin-B stage 2", 28, 256, 8, 7, 3),
    Window("Swin-B stage 3", 14, 512, 16, 7, 3),
    Window("Swin-B stage 4", 7, 1024, 32, 7),
    Window("Swin-B 384 stage 1", 96, 128, 4, 12, 6, batch=32),
    Window("Swin-B 384 stage 3", 24, 512, 16, 12, 6, batch=32),
    Window("SwinV2-T w8 stage 1", 64, 96, 3, 8, 4, cosine=True),
    Window("SwinV2-T w8 stage 2", 32, 192, 6, 8, 4, cosine=True),
    Window("SwinV2-T w8 stage 3", 16, 384, 12, 8, 4, cosine=True),
    Window("SwinV2-T w8 stage 4", 8, 768, 24, 8, cosine=True),
    Window("SwinV2-T w16 stage 1", 64, 96, 3, 16, 8, cosine=True),
    Window("SwinV2-T w16 stage 2", 32, 192, 6, 16, 8, cosine=True),
    Window("SwinV2-T w16 stage 3", 16, 384, 12, 16, cosine=True),
    Window("SwinV2-B w24 stage 1", 96, 128, 4, 24, 12, cosine=True, batch=32),
    Window("SwinV2-B w24 stage 2", 48, 256, 8, 24, 12, cosine=True, batch=32),
    Window("SwinV2-B w24 stage 3", 24, 512, 16, 24, cosine=True, batch=32),
    Window("SAM-B local, with Swin's table", 64, 768, 12, 14, batch=8),
    Window("MaxViT-T stage 1", 56, 64, 2, 7),
    Window("Twins-SVT-S stage 1", 56, 64, 2, 7, table=False),
    Window("Twins-SVT-S stage 3", 14, 256, 8, 7, table=False),
    Window("DaViT-T stage 1", 56, 96, 3, 7, table=False),
    Window("DaViT-T stage 3", 14, 384, 12, 7, table=False),
    Neighborhood("NAT-T stage 1", 56, 64, 2, 7),
    Neighborhood("NAT-T stage 2", 28, 128, 4, 7),
    Neighborhood("NAT-T stage 3", 14, 256, 8, 7, quick=True),
    Neighborhood("NAT-T stage 4", 7, 512, 16, 7),
    Neighborhood("DiNAT-T stage 1", 56, 64, 2, 7, 8),
    Neighborhood("DiNAT-T stage 2", 28, 128, 4, 7, 4),
    Neighborhood("DiNAT-T stage 3", 14, 256, 8, 7, 2),
    Halo("HaloNet-H1 stage 1", 64, 64, 8),
    Halo("HaloNet-H1 stage 2", 32, 128, 8),
    Halo("HaloNet-H1 stage 3", 16, 256, 8),
    Halo("HaloNet-H1 stage 4", 8, 512, 8, quick=True),
    Halo("HaloNet-26-T stage 3", 16, 256, 8, halo=2),
    Halo("HaloNet-26-T stage 4", 8, 512, 8, halo=2),
    Standalone("SASA ResNet-26 stage 1", 56, 64, 8),
    Standalone("SASA ResNet-26 stage 2", 28, 128, 8),
    Standalone("SASA ResNet-26 stage 3", 14, 256, 8, quick=True),
    Standalone("SASA ResNet-26 stage 4", 7, 512, 8),
    Decomposed("ViTDet-B, SAM-B local", 64, 768, 12, 14, batch=8),
    Decomposed("ViTDet-B, SAM-B", 64, 768, 12, batch=4),
    Decomposed("SAM-H local", 64, 1280, 16, 14, batch=4),
    Decomposed("SAM-H", 64, 1280, 16, batch=2),
    Decomposed("ViTDet-B at 224", 14, 768, 12, quick=True),
    Grid("MaxViT-T stage 1", 56, 64, 2),
    Grid("MaxViT-T stage 2", 28, 128, 4),
    Grid("MaxViT-T stage 3", 14, 256, 8, quick=True),
    Chunks("ViL-T stage 1", 56, 48, 1),
    Chunks("ViL-T stage 2", 28, 96, 3, quick=True),
    Chunks("ViL-S stage 1", 56, 96, 3),
    Sampled("STRec layer 1, pre-training", 4, 50, 32, batch=2048),
    Sampled("STRec layer 2", 4, 50, 32, 20, batch=2048, quick=True),
    Sampled("STRec layer 4", 4, 20, 32, 5, batch=2048),
    LayerNorm("Swin-T stage 1", 3136, 96),
    LayerNorm("Swin-T stage 2", 784, 192),
    LayerNorm("Swin-T stage 3", 196, 384),
    LayerNorm("ViT-S", 197, 384, quick=True),
    LayerNorm("ViT-B", 197, 768),
    LayerNorm("ViT-B", 197, 768, residual=True),
    LayerNorm("ViT-L", 197, 1024),
    LayerNorm("ViT-H", 257, 1280),
    LayerNorm("DINOv2-g", 257, 1536),
    Mlp("Swin-T stage 1", 3136, 96),
    Mlp("Swin-B stage 1", 3136, 128),
    Mlp("Swin-T stage 2", 784, 192),
    Mlp("ViT-Ti", 197, 192),
    Mlp("Swin-B stage 2", 784, 256),
    Mlp("SwinV2-T stage 1", 4096, 96, post_norm=True),
    Mlp("SwinV2-T stage 2", 1024, 192, post_norm=True),
    Mlp("SwinV2-T stage 3", 256, 384, post_norm=True),
    Mlp("ViT-S", 197, 384, quick=True),
    Mlp("Swin-B stage 3", 196, 512),
    Mlp("ViT-B", 197, 768),
    Mlp("ViT-L", 197, 1024),
    Mlp("ViT-H/14", 257, 1280),
)
OPS = tuple(dict.fromkeys(case.op for case in CASES))

CPU_SHARE = 32  # a GPU's batch over a CPU's

QUICK = tuple(case for case in CASES if case.quick)


def batch_for(case: Layer, *, gpu: bool, quick: bool) -> int:
    """Images in a timed call."""
    if quick:
        return 1
    return case.batch if gpu else max(1, case.batch // CPU_SHARE)


def chosen(patterns: list[str], cases=CASES) -> tuple[Layer, ...]:
    """The cases whose name holds one of ``patterns``, or matches it as a glob; all where there are none.

    Raises:
        BadInput: a pattern that is in no name.
    """

    def fits(case: Layer, pattern: str) -> bool:
        name = str(case).lower()
        return pattern.lower() in name or fnmatchcase(name, pattern.lower())

    for pattern in patterns:
        if not any(fits(case, pattern) for case in cases):
            near = near_matches(pattern, [str(case) for case in cases])
            raise BadInput(f"no case is called {pattern!r}.{near} The cases are listed by --list.")
    return tuple(case for case in cases if not patterns or any(fits(case, pattern) for pattern in patterns))
