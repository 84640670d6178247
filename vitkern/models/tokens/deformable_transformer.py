"""From images to what the decoder of Deformable DETR is given (Zhu et al. 2020, arXiv 2010.04159, section 4)."""

import math
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.resnet import ResNet
from vitkern.models.tokens.deformable_layers import Decoder, Encoder
from vitkern.models.tokens.pyramid import Pyramid
from vitkern.models.tokens.sine import sines
from vitkern.nn.deformable_attention import DeformableAttention
from vitkern.nn.layernorm import LayerNorm


class DeformableTransformer(nn.Module):
    """A pyramid of maps, an encoder of their pixels, a decoder of queries. Arguments are `DeformableDetr`'s."""

    def __init__(
        self,
        backbone: ResNet,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        depths: tuple[int, int],
        levels: int,
        points: tuple[int, int],
        num_queries: int,
        refine: bool,
        two_stage: bool,
        drop: float,
    ) -> None:
        super().__init__()
        self.num_queries, self.two_stage = num_queries, two_stage
        self.backbone = nn.ModuleDict({"model": backbone})
        found = backbone.channels[-backbone.maps :]
        inputs = [*found, found[-1], *[dim] * (levels - len(found) - 1)][:levels]
        self.input_proj = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(channels, dim, 1) if level < len(found) else nn.Conv2d(channels, dim, 3, 2, padding=1),
                    nn.GroupNorm(32, dim),
                )
                for level, channels in enumerate(inputs)
            ]
        )
        self.level_embed = nn.Parameter(torch.zeros(levels, dim))
        layer: dict[str, Any] = dict(dim=dim, num_heads=num_heads, hidden_dim=hidden_dim, levels=levels, drop=drop)
        self.encoder = Encoder(depths[0], points=points[0], **layer)
        self.decoder = Decoder(depths[1], refine, points=points[1], **layer)
        if two_stage:
            self.enc_output = nn.Linear(dim, dim)
            self.enc_output_norm = LayerNorm(dim, eps=1e-5)
            self.pos_trans = nn.Linear(2 * dim, 2 * dim)
            self.pos_trans_norm = LayerNorm(2 * dim, eps=1e-5)
        else:
            self.query_position_embeddings = nn.Embedding(num_queries, 2 * dim)
            self.reference_points = nn.Linear(dim, 2)

    def encode(self, images: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Pyramid]:
        """-> pixels of all maps (B, S, C), and where they are."""
        maps: list[Tensor] = self.backbone["model"](images)
        last = maps[-1]
        maps = [project(one) for project, one in zip(self.input_proj, maps, strict=False)]
        for project in self.input_proj[len(maps) :]:
            last = project(last)
            maps.append(last)
        pyramid = Pyramid.of(maps, pixel_mask)
        places = pyramid.positions(self.level_embed.shape[1]).split([h * w for h, w in pyramid.shapes], 1)
        position = torch.cat([place + level for place, level in zip(places, self.level_embed, strict=True)], 1)
        x = torch.cat([one.flatten(2).transpose(1, 2) for one in maps], 1)
        return self.encoder(x, position.to(x.dtype), pyramid), pyramid

    def proposals(self, memory: Tensor, maps: Pyramid, classes: nn.Module, boxes: nn.Module) -> tuple[Tensor, Tensor]:
        """What every pixel finds around itself (appendix A.4): logits (B, S, num_classes), and of boxes (B, S, 4),
        infinite where there is none."""
        at = maps.centres
        sides = [at.new_full((h * w, 2), 0.05 * 2.0**level) for level, (h, w) in enumerate(maps.shapes)]
        places = torch.cat([at, torch.cat(sides).expand(len(at), -1, -1)], -1)  # (B or 1, S, 4)
        beyond = ~((places > 0.01) & (places < 0.99)).all(-1, keepdim=True)
        if maps.padding is not None:
            beyond = beyond | maps.padding[:, :, None]
        x = self.enc_output_norm(self.enc_output(memory.masked_fill(beyond, 0.0)))
        start = (places / (1.0 - places)).log().masked_fill(beyond, math.inf)
        return classes(x), boxes(x) + start

    def queries(self, batch: int, boxes: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x and positions (B, Q, C), references (B, Q, 2), or of the proposals' logits ``boxes`` (B, Q, 4)."""
        if boxes is None:
            position, x = self.query_position_embeddings.weight.repeat(batch, 1, 1).chunk(2, 2)
            return x, position, self.reference_points(position).sigmoid()
        reference = boxes.sigmoid()
        at = sines(reference, self.level_embed.shape[1] // 2).flatten(2).to(boxes.dtype)  # (B, Q, 2 C)
        position, x = self.pos_trans_norm(self.pos_trans(at)).chunk(2, 2)
        return x, position, reference

    def init_weights(self) -> None:
        """Random weights as the authors': Xavier's, and what `DeformableAttention` starts with."""
        drawn = [self.encoder, self.decoder.layers, self.input_proj]
        drawn += [self.enc_output, self.pos_trans] if self.two_stage else [self.reference_points]
        for parameter in nn.ModuleList(drawn).parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        projections: list[Any] = [project[0] for project in self.input_proj]  # type: ignore[index]
        for layer in projections if self.two_stage else [*projections, self.reference_points]:
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.level_embed)
