"""SAM's image encoder of transformers: windows attended to where they lie in the image, relative positions without a
bias of all pairs, and the MLP as one op."""

from torch import Tensor, nn
from transformers.models.sam import modeling_sam

import vitkern.interop.transformers_vit  # noqa: F401  makes the activations known
from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.structure import like, plain_like
from vitkern.ops.bypass import untouched
from vitkern.ops.decomposed_attention import projected_decomposed_attention

fusion.WRAPPERS.append(modeling_sam.SamMLPBlock)


class SamVisionLayer(Adapter):
    """`transformers.models.sam.modeling_sam.SamVisionLayer`. Once attention weights were asked for, its attention is
    hooked, and the original runs."""

    covers = ("attn",)

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        reason = cls.attention_obstacle(module.attn, training=False)
        if reason is not None:
            return Fit((), (f"attention kept: {reason}",))
        ops, reasons = fusion.mlp_fit(cls.parts(module))
        if cls.attention_obstacle(module.attn, training=True) is not None:
            reasons = ("attention dropout is active in training: the original layer runs then", *reasons)
        return Fit(("decomposed_attention", *ops), reasons)

    @staticmethod
    def attention_obstacle(attn: nn.Module, training: bool) -> str | None:
        """Why bypassing the attention module would change something, or None; its projections are called."""
        if not plain_like(attn, modeling_sam.SamVisionAttention, modeling_sam.SamVisionSdpaAttention):
            return "it is replaced or hooked"
        if not (untouched(attn.qkv) and untouched(attn.proj)):
            return "its qkv or proj is hooked"
        if not attn.use_rel_pos:
            return "it has no decomposed relative positions"
        drops = like(type(attn), modeling_sam.SamVisionAttention) and attn.dropout > 0.0  # the fused one never does
        return "its dropout is active" if drops and training else None

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp:
        """The second half of the layer."""
        mlp = layer.mlp
        return fusion.Mlp(layer.layer_norm2, mlp.lin1, mlp.act, mlp.lin2, (), (mlp,))

    def forward(self, hidden_states: Tensor) -> Tensor:
        attn = self.attn
        if self.attention_obstacle(attn, attn.training) is not None:
            return super().forward(hidden_states)
        out = projected_decomposed_attention(
            self.layer_norm1(hidden_states),
            attn.qkv,
            attn.rel_pos_h,
            attn.rel_pos_w,
            num_heads=attn.num_attention_heads,
            window=(self.window_size, self.window_size) if self.window_size > 0 else None,
        )
        x = fusion.residual(hidden_states, attn.proj(out), attn.proj)
        mlp = self.parts(self)
        if fusion.obstacle(mlp) is None:
            return fusion.run(x, mlp)
        return x + self.mlp(self.layer_norm2(x))
