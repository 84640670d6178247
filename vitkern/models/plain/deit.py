"""DeiT (Touvron et al. 2020, arXiv 2012.12877): a ViT, with or without a distillation token. Named as in timm."""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.plain.vit import SIZES, VisionTransformer
from vitkern.models.registry import register

PAPER = (
    "Training data-efficient image transformers & distillation through attention, Touvron et al. 2020, arXiv 2012.12877"
)


class VisionTransformerDistilled(VisionTransformer):
    """A ViT with a distillation token beside the class token and a head for each (arXiv 2012.12877, section 4).

    The result is the mean of both heads, except in training with ``distilled_training = True``, where it is the pair
    (class head, distillation head). Arguments are `VisionTransformer`'s.

    Raises:
        ValueError: ``global_pool`` is not "token", or there is no class token.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.global_pool != "token" or self.reg_token is not None or self.no_embed_class:
            raise ValueError(
                "VisionTransformerDistilled: its heads read the class and the distillation token: "
                f"got global_pool={self.global_pool!r}; expected 'token', "
                "reg_tokens=0 and no_embed_class=False."
            )
        self.num_prefix_tokens = 2
        self.dist_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patch_embed.num_patches + 2, self.embed_dim))
        self.head_dist: nn.Module = (
            nn.Linear(self.embed_dim, self.num_classes) if self.num_classes > 0 else nn.Identity()
        )
        self.distilled_training = False
        self.init_weights()
        nn.init.trunc_normal_(self.dist_token, std=0.02)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return both heads' logits in training, for a distillation loss."""
        self.distilled_training = enable

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Two other heads, with random weights: for ``num_classes`` logits each (0: none)."""
        super().reset_classifier(num_classes, global_pool)
        self.head_dist = self.linear(num_classes)

    def get_classifier(self) -> nn.Module:
        """The layers that give the logits: of the class and of the distillation token."""
        return nn.ModuleList([self.head, self.head_dist])

    def _prefix_tokens(self) -> list[Tensor]:
        return [*super()._prefix_tokens(), self.dist_token]

    def forward_head(  # type: ignore[override] # the pair, for a distillation loss
        self, x: Tensor, pre_logits: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens -> logits (B, num_classes), or a pair of them while training by distillation."""
        x, x_dist = self.head_drop(x[:, 0]), self.head_drop(x[:, 1])
        if pre_logits:
            return (x + x_dist) / 2
        x, x_dist = self.head(x), self.head_dist(x_dist)
        if self.distilled_training and self.training:
            return x, x_dist
        return (x + x_dist) / 2


for _size, _pixels in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
    _arguments = dict(img_size=_pixels, patch_size=16, **SIZES[_size])
    register(f"deit_{_size}_patch16_{_pixels}", VisionTransformer, PAPER, **_arguments)
    register(f"deit_{_size}_distilled_patch16_{_pixels}", VisionTransformerDistilled, PAPER, **_arguments)
