"""ConViT (d'Ascoli et al. 2021, arXiv 2103.10697): the first blocks attend by content and by position, and start as
convolutions; the class token comes after them. Named as in `timm.models.convit`; the wider ConViT+ are the paper's."""

from collections.abc import Collection, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Backbone, Results
from vitkern.models.head import check_pool, init_linear
from vitkern.models.mlp import build_mlp
from vitkern.models.registry import register
from vitkern.nn.attention import Attention
from vitkern.nn.embed import PatchEmbed
from vitkern.nn.gated_positional_attention import GatedPositionalAttention
from vitkern.nn.grid import as_image
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.layers import DropPath, drop_path_rates

PAPER = "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases, d'Ascoli et al. 2021, arXiv "
PAPER += "2103.10697"


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)); ``local``: attention is gated by positions (arXiv 2103.10697,
    equation 6).

    Args:
        locality_strength: as in `vitkern.nn.GatedPositionalAttention`. Others as of `ConVit`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        local: bool = True,
        locality_strength: float = 1.0,
        qkv_bias: bool = False,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        mlp_layer: str = "mlp",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn: nn.Module
        if local:
            self.attn = GatedPositionalAttention(dim, num_heads, qkv_bias, attn_drop, proj_drop, locality_strength)
        else:
            self.attn = Attention(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.mlp = build_mlp(mlp_layer, dim, int(dim * mlp_ratio), drop=proj_drop)

    def forward(self, x: Tensor, *grid: tuple[int, int]) -> Tensor:
        """(B, N, C) -> (B, N, C). ``grid``: (img_h, img_w), of a local block."""
        x = x + self.drop_path(self.attn(self.norm1(x), *grid))
        return mlp_residual(x, self.norm2, self.mlp, self.drop_path)


class ConVit(Backbone):
    """Patches, local blocks, a class token and further blocks, a head.

    Args:
        img_size: pixels, one number or (height, width); any whole number of patches. patch_size: pixels.
        in_chans: channels of the image. num_classes: logits; 0 gives the pooled features.
        global_pool: "token" (class token), "avg" over the patches, or "" for all tokens.
        embed_dim: channels of a head, as in timm: C is ``embed_dim * num_heads``. depth: blocks. num_heads: H.
        mlp_ratio: hidden channels of an MLP over C. qkv_bias: q, k and v projections have a bias.
        local_up_to_layer: the first so many blocks are local. locality_strength: as in
            `vitkern.nn.GatedPositionalAttention`. use_pos_embed: patches have position embeddings.
        drop_rate, pos_drop_rate, proj_drop_rate, attn_drop_rate: dropout before the head, of the embedded tokens, of
            projections and MLPs, of attention weights. drop_path_rate: DropPath of the last block; it grows linearly
            from 0.
        mlp_layer: "mlp", or a gated one, see `vitkern.models.mlp.build_mlp`. eps: of every LayerNorm.

    Raises:
        ValueError: arguments that do not fit each other.
    """

    POOLS = ("token", "avg", "")

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 48,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        local_up_to_layer: int = 10,
        locality_strength: float = 1.0,
        use_pos_embed: bool = True,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mlp_layer: str = "mlp",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_pool("ConVit", global_pool, self.POOLS)
        if not 0 <= local_up_to_layer < depth:
            raise ValueError(
                f"ConVit: no block sees the class token: got local_up_to_layer={local_up_to_layer}, depth={depth}; "
                "expected 0 <= local_up_to_layer < depth."
            )
        channels = embed_dim * num_heads
        self.num_classes, self.global_pool, self.num_features = num_classes, global_pool, channels
        self.local_up_to_layer = local_up_to_layer
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches, channels)) if use_pos_embed else None
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                channels,
                num_heads,
                mlp_ratio,
                local=index < local_up_to_layer,
                locality_strength=locality_strength,
                qkv_bias=qkv_bias,
                proj_drop=proj_drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=rate,
                mlp_layer=mlp_layer,
                eps=eps,
            )
            for index, rate in enumerate(drop_path_rates(drop_path_rate, depth))
        )
        self.feature_info = [
            dict(num_chs=channels, reduction=patch_size, module=f"blocks.{index}") for index in range(depth)
        ]
        self.norm = LayerNorm(channels, eps=eps)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(channels, num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Random weights; local blocks look at a token's neighbours (arXiv 2103.10697, section 3.2)."""
        self.apply(init_linear)
        for parameter in (self.pos_embed, self.cls_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, GatedPositionalAttention):
                module.local_init()

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {"pos_embed", "cls_token"}

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (class token and patches (B, 1 + N, C), tokens after the blocks numbered in ``taken``)."""
        x = self.patch_embed(x)
        grid = x.shape[1], x.shape[2]
        x = x.flatten(1, 2)
        x = self.pos_drop(x if self.pos_embed is None else x + self.pos_embed)
        results = Results(taken, stop_early)
        for index, block in enumerate(self.blocks):
            if index == self.local_up_to_layer:
                x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
            x = self.run(block, x, grid) if index < self.local_up_to_layer else self.run(block, x)
            if results.take(index, x):
                break
        return x, results.found

    def as_map(self, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor | None]:
        """(B, N, C), after the local blocks with a class token -> ((B, C, img_h, img_w), that token or None)."""
        prefix = int(index >= self.local_up_to_layer)
        image = as_image("ConVit", x[:, prefix:], self.patch_embed.grid_of(size))
        return image, x[:, :1] if prefix else None

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As of every backbone; the class token is not trained where no block that sees it is left."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if len(self.blocks) <= self.local_up_to_layer:
            self.cls_token.requires_grad_(False)
        return taken

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        if self.global_pool:
            x = x[:, 0] if self.global_pool == "token" else x[:, 1:].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)


for _size, _heads in dict(tiny=4, small=9, base=16).items():
    register(f"convit_{_size}", ConVit, PAPER, num_heads=_heads)
    register(f"convit_{_size}_plus", ConVit, PAPER, num_heads=_heads, embed_dim=64)
