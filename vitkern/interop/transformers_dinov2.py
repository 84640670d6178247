"""DINOv2 of transformers: the second half of a layer as one op, gated in the giant; attention goes through its
interface."""

from torch import Tensor, nn
from transformers import activations
from transformers.models.dinov2 import modeling_dinov2 as modeling

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.structure import like

fusion.ACTIVATIONS[activations.GELUActivation] = "gelu"
fusion.GATES[activations.SiLUActivation] = "silu"
fusion.WRAPPERS += [modeling.Dinov2MLP, modeling.Dinov2SwiGLUFFN, modeling.Dinov2LayerScale]
fusion.DROP_PATHS.append(modeling.Dinov2DropPath)


class Dinov2Layer(Adapter):
    """`transformers.models.dinov2.modeling_dinov2.Dinov2Layer`."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        parts = cls._parts(module)
        if parts is None:
            return Fit((), (f"MLP not fused: it is a {type(module.mlp).__name__}",))
        return Fit(*fusion.mlp_fit(parts))

    @staticmethod
    def _parts(layer: nn.Module) -> fusion.Mlp | None:
        mlp, scale = layer.mlp, layer.layer_scale2
        if not like(type(scale), modeling.Dinov2LayerScale):
            return None
        after = dict(wrappers=(mlp, scale), layer_scale=scale.lambda1, drop_path=layer.drop_path)
        if like(type(mlp), modeling.Dinov2MLP):
            return fusion.Mlp(layer.norm2, mlp.fc1, mlp.activation_fn, mlp.fc2, **after)
        if not like(type(mlp), modeling.Dinov2SwiGLUFFN):
            return None
        linears = mlp.gate_proj, mlp.act_fn, mlp.down_proj
        return fusion.Mlp(layer.norm2, *linears, **after, gate="pair", value=mlp.up_proj)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        mlp = self._parts(self)
        if not fusion.fits(mlp):
            return super().forward(hidden_states, attention_mask, **kwargs)
        out, _ = self.attention(self.norm1(hidden_states), attention_mask=attention_mask, **kwargs)
        return fusion.run(self.drop_path(self.layer_scale1(out)) + hidden_states, mlp)
