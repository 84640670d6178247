"""DaViT, dual attention (Ding et al. 2022, arXiv 2204.03645). Named as in `timm.models.davit`."""

from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.backbone import Checkpointed, PooledBackbone
from vitkern.models.head import ClassifierHead, init_linear
from vitkern.models.hierarchical.pyramid import Pyramid
from vitkern.models.mlp import build_mlp
from vitkern.models.positional_conv import PositionalConv
from vitkern.models.registry import register
from vitkern.nn.channel_attention import ChannelAttention
from vitkern.nn.embed import ConvEmbed
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.layers import DropPath, drop_path_rates
from vitkern.nn.window_attention import WindowAttention

PAPER = "DaViT: Dual Attention Vision Transformers, Ding et al. 2022, arXiv 2204.03645"


class Stem(nn.Module):
    """A convolution of 7 x 7 pixels that makes a token of 4 x 4, and a norm."""

    def __init__(self, in_chans: int, dim: int, eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, 7, stride=4, padding=3)
        self.norm = LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, height, width) -> (B, ceil(height / 4), ceil(width / 4), C)."""
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """A norm, and a convolution that makes a token of 2 x 2."""

    def __init__(self, dim: int, out_dim: int, kernel_size: int, eps: float) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, eps=eps)
        self.padded = kernel_size % 2 == 0
        self.conv = nn.Conv2d(dim, out_dim, kernel_size, stride=2, padding=0 if self.padded else kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> (B, ceil(img_h / 2), ceil(img_w / 2), out_dim)."""
        x = self.norm(x)
        side = self.conv.kernel_size[0]
        rows, columns = -x.shape[1] % side, -x.shape[2] % side
        if self.padded and (rows or columns):
            x = F.pad(x, (0, 0, 0, columns, 0, rows))
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SpatialBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), a positional convolution before each (section 3)."""

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, drop_path: float, eps: float) -> None:
        super().__init__()
        self.cpe1 = PositionalConv(dim)
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path)
        self.cpe2 = PositionalConv(dim)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.drop_path2 = DropPath(drop_path)

    def attend(self, x: Tensor) -> Tensor:
        return self.attn(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> the same shape."""
        x = self.cpe1(x)
        x = self.cpe2(x + self.drop_path1(self.attend(self.norm1(x))))
        return mlp_residual(x, self.norm2, self.mlp, self.drop_path2)


class ChannelBlock(SpatialBlock):
    """The same with attention between channels."""

    def attend(self, x: Tensor) -> Tensor:
        return self.attn(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


class Stage(Checkpointed):
    """A downsampling in all stages but the first, then blocks of windows and of channels by turns."""

    def __init__(self, downsample: nn.Module, pairs: list[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*pairs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C', img_h', img_w') -> (B, C, img_h, img_w), half as high and wide, rounded up, if it downsamples."""
        x = self.downsample(x.permute(0, 2, 3, 1))
        for pair in self.blocks:
            x = self.run(pair, x)
        return x.permute(0, 3, 1, 2)


class DaViT(PooledBackbone, Pyramid):
    """Stages of pairs of blocks, attention within windows and attention between channels; then pooling, a norm and a
    head. Images of any size are taken. A tuple has one entry for each stage.

    Args:
        img_size: pixels, one number or (height, width), which `describe` names. in_chans: channels of the image.
        depths, embed_dims, num_heads: pairs of blocks, channels, heads of both attentions.
        window_size: tokens. mlp_ratio: hidden channels of an MLP over C. qkv_bias: biases of the q, k, v projections.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`.
        norm_eps: of every LayerNorm.
        down_kernel_size: of the convolutions between stages: 2, or 3 that overlap.
        channel_attn_v2: channels are attended to as in the later variants (see `vitkern.nn.ChannelAttention`).
        named_blocks: blocks of a pair are called ``spatial_block`` and ``channel_block``, not 0 and 1.
        drop_rate: dropout before the head. drop_path_rate: DropPath of the last block; it grows linearly from 0.
        num_classes: logits; 0 gives the pooled features.
        global_pool: "avg", "max", "avgmax", or "" for logits of every token.

    Raises:
        ValueError: arguments that do not fit each other.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        depths: tuple[int, ...] = (1, 1, 3, 1),
        embed_dims: tuple[int, ...] = (96, 192, 384, 768),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int | tuple[int, int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        mlp_layer: str = "mlp",
        norm_eps: float = 1e-5,
        down_kernel_size: int = 2,
        channel_attn_v2: bool = False,
        named_blocks: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        num_classes: int = 1000,
        global_pool: str = "avg",
    ) -> None:
        lists = dict(depths=depths, num_heads=num_heads)
        super().__init__(img_size, in_chans, num_classes, global_pool, "stages.{}", 4, embed_dims, **lists)
        self.stem = Stem(in_chans, embed_dims[0], norm_eps)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        channels: dict[str, Any] = dict(value="v", dynamic_scale=True) if channel_attn_v2 else {}
        stages = []
        for index, (dim, heads) in enumerate(zip(embed_dims, num_heads, strict=True)):
            pairs: list[nn.Module] = []
            for rate in [next(rates) for _ in range(depths[index])]:
                windowed = WindowAttention(dim, heads, window_size, rel_pos=False, qkv_bias=qkv_bias)
                between = ChannelAttention(dim, heads, qkv_bias=qkv_bias, **channels)
                mlps = [build_mlp(mlp_layer, dim, int(dim * mlp_ratio)) for _ in range(2)]
                spatial = SpatialBlock(dim, windowed, mlps[0], rate, norm_eps)
                blocks = spatial, ChannelBlock(dim, between, mlps[1], rate, norm_eps)
                names = ("spatial_block", "channel_block") if named_blocks else ("0", "1")
                pairs.append(nn.Sequential(OrderedDict(zip(names, blocks, strict=True))))
            before = Downsample(embed_dims[index - 1], dim, down_kernel_size, norm_eps) if index else nn.Identity()
            stages.append(Stage(before, pairs))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Identity()
        head_norm = LayerNorm(self.num_features, eps=norm_eps)
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate, head_norm)
        self.apply(init_linear)

    @property
    def embeddings(self) -> list[ConvEmbed]:
        """None that an image could be too small for."""
        return []

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (map of the last stage (B, C, img_h, img_w), those of stages in ``taken``)."""
        return self.walk(self.stages, self.stem(self.check(x)).permute(0, 3, 1, 2), taken, stop_early)

    def as_map(self, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor | None]:
        """(B, C, img_h, img_w) as it is."""
        return x, None

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        return self.head(x.permute(0, 2, 3, 1), pre_logits=pre_logits)


def _size(dim: int, depths: tuple[int, ...]) -> dict[str, Any]:
    """Heads of 32 channels."""
    return dict(
        embed_dims=tuple(dim << index for index in range(4)),
        num_heads=tuple(dim // 32 << index for index in range(4)),
        depths=depths,
    )


DEEP = (1, 1, 9, 1)
SIZES = {
    "tiny": _size(96, (1, 1, 3, 1)),
    "small": _size(96, DEEP),
    "base": _size(128, DEEP),
    "large": _size(192, DEEP),
    "huge": _size(256, DEEP),
    "giant": _size(384, (1, 1, 12, 3)),
}
for _name, _arguments in SIZES.items():
    register(f"davit_{_name}", DaViT, PAPER, **_arguments)
# The image towers of Florence-2 (Xiao et al. 2023, arXiv 2311.06242).
LATER: dict[str, Any] = dict(
    img_size=768, window_size=12, down_kernel_size=3, channel_attn_v2=True, named_blocks=True, num_classes=0
)
for _name in ("base", "huge"):
    register(f"davit_{_name}_fl", DaViT, PAPER, **SIZES[_name], **LATER)
