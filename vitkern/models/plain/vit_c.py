"""ViT_C (Xiao et al. 2021, arXiv 2106.14881): a few convolutions make the tokens, and there is a block less. ViT_P is
what it is compared with: patches, in its sizes. 3 x 3 convolutions are followed by BatchNorm and ReLU."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch.nn as nn
from torch import Tensor

from vitkern.models.plain.vit import VisionTransformer
from vitkern.models.registry import register
from vitkern.nn.embed import Stem

PAPER = "Early Convolutions Help Transformers See Better, Xiao et al. 2021, arXiv 2106.14881"


class ConvStem(Stem):
    """3 x 3 convolutions with BatchNorm and ReLU that halve the image four times, then a 1 x 1 convolution to C.

    Args:
        channels: of each 3 x 3 convolution. strides: of each, 1 or 2; their product is the patch size.
        Others as of `vitkern.nn.PatchEmbed`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        *,
        channels: Sequence[int] = (64, 128, 128, 256, 256, 512),
        strides: Sequence[int] = (2, 2, 1, 2, 1, 2),
        bias: bool = True,
        strict_img_size: bool = True,
    ) -> None:
        halvings = strides.count(2)
        if len(channels) != len(strides) or not set(strides) <= {1, 2} or 2**halvings != patch_size:
            raise ValueError(
                f"ConvStem: convolutions do not fit the patch: got channels={tuple(channels)}, "
                f"strides={tuple(strides)}, patch_size={patch_size}; expected a stride of 1 or 2 for each, and "
                "patch_size as their product."
            )
        super().__init__(img_size, patch_size, strict_img_size, reduction=patch_size)
        widths = in_chans, *channels
        self.convs = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(True))
                for before, after, stride in zip(widths, channels, strides, strict=False)
            )
        )
        self.proj = nn.Conv2d(widths[-1], embed_dim, kernel_size=1, bias=bias)
        nn.init.normal_(self.proj.weight, std=(2.0 / embed_dim) ** 0.5)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)
        self.in_chans = in_chans

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, in_chans, height, width) -> tokens (B, img_h, img_w, C); errors as of `PatchEmbed`."""
        self.check(x, self.in_chans)
        return self.proj(self.convs(x)).permute(0, 2, 3, 1)


class ConvStemVisionTransformer(VisionTransformer):
    """A ViT behind a few convolutions.

    Args:
        channels, strides: of the convolutions, see `ConvStem`.
        Others as of `VisionTransformer`.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        *,
        channels: Sequence[int] = (64, 128, 128, 256, 256, 512),
        strides: Sequence[int] = (2, 2, 1, 2, 1, 2),
        **kwargs: Any,
    ) -> None:
        stem = partial(ConvStem, channels=channels, strides=strides)
        super().__init__(img_size, embed_layer=stem, **kwargs)


# Named by their cost in multiply-adds, as in the paper, table 4.
SIZES: dict[str, dict[str, Any]] = {
    "1gf": dict(embed_dim=192, depth=12, num_heads=3, mlp_ratio=3.0),
    "4gf": dict(embed_dim=384, depth=12, num_heads=6, mlp_ratio=3.0),
    "18gf": dict(embed_dim=768, depth=12, num_heads=12, mlp_ratio=4.0),
    "36gf": dict(embed_dim=1024, depth=14, num_heads=16, mlp_ratio=4.0),
}
NARROW = {"1gf": (24, 48, 96, 192), "4gf": (48, 96, 192, 384)}

for _size, _arguments in SIZES.items():
    _stem = dict(channels=NARROW[_size], strides=(2, 2, 2, 2)) if _size in NARROW else {}
    _shorter = _arguments | dict(depth=_arguments["depth"] - 1)
    register(f"vit_p_{_size}_224", VisionTransformer, PAPER, **_arguments)
    register(f"vit_c_{_size}_224", ConvStemVisionTransformer, PAPER, **_shorter, **_stem)
