"""Vision transformers whose tokens are pixels: 50,176 of them for an image of 224 x 224 (Wang et al. 2025, arXiv
2502.03738)."""

from vitkern.models.plain.vit import SIZES, VisionTransformer
from vitkern.models.registry import register

PAPER = "Scaling Laws in Patchification: An Image Is Worth 50,176 Tokens And More, Wang et al. 2025, arXiv 2502.03738"

for _size in ("tiny", "small", "base"):
    register(f"vit_{_size}_patch1_224", VisionTransformer, PAPER, patch_size=1, **SIZES[_size])
