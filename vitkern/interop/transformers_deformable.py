"""Deformable DETR of transformers and its descendants: points are sampled and summed, and no sample is stored."""

from torch import Tensor, nn

from vitkern.interop.adapter import Adapter, Fit
from vitkern.ops.deformable_attention import deformable_attention


class MultiScaleDeformableAttention(Adapter):
    """`transformers.models.deformable_detr.modeling_deformable_detr.MultiScaleDeformableAttention`, of whose folder ten
    others have a copy: the operator alone, what it is given is projected around it."""

    within = True

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(("deformable_attention",))

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        return deformable_attention(value, value_spatial_shapes_list, sampling_locations, attention_weights)
