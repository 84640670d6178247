"""Deformable DETR (Zhu et al. 2020, arXiv 2010.04159): boxes and classes from an image. Named as in transformers."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.backbone import Checkpointed
from vitkern.models.registry import register
from vitkern.models.resnet import ResNet
from vitkern.models.tokens.deformable_transformer import DeformableTransformer

PAPER = "Deformable DETR: Deformable Transformers for End-to-End Object Detection, Zhu et al. 2020, arXiv 2010.04159"


class Detections(NamedTuple):
    """What a detector says of B images, in Q boxes each.

    logits: (B, Q, num_classes), of a sigmoid each. boxes: (B, Q, 4), x and y of the centre, width, height, in sizes of
    the image. earlier: logits and boxes of the decoder's layers before the last, in training. proposals: those of every
    pixel of the encoder, of a detector of two stages; logits of class 0 say whether there is anything.
    """

    logits: Tensor
    boxes: Tensor
    earlier: list[tuple[Tensor, Tensor]]
    proposals: tuple[Tensor, Tensor] | None


class BoxHead(nn.Module):
    """A perceptron of three layers from a query to a box."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, out) for out in (dim, dim, 4)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., 4)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class DeformableDetr(Checkpointed):
    """ResNet, deformable encoder, decoder of queries that give a box and its class each.

    Args:
        num_classes: logits of a box; of COCO 91, the largest number that it has for a class, and one.
        in_chans: channels of the image.
        num_queries: boxes Q.
        embed_dim: channels C, a multiple of 32 and of ``num_heads``.
        num_heads: H. hidden_dim: of the FFNs.
        depths: layers of encoder and decoder. points: that each head looks at in each map, in either.
        levels: maps; 1: the backbone's last alone, else its last three and such as convolutions of stride 2 make of it.
        with_box_refine: each layer of the decoder looks where the one before has placed the box.
        two_stage: queries are the best of what the encoder's pixels propose; with ``with_box_refine``.
        dilated: the backbone's last map is as large as the one before (DC5).
        backbone_depths, backbone_width: of `ResNet`; its stem and first stage are not trained.
        drop_rate: dropout in training.

    Raises:
        ValueError: two stages without refinement, channels that do not split, or levels of another number.
    """

    hub_ids: ClassVar = {
        name: f"SenseTime/{name.replace('_', '-')}"
        for name in (
            "deformable_detr",
            "deformable_detr_single_scale",
            "deformable_detr_single_scale_dc5",
            "deformable_detr_with_box_refine",
            "deformable_detr_with_box_refine_two_stage",
        )
    }

    def __init__(
        self,
        num_classes: int = 91,
        in_chans: int = 3,
        num_queries: int = 300,
        embed_dim: int = 256,
        num_heads: int = 8,
        hidden_dim: int = 1024,
        depths: tuple[int, int] = (6, 6),
        points: tuple[int, int] = (4, 4),
        levels: int = 4,
        with_box_refine: bool = False,
        two_stage: bool = False,
        dilated: bool = False,
        backbone_depths: Sequence[int] = (3, 4, 6, 3),
        backbone_width: int = 64,
        drop_rate: float = 0.1,
    ) -> None:
        super().__init__()
        if two_stage and not with_box_refine:
            raise ValueError(
                "DeformableDetr: proposals are boxes to be refined: got two_stage=True, with_box_refine=False; "
                "expected both."
            )
        if embed_dim % 32 or levels < 1 or levels == 2:
            raise ValueError(
                f"DeformableDetr: maps do not fit: got embed_dim={embed_dim}, levels={levels}; expected a multiple of "
                "32, which the groups of their norms are, and 1, 3 or more levels."
            )
        self.num_classes, self.num_features, self.in_chans = num_classes, embed_dim, in_chans
        maps = min(levels, 3)
        backbone = ResNet(backbone_depths, backbone_width, in_chans, maps=maps, dilated=dilated)
        for frozen in (backbone.conv1, backbone.stages[0]):
            frozen.requires_grad_(False)
        self.model = DeformableTransformer(
            backbone, embed_dim, num_heads, hidden_dim, depths, levels, points, num_queries, with_box_refine, two_stage,
            drop_rate,
        )  # fmt: skip
        heads = depths[1] + two_stage  # the last is that of the proposals
        if with_box_refine:
            self.class_embed = nn.ModuleList([nn.Linear(embed_dim, num_classes) for _ in range(heads)])
            self.bbox_embed = nn.ModuleList([BoxHead(embed_dim) for _ in range(heads)])
            self.model.decoder.bbox_embed = self.bbox_embed  # transformers has them under both names
            if two_stage:
                self.model.decoder.class_embed = self.class_embed
        else:
            self.class_embed = nn.ModuleList([nn.Linear(embed_dim, num_classes)] * heads)
            self.bbox_embed = nn.ModuleList([BoxHead(embed_dim)] * heads)
        self.init_weights()

    def init_weights(self) -> None:
        """Random weights as the authors': classes that are rare, boxes that are where their queries look."""
        self.model.init_weights()
        heads: Any = zip(self.class_embed, self.bbox_embed, strict=True)
        for index, (classes, boxes) in enumerate(heads):
            last = boxes.layers[-1]
            nn.init.constant_(classes.bias, -math.log(99.0))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            if index == 0 and not self.model.two_stage:
                nn.init.constant_(last.bias[2:], -2.0)

    def forward(self, images: Tensor, pixel_mask: Tensor | None = None) -> Detections:
        """Images (B, in_chans, height, width) of any size -> boxes and their classes.

        ``pixel_mask`` (B, height, width) is True, or 1, where the batch is image, False where it is padding at the
        right and the bottom of a smaller one; None: there is none.

        Raises:
            ValueError: no batch of images, a mask of another size, or fewer pixels of maps than queries, of a detector
                of two stages.
        """
        self._check(images, pixel_mask)
        model, heads = self.model, self.bbox_embed
        memory, maps = model.encode(images, pixel_mask)
        proposals = best = None
        if model.two_stage:
            logits, places = model.proposals(memory, maps, self.class_embed[-1], heads[-1])
            proposals, best = (logits, places.sigmoid()), self._best(logits, places)
        x, position, reference = model.queries(len(images), best)
        layers = model.decoder(x, position, reference, memory, maps, heads)
        classes = list(self.class_embed)[: len(model.decoder.layers)][-len(layers) :]
        *earlier, (logits, boxes) = [(head(x), boxes) for head, (x, boxes) in zip(classes, layers, strict=True)]
        return Detections(logits, boxes, earlier if self.training else [], proposals)

    def _best(self, logits: Tensor, places: Tensor) -> Tensor:
        """Of S proposals (B, S, ...) the places of the likeliest Q (B, Q, 4), without a gradient."""
        count = self.model.num_queries
        if logits.shape[1] < count:
            raise ValueError(
                f"DeformableDetr: there are fewer places than queries: got {logits.shape[1]} pixels of maps for "
                f"{count} queries; expected as many. Take larger images, or build the model with num_queries=."
            )
        at = logits[:, :, 0].topk(count, dim=1).indices[:, :, None]  # (B, Q, 1)
        return places.detach().gather(1, at.expand(-1, -1, 4))

    def _check(self, images: Tensor, pixel_mask: Tensor | None) -> None:
        channels = self.input_size[0]
        if images.dim() != 4 or images.shape[1] != channels or 0 in images.shape[2:]:
            raise ValueError(
                f"DeformableDetr: not a batch of images: got shape {tuple(images.shape)}; expected (B, {channels}, "
                "height, width) of any size."
            )
        if pixel_mask is not None and pixel_mask.shape != images[:, 0].shape:
            raise ValueError(
                f"DeformableDetr: the mask does not belong to the images: got {tuple(pixel_mask.shape)} for "
                f"{tuple(images.shape)}; expected (B, height, width)."
            )

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training: none, as the authors train it."""
        return set()

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the largest image that it is published for."""
        return self.in_chans, 800, 1333

    @property
    def input_rule(self) -> str:
        """What the model takes, on one line."""
        return f"image {self.input_size[0]} x height x width of any size, published for 800 pixels of the shorter side"

    def example_inputs(self, batch: int = 1) -> tuple[Tensor, ...]:
        """Inputs that the model takes, where its parameters are."""
        like = self.model.level_embed
        return (torch.zeros(batch, *self.input_size, device=like.device, dtype=like.dtype),)


VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "_single_scale": dict(levels=1),
    "_single_scale_dc5": dict(levels=1, dilated=True),
    "_with_box_refine": dict(with_box_refine=True),
    "_with_box_refine_two_stage": dict(with_box_refine=True, two_stage=True),
}
for _name, _arguments in VARIANTS.items():
    register(f"deformable_detr{_name}", DeformableDetr, PAPER, **_arguments)
