"""Swin and Swin V2 of transformers, which pad and then roll: windows where they lie, and the MLP as one op."""

import torch
from torch import Tensor, nn
from transformers.models.swin import modeling_swin
from transformers.models.swinv2 import modeling_swinv2

import vitkern.interop.transformers_vit  # noqa: F401  makes the activations known
from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.structure import plain_like
from vitkern.ops.bypass import plain, untouched
from vitkern.ops.window_attention import projected_window_attention

fusion.DROP_PATHS.append(modeling_swinv2.Swinv2DropPath)
fusion.WRAPPERS += [modeling_swin.SwinMLP, modeling_swinv2.Swinv2Intermediate, modeling_swinv2.Swinv2Output]

_DROPOUT_NOTE = "attention dropout is active in training, and windows have none: the original layer runs then"


class SwinLayer(Adapter):
    """`transformers.models.swin.modeling_swin.SwinLayer`. Asked for attention weights, the original runs."""

    covers = ("attention",)

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        attn = module.attention
        ops, reasons = fusion.mlp_fit(cls.parts(module))
        if not cls.open_attention(attn):
            return Fit((), ("its attention is hooked or replaced", *reasons))
        return Fit(("window_attention", *ops), ((_DROPOUT_NOTE,) if attn.attention_dropout > 0.0 else ()) + reasons)

    @staticmethod
    def open_attention(attn: nn.Module) -> bool:
        """Whether bypassing the attention module changes nothing; its projections are called."""
        return (
            plain_like(attn, modeling_swin.SwinAttention)
            and plain_like(attn.relative_position_bias, modeling_swin.SwinRelativePositionBias)
            and all(untouched(linear) for linear in (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj))
        )

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp:
        """The second half of the layer; it has no stochastic depth there."""
        mlp = layer.mlp
        return fusion.Mlp(layer.layernorm_after, mlp.fc1, mlp.activation_fn, mlp.fc2, (layer.dropout,), (mlp,))

    def forward(
        self, hidden_states: Tensor, input_dimensions: tuple[int, int], always_partition: bool = False, **kwargs
    ):
        attn = self.attention
        wants_weights = kwargs.get("output_attentions") or attn.config.output_attentions
        if wants_weights or not self.open_attention(attn) or (self.training and attn.attention_dropout > 0.0):
            return super().forward(hidden_states, input_dimensions, always_partition, **kwargs)
        if not always_partition:
            self.set_shift_and_window_size(input_dimensions)
        batch, tokens, channels = hidden_states.shape
        out = projected_window_attention(
            self.layernorm_before(hidden_states).view(batch, *input_dimensions, channels),
            fusion.joined(hidden_states, attn.q_proj, attn.k_proj, attn.v_proj),
            num_heads=attn.num_attention_heads,
            window=(self.window_size, self.window_size),
            shift=(self.shift_size, self.shift_size),
            table=attn.relative_position_bias.relative_position_bias_table,
            wrap="padded",
            scale=attn.scaling,
        )
        out = self.dropout(attn.o_proj(out.view(batch, tokens, channels)))
        x = fusion.residual(hidden_states, self.drop_path(out), attn.o_proj, self.dropout, self.drop_path)
        mlp = self.parts(self)
        if fusion.obstacle(mlp) is None:
            return fusion.run(x, mlp), None
        return self.dropout(self.mlp(self.layernorm_after(x))) + x, None


class Swinv2Layer(Adapter):
    """`transformers.models.swinv2.modeling_swinv2.Swinv2Layer`, which adds its mask twice."""

    covers = ("attention",)

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        ops, reasons = fusion.mlp_fit(cls.parts(module))
        if not cls.open_attention(module.attention):
            return Fit((), ("its attention is hooked or replaced", *reasons))
        return Fit(
            ("window_attention", *ops), ((_DROPOUT_NOTE,) if module.attention.self.dropout.p > 0.0 else ()) + reasons
        )

    @staticmethod
    def open_attention(attention: nn.Module) -> bool:
        """Whether bypassing the attention modules changes nothing; their projections are called."""
        attn, output = attention.self, attention.output
        return (
            plain_like(attention, modeling_swinv2.Swinv2Attention)
            and plain_like(attn, modeling_swinv2.Swinv2SelfAttention)
            and plain_like(output, modeling_swinv2.Swinv2SelfOutput)
            and plain(attn.dropout, nn.Dropout)
            and all(untouched(linear) for linear in (attn.query, attn.key, attn.value, output.dense))
        )

    @staticmethod
    def parts(layer: nn.Module) -> fusion.Mlp:
        """The second half of the layer."""
        inner, output = layer.intermediate, layer.output
        return fusion.Mlp(
            layer.layernorm_after,
            inner.dense,
            inner.intermediate_act_fn,
            output.dense,
            (output.dropout,),
            (inner, output),
            drop_path=layer.drop_path,
        )

    def forward(self, hidden_states: Tensor, input_dimensions: tuple[int, int], output_attentions: bool | None = False):
        attn, output = self.attention.self, self.attention.output
        if output_attentions or not self.open_attention(self.attention) or (self.training and attn.dropout.p > 0.0):
            return super().forward(hidden_states, input_dimensions, output_attentions)
        batch, tokens, channels = hidden_states.shape
        bias = 16 * torch.sigmoid(
            attn.continuous_position_bias_mlp(attn.relative_coords_table).view(-1, attn.num_attention_heads)
        )
        out = projected_window_attention(
            hidden_states.view(batch, *input_dimensions, channels),
            fusion.joined(hidden_states, attn.query, attn.key, attn.value),
            num_heads=attn.num_attention_heads,
            window=(self.window_size, self.window_size),
            shift=(self.shift_size, self.shift_size),
            table=bias,
            wrap="padded",
            mask_value=-200.0,
            logit_scale=attn.logit_scale,
        )
        out = output.dropout(output.dense(out.view(batch, tokens, channels)))
        branch = self.drop_path(self.layernorm_before(out))
        x = fusion.residual(hidden_states, branch, self.layernorm_before, self.drop_path)
        mlp = self.parts(self)
        if fusion.obstacle(mlp) is None:
            return (fusion.run(x, mlp, post_norm=True),)
        return (x + self.drop_path(self.layernorm_after(self.output(self.intermediate(x)))),)
