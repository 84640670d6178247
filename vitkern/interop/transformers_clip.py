"""CLIP and SigLIP of transformers, whose layers 30 folders have, and VideoMAE's layer: the second half as one op;
attention goes through its interface."""

from torch import Tensor, nn
from transformers.models.videomae import modeling_videomae
from transformers.models.vit import modeling_vit

import vitkern.interop.transformers_swin  # noqa: F401  makes activations and parts of MLPs known
from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.structure import like

fusion.WRAPPERS.append(modeling_videomae.VideoMAEOutput)  # the residual is added in it


class EncoderLayer(Adapter):
    """`transformers.models.clip.modeling_clip.CLIPEncoderLayer`, and SigLIP's."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*fusion.fit_of(cls.parts(module), module.mlp))

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp | None:
        """The second half of the layer; None where its MLP is of another kind."""
        if not like(type(layer.mlp), modeling_vit.ViTMLP):
            return None
        mlp = layer.mlp
        return fusion.Mlp(layer.layer_norm2, mlp.fc1, mlp.activation_fn, mlp.fc2, (), (mlp,))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, **kwargs) -> Tensor:
        mlp = self.parts(self)
        if not fusion.fits(mlp):
            return super().forward(hidden_states, attention_mask, **kwargs)
        normed = self.layer_norm1(hidden_states)
        out, _ = self.self_attn(hidden_states=normed, attention_mask=attention_mask, **kwargs)
        return fusion.run(hidden_states + out, mlp)


class VideoMAELayer(Adapter):
    """`transformers.models.videomae.modeling_videomae.VideoMAELayer`."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*fusion.mlp_fit(cls.parts(module)))

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp:
        """The second half of the layer."""
        inner, output = layer.intermediate, layer.output
        linears = inner.dense, inner.intermediate_act_fn, output.dense
        return fusion.Mlp(layer.layernorm_after, *linears, (output.dropout,), (inner, output))

    def forward(self, hidden_states: Tensor, **kwargs) -> Tensor:
        mlp = self.parts(self)
        if not fusion.fits(mlp):
            return super().forward(hidden_states, **kwargs)
        return fusion.run(self.attention(self.layernorm_before(hidden_states), **kwargs) + hidden_states, mlp)
