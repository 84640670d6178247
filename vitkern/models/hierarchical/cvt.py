"""Convolutional vision Transformer (Wu et al. 2021, arXiv 2103.15808). Named as in its authors' `cls_cvt.py`."""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Checkpointed, Results
from vitkern.models.head import init_linear
from vitkern.models.hierarchical.pyramid import Block, Pyramid
from vitkern.models.mlp import build_mlp
from vitkern.models.registry import register
from vitkern.models.tables import add_family
from vitkern.nn.convolutional_attention import ConvolutionalAttention
from vitkern.nn.embed import ConvEmbed
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layers import drop_path_rates

PAPER = "CvT: Introducing Convolutions to Vision Transformers, Wu et al. 2021, arXiv 2103.15808"


class Stage(Checkpointed):
    """A convolutional embedding, a class token if there is one, blocks."""

    cls_token: nn.Parameter | None

    def __init__(self, embed: ConvEmbed, dim: int, blocks: list[Block], drop: float, *, class_token: bool) -> None:
        super().__init__()
        self.patch_embed = embed
        token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02)) if class_token else None
        self.register_parameter("cls_token", token)
        self.pos_drop = nn.Dropout(drop)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C', img_h', img_w') -> (B, N, C), a class token first if there is one."""
        x = self.patch_embed(x)
        size, x = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = self.pos_drop(x)
        for block in self.blocks:
            x = self.run(block, x, size)
        return x


class ConvolutionalVisionTransformer(Pyramid):
    """Stages on overlapping patches, with attention whose queries, keys and values are convolutions (section 3).

    There are no position embeddings, and images of any size are taken. A tuple has one entry for each stage.

    Args:
        img_size: pixels, one number or (height, width), which `describe` names. in_chans: channels of the image.
        num_classes: logits; 0 gives the pooled features.
        global_pool: "token", the class token of the last stage, "avg" over its other tokens, or "" for all of them.
        embed_dims, depths, num_heads, mlp_ratios: channels, blocks, heads, hidden channels of an MLP over C.
        class_token: the last stage has one.
        qkv_bias: biases of the linear maps to q, k and v.
        drop_rate: dropout of embedded tokens, projections and MLPs. attn_drop_rate: of attention weights.
        drop_path_rate: DropPath of the last block; it grows linearly from 0 in the last stage, and is 0 in the others.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`.
        eps: of every LayerNorm.

    Raises:
        ValueError: arguments that do not fit each other.
    """

    POOLS = ("token", "avg", "")

    hub_ids: ClassVar = {
        **{f"cvt_{size}": f"microsoft/cvt-{size.replace('_', '-')}" for size in ("13", "13_384", "21", "21_384")},
        "cvt_w24_384": "microsoft/cvt-w24-384-22k",
    }

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: tuple[int, ...] = (64, 192, 384),
        depths: tuple[int, ...] = (1, 2, 10),
        num_heads: tuple[int, ...] = (1, 3, 6),
        mlp_ratios: tuple[float, ...] = (4.0, 4.0, 4.0),
        class_token: bool = True,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        mlp_layer: str = "mlp",
        eps: float = 1e-5,
    ) -> None:
        lists = dict(depths=depths, num_heads=num_heads, mlp_ratios=mlp_ratios)
        super().__init__(img_size, in_chans, num_classes, global_pool, "stage{}", 4, embed_dims, **lists)
        if global_pool == "token" and not class_token:
            raise ValueError(
                "ConvolutionalVisionTransformer: no token to pool: got global_pool='token', class_token=False; "
                "expected global_pool='avg'."
            )
        self.num_prefix_tokens, self.num_stages = int(class_token), len(depths)
        dropped: dict[str, Any] = dict(attn_drop=attn_drop_rate, proj_drop=drop_rate)
        for index, dim in enumerate(embed_dims):
            last = index + 1 == self.num_stages
            blocks = []
            for rate in drop_path_rates(drop_path_rate if last else 0.0, depths[index]):
                attn = ConvolutionalAttention(dim, num_heads[index], qkv_bias=qkv_bias, **dropped)
                mlp = build_mlp(mlp_layer, dim, int(dim * mlp_ratios[index]), drop=drop_rate)
                blocks.append(Block(dim, attn, mlp, rate, eps))
            kernel = (3, 2, 1) if index else (7, 4, 2)
            embed = ConvEmbed(embed_dims[index - 1] if index else in_chans, dim, *kernel, eps=eps)
            setattr(self, f"stage{index}", Stage(embed, dim, blocks, drop_rate, class_token=class_token and last))
        self.norm = LayerNorm(self.num_features, eps=eps)
        self.head_drop = nn.Identity()
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.apply(init_linear)

    @property
    def stages(self) -> list[Stage]:
        return [getattr(self, f"stage{index}") for index in range(self.num_stages)]

    @property
    def embeddings(self) -> list[ConvEmbed]:
        """Of each stage."""
        return [stage.patch_embed for stage in self.stages]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the stages after the last of ``indices``, and the norm and the head if asked; returns the indices."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self.num_stages = taken[-1] + 1
        return taken

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {name for name, _ in self.named_parameters() if name.endswith("cls_token")}

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (tokens of the last stage before the norm (B, N, C), those of stages in ``taken``)."""
        image, results = self.check(x), Results(taken, stop_early)
        size = image.shape[2], image.shape[3]
        for index, stage in enumerate(self.stages):
            x = stage(self.as_map(x, size, index - 1)[0] if index else image)
            if results.take(index, x):
                break
        return x, results.found


register("cvt_13", ConvolutionalVisionTransformer, PAPER)
register("cvt_13_384", ConvolutionalVisionTransformer, PAPER, img_size=384)
register("cvt_21", ConvolutionalVisionTransformer, PAPER, depths=(1, 4, 16))
register("cvt_21_384", ConvolutionalVisionTransformer, PAPER, img_size=384, depths=(1, 4, 16))
_WIDE: dict[str, Any] = dict(embed_dims=(192, 768, 1024), depths=(2, 2, 20), num_heads=(3, 12, 16), drop_path_rate=0.3)
register("cvt_w24_384", ConvolutionalVisionTransformer, PAPER, img_size=384, **_WIDE)

_EMBED = r"encoder\.stages\.(\d+)\.embedding\.convolution_embeddings"
_CONV = r"attention\.attention\.convolution_projection_([qkv])\w+\.convolution_projection"
add_family(
    "transformers_cvt",
    "encoder.stages.0.embedding.convolution_embeddings.projection.weight",
    r"cvt\.",
    [
        (r"encoder\.stages\.(\d+)\.cls_token", r"stage\1.cls_token"),
        (rf"{_EMBED}\.projection\.(\w+)", r"stage\1.patch_embed.proj.\2"),
        (rf"{_EMBED}\.normalization\.(\w+)", r"stage\1.patch_embed.norm.\2"),
        (r"layernorm\.(\w+)", r"norm.\1"),
        (r"classifier\.(\w+)", r"head.\1"),
    ],
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"stage\1.blocks.\2."),
    [
        (rf"{_CONV}\.convolution\.weight", r"attn.conv_proj_\1.conv.weight"),
        (rf"{_CONV}\.normalization\.(\w+)", r"attn.conv_proj_\1.bn.\2"),
        (r"attention\.attention\.projection_([qkv])\w+\.(\w+)", r"attn.proj_\1.\2"),
        (r"attention\.output\.dense\.(\w+)", r"attn.proj.\1"),
        (r"layernorm_before\.(\w+)", r"norm1.\1"),
        (r"layernorm_after\.(\w+)", r"norm2.\1"),
        (r"intermediate\.dense\.(\w+)", r"mlp.fc1.\1"),
        (r"output\.dense\.(\w+)", r"mlp.fc2.\1"),
    ],
)
