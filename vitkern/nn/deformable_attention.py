"""Multi-scale deformable attention as a module (Zhu et al., Deformable DETR, arXiv 2010.04159)."""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.ops.deformable_attention import deformable_attention


class DeformableAttention(nn.Module):
    """Sampling offsets and softmaxed weights from the query, values from the feature maps,
    `vitkern.ops.deformable_attention`, output projection; named as `MSDeformAttn` of Deformable DETR and
    `DeformableDetrMultiscaleDeformableAttention` of transformers, of which it takes weights.

    ``forward(query, reference_points, input_flatten, input_spatial_shapes, input_level_start_index,
    input_padding_mask)`` -> (B, Q, C), of query (B, Q, C) and the pixels of all levels (B, S, C), by default the query.
    Reference points (B, Q, L, 2), or of one image for all, in [0, 1]: offsets are pixels of a level; or (B, Q, L, 4),
    (x, y, width, height) of a box: offsets are halves of it over P. Spatial shapes are pairs (height, width); where
    each level starts follows from them. The mask (B, S) is True where a pixel is padding, whose value is then 0.

    Args:
        d_model: channels C.
        n_levels: feature maps L.
        n_heads: divides the channels.
        n_points: P of each head and level.

    Raises:
        ValueError: heads do not divide the channels, reference points have neither 2 nor 4 coordinates, or these or
            the spatial shapes are of another number of levels.
    """

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(
                f"DeformableAttention: heads do not divide the channels: got d_model {d_model}, n_heads {n_heads}; "
                "expected d_model a multiple of n_heads."
            )
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the paper has it (appendix A.3): each head looks its own way, each point one pixel farther."""
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        angles = torch.arange(self.n_heads, dtype=torch.float32) * (2.0 * math.pi / self.n_heads)
        ways = torch.stack([angles.cos(), angles.sin()], -1)
        ways = (ways / ways.abs().amax(-1, keepdim=True))[:, None, None]  # (H, 1, 1, 2), on the unit square
        steps = torch.arange(1, self.n_points + 1, dtype=torch.float32)[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((ways * steps).expand(-1, self.n_levels, -1, -1).flatten())

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor | None,
        input_spatial_shapes: Sequence[Sequence[int]] | Tensor,
        input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        value = self.value_proj(query if input_flatten is None else input_flatten)
        if input_padding_mask is not None:
            value = value.masked_fill(input_padding_mask[..., None], 0.0)
        points = (self.n_heads, self.n_levels, self.n_points)
        weights = self.attention_weights(query).unflatten(2, (self.n_heads, -1)).softmax(-1).unflatten(3, points[1:])
        offsets = self.sampling_offsets(query).unflatten(2, (*points, 2))
        locations = self._locations(offsets, reference_points, input_spatial_shapes)
        heads = value.unflatten(2, (self.n_heads, -1))
        return self.output_proj(deformable_attention(heads, input_spatial_shapes, locations, weights))

    def _locations(
        self, offsets: Tensor, reference_points: Tensor, spatial_shapes: Sequence[Sequence[int]] | Tensor
    ) -> Tensor:
        """offsets (B, Q, H, L, P, 2) -> locations."""
        at = reference_points[:, :, None, :, None]  # (B, Q, 1, L, 1, 2 or 4)
        if at.shape[-1] not in (2, 4):
            raise ValueError(
                "DeformableAttention: reference points are neither points nor boxes: got "
                f"{tuple(reference_points.shape)}; expected (B, Q, L, 2) or (B, Q, L, 4)."
            )
        if at.shape[3] not in (1, self.n_levels) or len(spatial_shapes) != self.n_levels:
            raise ValueError(
                f"DeformableAttention: levels differ: got reference points {tuple(reference_points.shape)} and "
                f"{len(spatial_shapes)} spatial shapes; expected L = {self.n_levels} of both. Set n_levels to the "
                "number of feature maps."
            )
        if at.shape[-1] == 2:
            return at + offsets / _widths_and_heights(spatial_shapes, offsets)[:, None]
        return at[..., :2] + offsets / self.n_points * at[..., 2:] * 0.5

    def extra_repr(self) -> str:
        return f"{self.d_model}, n_levels={self.n_levels}, n_heads={self.n_heads}, n_points={self.n_points}"


def _widths_and_heights(spatial_shapes: Sequence[Sequence[int]] | Tensor, like: Tensor) -> Tensor:
    """(L, 2). To a GPU nothing is copied, for which a CUDA graph has no place."""
    if isinstance(spatial_shapes, Tensor):
        return spatial_shapes.flip(1).to(like)
    if like.device.type == "cpu":
        return like.new_tensor([(width, height) for height, width in spatial_shapes])
    rows = [torch.cat([like.new_full((1, 1), float(size)) for size in (w, h)], 1) for h, w in spatial_shapes]
    return torch.cat(rows)
