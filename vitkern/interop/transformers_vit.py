"""ViT and DeiT of transformers: the second half of a layer as one op; attention goes through its interface."""

from torch import Tensor, nn
from transformers import activations
from transformers.models.deit import modeling_deit
from transformers.models.vit import modeling_vit

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit

fusion.ACTIVATIONS.update(
    {
        activations.GELUActivation: "gelu",
        activations.GELUTanh: "gelu_tanh",
        activations.NewGELUActivation: "gelu_tanh",
        activations.QuickGELUActivation: "quick_gelu",
    }
)
fusion.WRAPPERS += [modeling_vit.ViTMLP, modeling_deit.DeiTMLP]


class PreNormLayer(Adapter):
    """``layernorm_before``, ``attention``, ``layernorm_after``, ``mlp``, and one ``dropout`` after each branch."""

    mlp_kind: type

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if type(module.mlp) is not cls.mlp_kind:  # which may lack what an MLP has
            return Fit((), (f"MLP not fused: it is a {type(module.mlp).__name__}",))
        return Fit(*fusion.mlp_fit(cls.parts(module)))

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp:
        """The second half of the layer."""
        mlp = layer.mlp
        return fusion.Mlp(layer.layernorm_after, mlp.fc1, mlp.activation_fn, mlp.fc2, (layer.dropout,), (mlp,))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        if type(self.mlp) is not self.mlp_kind or fusion.obstacle(self.parts(self)) is not None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        out, _ = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)
        return fusion.run(self.dropout(out) + hidden_states, self.parts(self))


class ViTLayer(PreNormLayer, modeling_vit.ViTLayer):
    """`transformers.models.vit.modeling_vit.ViTLayer`."""

    mlp_kind = modeling_vit.ViTMLP


class DeiTLayer(PreNormLayer, modeling_deit.DeiTLayer):
    """`transformers.models.deit.modeling_deit.DeiTLayer`."""

    mlp_kind = modeling_deit.DeiTMLP
