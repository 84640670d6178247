"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193), and with registers (Darcet et al. 2023, arXiv 2309.16588): ViTs with
LayerScale for images of 518 pixels, the largest with SwiGLU. Named as in timm, without heads, as published."""

from typing import Any

from vitkern.models.plain.vit import SIZES, VisionTransformer
from vitkern.models.registry import register

DINOV2 = "DINOv2: Learning Robust Visual Features without Supervision, Oquab et al. 2023, arXiv 2304.07193"
REGISTERS = "Vision Transformers Need Registers, Darcet et al. 2023, arXiv 2309.16588"

# Gate and value of the largest have 4096 channels each.
GIANT: dict[str, Any] = dict(embed_dim=1536, depth=40, num_heads=24, mlp_ratio=2.66667 * 2, mlp_layer="swiglu")
_shared: dict[str, Any] = dict(img_size=518, patch_size=14, num_classes=0, init_values=1e-5)

for _size, _arguments in {**{name: SIZES[name] for name in ("small", "base", "large")}, "giant": GIANT}.items():
    register(f"vit_{_size}_patch14_dinov2", VisionTransformer, DINOV2, **_shared, **_arguments)
    _registers = dict(reg_tokens=4, no_embed_class=True)
    register(f"vit_{_size}_patch14_reg4_dinov2", VisionTransformer, REGISTERS, **_shared, **_registers, **_arguments)
