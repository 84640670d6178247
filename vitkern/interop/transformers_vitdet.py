"""VitDet of transformers: windows attended to where they lie in the image, relative positions without a bias of all
pairs, and the MLP as one op."""

from torch import Tensor, nn
from transformers.models.vitdet import modeling_vitdet

import vitkern.interop.transformers_vit  # noqa: F401  makes the activations known
from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.structure import plain_like
from vitkern.ops.bypass import untouched
from vitkern.ops.decomposed_attention import projected_decomposed_attention

fusion.DROP_PATHS.append(modeling_vitdet.VitDetDropPath)
fusion.WRAPPERS.append(modeling_vitdet.VitDetMlp)


class VitDetLayer(Adapter):
    """`transformers.models.vitdet.modeling_vitdet.VitDetLayer`. Asked for attention weights, the original runs."""

    covers = ("attention",)

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        reason = cls.attention_obstacle(module.attention)
        if reason is not None:
            return Fit((), (f"attention kept: {reason}",))
        ops, reasons = fusion.mlp_fit(cls.parts(module))
        return Fit(("decomposed_attention", *ops), reasons)

    @staticmethod
    def attention_obstacle(attn: nn.Module) -> str | None:
        """Why bypassing the attention module would change something, or None; its projections are called."""
        if not plain_like(attn, modeling_vitdet.VitDetAttention):
            return "it is replaced or hooked"
        if not (untouched(attn.qkv) and untouched(attn.proj)):
            return "its qkv or proj is hooked"
        return None if attn.use_relative_position_embeddings else "it has no decomposed relative positions"

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp:
        """The second half of the layer."""
        mlp = layer.mlp
        return fusion.Mlp(layer.norm2, mlp.fc1, mlp.act, mlp.fc2, (mlp.drop,), (mlp,), drop_path=layer.drop_path)

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, ...]:
        attn = self.attention
        if output_attentions or self.attention_obstacle(attn) is not None:
            return super().forward(hidden_states, output_attentions)
        x = hidden_states.permute(0, 2, 3, 1)  # (B, img_h, img_w, C)
        out = projected_decomposed_attention(
            self.norm1(x),
            attn.qkv,
            attn.rel_pos_h,
            attn.rel_pos_w,
            num_heads=attn.num_heads,
            window=(self.window_size, self.window_size) if self.window_size > 0 else None,
            scale=attn.scale,
        )
        x = fusion.residual(x, self.drop_path(attn.proj(out)), attn.proj, self.drop_path)
        mlp = self.parts(self)
        if fusion.obstacle(mlp) is None:
            x = fusion.run(x, mlp)
        else:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        x = x.permute(0, 3, 1, 2)
        return (self.residual(x) if self.use_residual_block else x,)
