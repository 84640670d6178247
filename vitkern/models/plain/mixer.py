"""MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601): one perceptron mixes the tokens of each channel, another the
channels of each token. Named as in `timm.models.mlp_mixer`."""

from collections.abc import Collection
from typing import Any

import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Backbone
from vitkern.models.head import check_pool
from vitkern.models.mlp import build_mlp
from vitkern.models.registry import register
from vitkern.nn.embed import PatchEmbed
from vitkern.nn.grid import as_image
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.token_mixing import TokenMixing

PAPER = "MLP-Mixer: An all-MLP Architecture for Vision, Tolstikhin et al. 2021, arXiv 2105.01601"


class Block(TokenMixing):
    """x + mlp_tokens(norm1(x)^T)^T, then x + mlp_channels(norm2(x)) (arXiv 2105.01601, equation 1)."""

    def __init__(
        self,
        dim: int,
        num_tokens: int,
        mlp_ratio: tuple[float, float],
        *,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        mlp_layer: str = "mlp",
        eps: float = 1e-6,
    ) -> None:
        of_tokens, of_channels = (int(dim * ratio) for ratio in mlp_ratio)
        super().__init__(dim, num_tokens, of_tokens, drop=proj_drop, drop_path=drop_path, eps=eps)
        if mlp_layer != "mlp":
            self.mlp_tokens = build_mlp(mlp_layer, num_tokens, of_tokens, drop=proj_drop)  # type: ignore[assignment]
        self.norm2 = LayerNorm(dim, eps=eps)
        self.mlp_channels = build_mlp(mlp_layer, dim, of_channels, drop=proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return mlp_residual(super().forward(x), self.norm2, self.mlp_channels, self.drop_path)


class MlpMixer(Backbone):
    """Patches, ``num_blocks`` blocks, a norm, the mean of all tokens and a head.

    Args:
        num_classes: logits; 0 gives the pooled features.
        img_size: pixels, one number or (height, width); no other size is taken. patch_size: pixels.
        in_chans: channels of the image. num_blocks: their number. embed_dim: channels C.
        mlp_ratio: hidden width of the tokens' and of the channels' perceptron, both over C.
        drop_rate, proj_drop_rate: dropout before the head, and in the perceptrons. drop_path_rate: of every block.
        global_pool: "avg", or "" for all tokens.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`. eps: of every LayerNorm.

    Raises:
        ValueError: arguments that do not fit each other.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        patch_size: int = 16,
        num_blocks: int = 8,
        embed_dim: int = 512,
        mlp_ratio: tuple[float, float] = (0.5, 4.0),
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        mlp_layer: str = "mlp",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_pool("MlpMixer", global_pool, self.POOLS)
        self.num_classes, self.global_pool, self.num_features = num_classes, global_pool, embed_dim
        self.stem = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        block: dict[str, Any] = dict(proj_drop=proj_drop_rate, drop_path=drop_path_rate, mlp_layer=mlp_layer, eps=eps)
        self.blocks = nn.Sequential(
            *(Block(embed_dim, self.stem.num_patches, mlp_ratio, **block) for _ in range(num_blocks))
        )
        self.feature_info = [
            dict(num_chs=embed_dim, reduction=patch_size, module=f"blocks.{index}") for index in range(num_blocks)
        ]
        self.norm = LayerNorm(embed_dim, eps=eps)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Random weights: Glorot's for linear layers, biases of perceptrons near 0, no head."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.normal_(module.bias, std=1e-6)
            if isinstance(module, nn.Linear) and name == "head":
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the image that it takes."""
        return (self.stem.proj.in_channels, *self.stem.img_size)

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (tokens before the last norm (B, N, C), those after the blocks numbered in ``taken``)."""
        return self.walk(self.blocks, self.stem(x).flatten(1, 2), taken, stop_early)

    def as_map(self, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor | None]:
        """(B, N, C) -> ((B, C, img_h, img_w), None)."""
        return as_image("MlpMixer", x, self.stem.grid_of(size)), None

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        x = self.head_drop(x.mean(1) if self.global_pool else x)
        return x if pre_logits else self.head(x)


SIZES = {
    "s": dict(num_blocks=8, embed_dim=512),
    "b": dict(num_blocks=12, embed_dim=768),
    "l": dict(num_blocks=24, embed_dim=1024),
    "h": dict(num_blocks=32, embed_dim=1280),
}
for _variant in ("s32", "s16", "b32", "b16", "l32", "l16", "h14"):
    register(f"mixer_{_variant}_224", MlpMixer, PAPER, patch_size=int(_variant[1:]), **SIZES[_variant[0]])
