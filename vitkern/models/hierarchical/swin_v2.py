"""Swin Transformer V2 (Liu et al. 2021, arXiv 2111.09883). Named as in `timm.models.swin_transformer_v2`."""

from collections.abc import Iterator
from typing import Any, cast

import torch.nn as nn
from torch import Tensor

from vitkern.models.hierarchical import swin
from vitkern.models.hierarchical.swin import SwinTransformer, SwinTransformerBlock, SwinTransformerStage
from vitkern.models.registry import register
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.window_attention import WindowAttentionV2

PAPER = "Swin Transformer V2: Scaling Up Capacity and Resolution, Liu et al. 2021, arXiv 2111.09883"


class SwinTransformerV2Block(SwinTransformerBlock):
    """x + norm1(attn(x)), then x + norm2(mlp(x)), with cosine attention (arXiv 2111.09883, section 3)."""

    post_norm = True
    make_attention = WindowAttentionV2

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm3: nn.Module = nn.Identity()  # on the main branch, in every sixth block of the largest models

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> the same shape."""
        return self.norm3(super().forward(x))


class SwinTransformerV2(SwinTransformer):
    """Swin with cosine attention, norms after the branches and log-spaced continuous position bias.

    Arguments are `SwinTransformer`'s, and

    Args:
        pretrained_window_sizes: for each stage the window of the pre-training, by which the position bias normalises
            offsets; 0: its own.
        extra_norm_period: a LayerNorm follows every so many blocks of a stage, on the main branch (section 3.2, for the
            huge and the giant model); 0: none does.
    """

    block = SwinTransformerV2Block

    def __init__(
        self,
        *args: Any,
        pretrained_window_sizes: tuple[int | tuple[int, int], ...] = (0, 0, 0, 0),
        extra_norm_period: int = 0,
        **kwargs: Any,
    ) -> None:
        self._pretrained_window_sizes = tuple(pretrained_window_sizes)
        super().__init__(*args, **kwargs)
        for index, stage in enumerate(cast(list[SwinTransformerStage], self.layers)):
            for number, block in enumerate(stage.blocks, 1):
                if extra_norm_period and number % extra_norm_period == 0:
                    block.norm3 = LayerNorm(self.feature_info[index]["num_chs"], eps=cast(LayerNorm, self.norm).eps)
        for block in self.modules():
            if isinstance(block, SwinTransformerV2Block):  # it starts as the identity (section 3.2)
                for norm in (block.norm1, block.norm2):
                    nn.init.zeros_(norm.weight)
                    nn.init.zeros_(norm.bias)

    def _attention_arguments(self, stage: int) -> dict:
        if stage >= len(self._pretrained_window_sizes):
            raise ValueError(
                "SwinTransformerV2: stages do not fit each other: "
                f"got pretrained_window_sizes={self._pretrained_window_sizes}; expected one entry per stage."
            )
        return {"pretrained_window_size": self._pretrained_window_sizes[stage]}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {name for name, _ in self.named_parameters() if "cpb_mlp" in name or "logit_scale" in name}


def _variants() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for size in ("tiny", "small", "base"):
        for window in (8, 16):
            yield f"swinv2_{size}_window{window}_256", size, dict(img_size=256, window_size=window)
    for size in ("base", "large"):
        yield f"swinv2_{size}_window12_192", size, dict(img_size=192, window_size=12, num_classes=21841)
        for window, pixels in ((16, 256), (24, 384)):
            arguments = dict(img_size=pixels, window_size=window, pretrained_window_sizes=(12, 12, 12, 6))
            yield f"swinv2_{size}_window12to{window}_192to{pixels}", size, arguments
    for size in ("huge", "giant"):
        yield f"swinv2_{size}_window12_192", size, dict(img_size=192, window_size=12)


SIZES = swin.SIZES | {
    "huge": dict(embed_dim=352, depths=(2, 2, 18, 2), num_heads=(11, 22, 44, 88), extra_norm_period=6),
    "giant": dict(embed_dim=512, depths=(2, 2, 42, 4), num_heads=(16, 32, 64, 128), extra_norm_period=6),
}
for _name, _size, _arguments in _variants():
    register(_name, SwinTransformerV2, PAPER, **_arguments, **SIZES[_size])
