"""ViT of transformers and its copies: the second half of a layer as one op; attention goes through its interface."""

from torch import Tensor, nn
from transformers import activations
from transformers.models.vit import modeling_vit

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.structure import like

fusion.ACTIVATIONS.update(
    {
        activations.GELUActivation: "gelu",
        activations.GELUTanh: "gelu_tanh",
        activations.NewGELUActivation: "gelu_tanh",
        activations.QuickGELUActivation: "quick_gelu",
    }
)
fusion.WRAPPERS.append(modeling_vit.ViTMLP)


class ViTLayer(Adapter):
    """`transformers.models.vit.modeling_vit.ViTLayer`: norm, attention, norm, MLP, one dropout after each branch."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*fusion.fit_of(cls.parts(module), module.mlp))

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp | None:
        """The second half of the layer; None where its MLP is of another kind."""
        if not like(type(layer.mlp), modeling_vit.ViTMLP):
            return None
        mlp = layer.mlp
        return fusion.Mlp(layer.layernorm_after, mlp.fc1, mlp.activation_fn, mlp.fc2, (layer.dropout,), (mlp,))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        mlp = self.parts(self)
        if not fusion.fits(mlp):
            return super().forward(hidden_states, attention_mask, **kwargs)
        out, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
        return fusion.run(self.dropout(out) + hidden_states, mlp)
