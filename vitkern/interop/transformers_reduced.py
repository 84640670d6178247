"""Attention of transformers to spatially reduced keys: PVT's, PVTv2's, GLPN's."""

from typing import ClassVar

from torch import Tensor, nn

from vitkern.interop.transformers_eager import Eager
from vitkern.nn.grid import as_image, as_tokens


def reduced(x: Tensor, size: tuple[int, int], reduction: nn.Module, norm: nn.Module) -> Tensor:
    """x (B, N, C), the tokens of an image of ``size`` -> keys (B, M, C)."""
    return norm(as_tokens(reduction(as_image("reduced", x, size))))


class EfficientSelfAttention(Eager):
    """Keys of an image that a strided convolution made smaller, if the ratio is above 1."""

    ratio: ClassVar[str]  # names of the ratio, and of the convolution
    reduction: ClassVar[str]

    def forward(
        self, hidden_states: Tensor, height: int, width: int, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        if output_attentions or self.closed(hidden_states):
            return super().forward(hidden_states, height, width, output_attentions)
        keys = hidden_states
        if getattr(self, self.ratio) > 1:
            keys = reduced(keys, (height, width), getattr(self, self.reduction), self.layer_norm)
        return (self.attend(hidden_states, keys),)


class PvtEfficientSelfAttention(EfficientSelfAttention):
    """`transformers.models.pvt.modeling_pvt.PvtEfficientSelfAttention`."""

    ratio, reduction = "sequences_reduction_ratio", "sequence_reduction"


class GLPNEfficientSelfAttention(EfficientSelfAttention):
    """`transformers.models.glpn.modeling_glpn.GLPNEfficientSelfAttention`, which was SegFormer's."""

    ratio, reduction = "sr_ratio", "sr"


class PvtV2SelfAttention(Eager):
    """`transformers.models.pvt_v2.modeling_pvt_v2.PvtV2SelfAttention`."""

    weights = "attn_drop"

    def forward(
        self, hidden_states: Tensor, height: int, width: int, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        if output_attentions or self.closed(hidden_states):
            return super().forward(hidden_states, height, width, output_attentions)
        keys, size = hidden_states, (height, width)
        if self.linear_attention:
            pooled = self.pool(as_image("PvtV2SelfAttention", keys, size))
            keys = self.act(self.layer_norm(as_tokens(self.spatial_reduction(pooled))))
        elif self.spatial_reduction_ratio > 1:
            keys = reduced(keys, size, self.spatial_reduction, self.layer_norm)
        return (self.proj_drop(self.proj(self.attend(hidden_states, keys))),)
