"""Swin as transformers wrote it first, in Donut's folder, MaskFormer's and CLAP's: windows where they lie, and the MLP
as one op."""

from torch import Tensor, nn
from transformers.models.donut import modeling_donut_swin as modeling

import vitkern.interop.transformers_swin  # noqa: F401  makes the parts of its MLP known
from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.structure import plain_like
from vitkern.interop.transformers_eager import DROPS
from vitkern.ops.bypass import plain, untouched
from vitkern.ops.window_attention import projected_window_attention


class Layer(Adapter):
    """What the layers of these folders are made of."""

    covers = ("attention",)

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        ops, reasons = fusion.mlp_fit(cls.parts(module))
        if not cls.open_attention(module.attention):
            return Fit((), ("its attention is hooked or replaced", *reasons))
        return Fit(("window_attention", *ops), ((DROPS,) if module.attention.self.dropout.p > 0.0 else ()) + reasons)

    @staticmethod
    def open_attention(attention: nn.Module) -> bool:
        """Whether bypassing the attention modules changes nothing; their projections are called."""
        attn, output = attention.self, attention.output
        return (
            plain_like(attention, modeling.DonutSwinAttention)
            and plain_like(attn, modeling.DonutSwinSelfAttention)
            and plain_like(output, modeling.DonutSwinSelfOutput)
            and plain(attn.dropout, nn.Dropout)
            and all(untouched(linear) for linear in (attn.query, attn.key, attn.value, output.dense))
        )

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp:
        """The second half of the layer; it has no stochastic depth there."""
        inner, output = layer.intermediate, layer.output
        linears = inner.dense, inner.intermediate_act_fn, output.dense
        return fusion.Mlp(layer.layernorm_after, *linears, (output.dropout,), (inner, output))

    def opens(self, output_attentions: bool | None) -> bool:
        """Whether attention can be bypassed in this call."""
        attention = self.attention
        return not output_attentions and self.open_attention(attention) and fusion.silent(attention.self.dropout)

    def run(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor]:
        """x (B, N, C), the tokens of an image of ``size``, through the layer."""
        attn, output = self.attention.self, self.attention.output
        batch, tokens, channels = x.shape
        out = projected_window_attention(
            self.layernorm_before(x).view(batch, *size, channels),
            fusion.joined(x, attn.query, attn.key, attn.value),
            num_heads=attn.num_attention_heads,
            window=(self.window_size, self.window_size),
            shift=(self.shift_size, self.shift_size),
            table=attn.relative_position_bias_table,
            wrap="padded",
            scale=attn.attention_head_size**-0.5,
        )
        out = output.dropout(output.dense(out.view(batch, tokens, channels)))
        x = fusion.residual(x, self.drop_path(out), output.dense, output.dropout, self.drop_path)
        mlp = self.parts(self)
        if fusion.obstacle(mlp) is None:
            return (fusion.run(x, mlp),)
        return (x + self.output(self.intermediate(self.layernorm_after(x))),)


class DonutSwinLayer(Layer):
    """`transformers.models.donut.modeling_donut_swin.DonutSwinLayer`, and CLAP's. Asked for attention weights, the
    original runs."""

    def forward(
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        output_attentions: bool | None = False,
        always_partition: bool | None = False,
    ) -> tuple[Tensor, ...]:
        if not self.opens(output_attentions):
            return super().forward(hidden_states, input_dimensions, output_attentions, always_partition)
        if not always_partition:
            self.set_shift_and_window_size(input_dimensions)
        return self.run(hidden_states, input_dimensions)


class MaskFormerSwinLayer(Layer):
    """`transformers.models.maskformer.modeling_maskformer_swin.MaskFormerSwinLayer`, whose windows stay as they are in
    small images."""

    def forward(
        self, hidden_states: Tensor, input_dimensions: tuple[int, int], output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        if not self.opens(output_attentions):
            return super().forward(hidden_states, input_dimensions, output_attentions)
        return self.run(hidden_states, input_dimensions)
