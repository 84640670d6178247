"""BEiT and Data2VecVision of transformers: attention that adds relative positions, and the MLP as one op."""

from typing import ClassVar

from torch import Tensor, nn
from transformers.models.beit import modeling_beit

import vitkern.interop.transformers_swin  # noqa: F401  makes activations and parts of MLPs known
from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.structure import like
from vitkern.interop.transformers_eager import Eager


class BeitLayer(Adapter):
    """`transformers.models.beit.modeling_beit.BeitLayer`; its attention goes through transformers' interface."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*fusion.fit_of(cls.parts(module), module.mlp))

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp | None:
        """The second half of the layer; None where its MLP is of another kind."""
        if not like(type(layer.mlp), modeling_beit.BeitMLP):
            return None
        mlp, scale = layer.mlp, layer.lambda_2
        linears = mlp.fc1, mlp.activation_fn, mlp.fc2
        after = dict(layer_scale=scale if isinstance(scale, Tensor) else None, drop_path=layer.drop_path)
        return fusion.Mlp(layer.layernorm_after, *linears, (layer.dropout,), (mlp,), **after)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
        **kwargs,
    ) -> Tensor:
        mlp = self.parts(self)
        if not fusion.fits(mlp):
            return super().forward(hidden_states, attention_mask, interpolate_pos_encoding, resolution, **kwargs)
        if self.relative_position_bias is not None:
            size = resolution[0] // self.patch_size, resolution[1] // self.patch_size
            bias = self.relative_position_bias(size, interpolate_pos_encoding, dim_size=hidden_states.shape[1])
            attention_mask = bias if attention_mask is None else bias + attention_mask
        out, _ = self.attention(self.layernorm_before(hidden_states), attention_mask=attention_mask, **kwargs)
        x = self.drop_path(self.lambda_1 * self.dropout(out)) + hidden_states
        return fusion.run(x, mlp)


class Data2VecVisionLayer(Adapter):
    """`transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionLayer`."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*fusion.mlp_fit(cls.parts(module)))

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp:
        """The second half of the layer."""
        inner, output = layer.intermediate, layer.output
        linears = inner.dense, inner.intermediate_act_fn, output.dense
        after = dict(layer_scale=layer.lambda_2, drop_path=layer.drop_path)
        return fusion.Mlp(layer.layernorm_after, *linears, (output.dropout,), (inner, output), **after)

    def forward(
        self,
        hidden_states: Tensor,
        output_attentions: bool = False,
        relative_position_bias: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
    ) -> tuple[Tensor, ...]:
        rest = output_attentions, relative_position_bias, interpolate_pos_encoding, resolution
        mlp = self.parts(self)
        if not fusion.fits(mlp):
            return super().forward(hidden_states, *rest)
        out, *weights = self.attention(self.layernorm_before(hidden_states), *rest)
        out = out if self.lambda_1 is None else self.lambda_1 * out
        return (fusion.run(self.drop_path(out) + hidden_states, mlp), *weights)


class Data2VecVisionSelfAttention(Eager):
    """`transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionSelfAttention`."""

    beside: ClassVar[tuple[None, ...]] = ()  # what stands in place of the weights

    def forward(
        self,
        hidden_states: Tensor,
        output_attentions: bool = False,
        relative_position_bias: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        resolution: tuple[int, int] | None = None,
    ) -> tuple[Tensor | None, ...]:
        rest = output_attentions, relative_position_bias, interpolate_pos_encoding, resolution
        if output_attentions or self.closed(hidden_states):
            return super().forward(hidden_states, *rest)
        out = self.attend(hidden_states, hidden_states, bias=all_of_bias(self, hidden_states, *rest[1:]))
        return out, *self.beside


class Data2VecVisionSdpaSelfAttention(Data2VecVisionSelfAttention):
    """`transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionSdpaSelfAttention`, which drops weights
    whatever its dropout module says."""

    beside = (None,)

    def closed(self, x: Tensor) -> bool:
        drops = self.training and self.config.attention_probs_dropout_prob > 0.0
        return drops or super().closed(x)


def all_of_bias(
    attn: nn.Module, x: Tensor, shared: Tensor | None, interpolate: bool, resolution: tuple[int, int] | None
) -> Tensor | None:
    """What ``attn`` adds to its scores: its own bias, the one for all layers, both or neither."""
    if not attn.has_relative_position_bias:
        return shared
    height, width = resolution
    size = height // attn.config.patch_size, width // attn.config.patch_size
    own = attn.relative_position_bias(size, interpolate, dim_size=x.shape[1])
    return own if shared is None else own + shared
