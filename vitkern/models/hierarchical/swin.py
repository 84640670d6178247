"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030). Parameters are named as in `timm.models.swin_transformer`."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Checkpointed, PooledBackbone
from vitkern.models.head import ClassifierHead, init_linear
from vitkern.models.mlp import build_mlp
from vitkern.models.registry import register
from vitkern.nn.embed import PatchEmbed, PatchMerging, pair
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.layers import DropPath, drop_path_rates
from vitkern.nn.window_attention import WindowAttention

PAPER = "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, Liu et al. 2021, arXiv 2103.14030"


def fit_window(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(window, shift) for a grid: in each direction a window as large as the grid or larger becomes it, unshifted."""
    fitted = min(grid[0], window[0]), min(grid[1], window[1])
    offset = (0 if grid[0] <= fitted[0] else shift[0]), (0 if grid[1] <= fitted[1] else shift[1])
    return fitted, offset


class SwinTransformerBlock(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), attention in shifted windows (arXiv 2103.14030, equation 3)."""

    post_norm = False
    make_attention: Callable[..., nn.Module] = WindowAttention

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: tuple[int, int],
        shift_size: tuple[int, int],
        mlp_ratio: float = 4.0,
        *,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        mlp_layer: str = "mlp",
        eps: float = 1e-5,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.attn = self.make_attention(dim, num_heads, window_size, shift_size, proj_drop=proj_drop, **attention)
        self.norm1 = LayerNorm(dim, eps=eps)
        self.drop_path1 = DropPath(drop_path)
        self.mlp = build_mlp(mlp_layer, dim, int(dim * mlp_ratio), drop=proj_drop)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> the same shape."""
        branch = self.norm1(self.attn(x)) if self.post_norm else self.attn(self.norm1(x))
        return mlp_residual(
            x + self.drop_path1(branch), self.norm2, self.mlp, self.drop_path2, post_norm=self.post_norm
        )


class SwinTransformerStage(Checkpointed):
    """Patch merging in all stages but the first, then blocks whose windows are shifted in every second one."""

    def __init__(
        self, dim: int, out_dim: int, blocks: Sequence[nn.Module], *, downsample: bool, post_norm: bool, eps: float
    ) -> None:
        super().__init__()
        self.downsample = PatchMerging(dim, out_dim, post_norm=post_norm, eps=eps) if downsample else nn.Identity()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, dim) -> (B, img_h', img_w', out_dim), half as high and wide, rounded up, if it merges."""
        x = self.downsample(x)
        for block in self.blocks:
            x = self.run(block, x)
        return x


class SwinTransformer(PooledBackbone):
    """Four stages of windowed blocks on grids of 1/4, 1/8, 1/16, 1/32 of the image, then mean pooling and a head.

    Args:
        img_size: pixels, one number or (height, width); the grid need not be a multiple of the window.
        patch_size: pixels.
        in_chans: channels of the image.
        num_classes: logits; 0 gives the pooled features.
        global_pool: "avg", "max", "avgmax", or "" for logits of every token.
        embed_dim: channels of the first stage; each stage doubles them.
        depths, num_heads: blocks and heads of each stage.
        window_size: tokens: one number, (height, width), or one of either per stage. It shrinks to the grid where the
            grid is smaller.
        always_partition: keep window and shift even where the grid is smaller.
        dynamic_img_size: take images of other sizes, with the windows fitted to ``img_size``.
        mlp_ratio: hidden channels of an MLP over C. qkv_bias: biases of the q, k, v projections.
        wrap: "image" as timm, "padded" as transformers and torchvision; they differ where windows do not divide the
            grid.
        drop_rate, proj_drop_rate, attn_drop_rate: dropout before the head, of projections and MLPs, of attention
            weights. drop_path_rate: DropPath of the last block; it grows linearly from 0.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`.
        eps: of every LayerNorm.

    Raises:
        ValueError: arguments that do not fit each other.
    """

    block = SwinTransformerBlock

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int | tuple = 7,
        always_partition: bool = False,
        dynamic_img_size: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        wrap: str = "image",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        mlp_layer: str = "mlp",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        stages = len(depths)
        self.num_classes, self.global_pool, self.embed_dim = num_classes, global_pool, embed_dim
        self.num_features = embed_dim * 2 ** (stages - 1)
        self.patch_embed = PatchEmbed(
            img_size, patch_size, in_chans, embed_dim, norm_eps=eps, strict_img_size=not dynamic_img_size
        )
        grid, dim = self.patch_embed.grid_size, embed_dim
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        layers = []
        for index, window in enumerate(self._stage_windows(window_size, depths, num_heads)):
            out_dim = embed_dim * 2**index
            if index:
                grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
            blocks = []
            for number in range(depths[index]):
                shift = (window[0] // 2, window[1] // 2) if number % 2 else (0, 0)
                fitted = (window, shift) if always_partition else fit_window(grid, window, shift)
                attention = dict(
                    qkv_bias=qkv_bias, wrap=wrap, attn_drop=attn_drop_rate, **self._attention_arguments(index)
                )
                blocks.append(
                    self.block(
                        out_dim,
                        num_heads[index],
                        *fitted,
                        mlp_ratio,
                        proj_drop=proj_drop_rate,
                        drop_path=next(rates),
                        mlp_layer=mlp_layer,
                        eps=eps,
                        **attention,
                    )
                )
            layers.append(
                SwinTransformerStage(
                    dim, out_dim, blocks, downsample=index > 0, post_norm=self.block.post_norm, eps=eps
                )
            )
            dim = out_dim
        self.layers = nn.Sequential(*layers)
        self.feature_info = [
            dict(
                num_chs=embed_dim * 2**index,
                reduction=max(self.patch_embed.patch_size) * 2**index,
                module=f"layers.{index}",
            )
            for index in range(stages)
        ]
        self.norm = LayerNorm(self.num_features, eps=eps)
        self.head = ClassifierHead(self.num_features, num_classes, global_pool, drop_rate)
        self.apply(init_linear)

    def _stage_windows(
        self,
        window_size: Any,
        depths: Sequence[int],
        num_heads: Sequence[int],
    ) -> list[tuple[int, int]]:
        """One (height, width) per stage."""
        stages = len(depths)
        if isinstance(window_size, int) or (
            len(window_size) == 2 and all(isinstance(size, int) for size in window_size)
        ):
            window_size = [window_size] * stages
        windows = [pair(size) for size in window_size]
        if not len(windows) == len(num_heads) == stages or min(map(min, windows)) < 1:
            raise ValueError(
                f"{type(self).__name__}: stages do not fit each other: got depths={tuple(depths)}, "
                f"num_heads={tuple(num_heads)}, window_size={windows}; expected one positive entry per stage in each."
            )
        return windows

    def _attention_arguments(self, stage: int) -> dict:
        return {}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {name for name, _ in self.named_parameters() if "relative_position_bias_table" in name}

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (tokens of the last stage before the norm (B, img_h, img_w, C), those of stages in ``taken``)."""
        return self.walk(self.layers, self.patch_embed(x), taken, stop_early)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        return self.head(x, pre_logits=pre_logits)


SIZES = {
    "tiny": dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "small": dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "base": dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "large": dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}

for _size, _arguments in SIZES.items():
    register(f"swin_{_size}_patch4_window7_224", SwinTransformer, PAPER, img_size=224, window_size=7, **_arguments)
for _size in ("base", "large"):
    register(f"swin_{_size}_patch4_window12_384", SwinTransformer, PAPER, img_size=384, window_size=12, **SIZES[_size])
