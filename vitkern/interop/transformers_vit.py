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
        if not like(type(module.mlp), modeling_vit.ViTMLP):  # which may lack what an MLP has
            return Fit((), (f"MLP not fused: it is a {type(module.mlp).__name__}",))
        return Fit(*fusion.mlp_fit(cls.parts(module)))

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp:
        """The second half of the layer."""
        mlp = layer.mlp
        return fusion.Mlp(layer.layernorm_after, mlp.fc1, mlp.activation_fn, mlp.fc2, (layer.dropout,), (mlp,))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        if not like(type(self.mlp), modeling_vit.ViTMLP) or fusion.obstacle(self.parts(self)) is not None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        out, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
        return fusion.run(self.dropout(out) + hidden_states, self.parts(self))
