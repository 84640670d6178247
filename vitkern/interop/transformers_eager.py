"""Attention that transformers computes in steps, weights and all, beside its attention interface."""

from typing import ClassVar

from torch import Tensor, nn

from vitkern.dispatch import autocast, runs_kernel
from vitkern.interop.adapter import WAITS, Adapter, Fit
from vitkern.interop.fusion import silent
from vitkern.ops.attention import attention, attention_qkvpacked
from vitkern.ops.bypass import plain

DROPS = "attention dropout is active in training: the original runs then"


class Eager(Adapter):
    """``query``, ``key`` and ``value`` of heads of ``attention_head_size``, and a dropout of the weights. Asked for the
    weights, or where they are dropped, the original runs; where no kernel does too, if nothing is gained there."""

    weights: ClassVar[str] = "dropout"  # name of the dropout
    needs_kernel: ClassVar[bool] = True

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        dropout = getattr(module, cls.weights)
        if not plain(dropout, nn.Dropout):
            return Fit((), ("its dropout is hooked or replaced, and the op holds no weights to give it",))
        notes = (DROPS, WAITS) if dropout.p > 0.0 else (WAITS,)
        return Fit(("attention",), notes if cls.needs_kernel else notes[:-1], cls.needs_kernel)

    def closed(self, x: Tensor) -> bool:
        """Whether the original has to run: something is done to the weights, or no kernel would run."""
        if not silent(getattr(self, self.weights)):
            return True
        return self.needs_kernel and not runs_kernel("attention", autocast(x))

    def attend(self, x: Tensor, keys: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x (B, N, C) and keys (B, M, C) -> (B, N, C)."""
        size = self.attention_head_size
        q, k, v = (
            linear(tokens).unflatten(-1, (-1, size)).transpose(1, 2)  # (B, H, N or M, D)
            for linear, tokens in ((self.query, x), (self.key, keys), (self.value, keys))
        )
        if mask is not None and mask.requires_grad:
            bias, mask = (mask if bias is None else bias + mask), None
        return attention(q, k, v, mask=mask, bias=bias, scale=size**-0.5).transpose(1, 2).flatten(2)


class SelfAttention(Eager):
    """`transformers.models.flava.modeling_flava.FlavaSelfAttention`, and ViLT's and VisualBERT's, which write the same
    otherwise."""

    needs_kernel = False

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        if output_attentions or self.closed(hidden_states):
            return super().forward(hidden_states, attention_mask, output_attentions)
        return (self.attend(hidden_states, hidden_states, attention_mask),)


class MobileViTSelfAttention(Eager):
    """`transformers.models.mobilevit.modeling_mobilevit.MobileViTSelfAttention`."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return (
            super().forward(hidden_states) if self.closed(hidden_states) else self.attend(hidden_states, hidden_states)
        )


class TimesformerSelfAttention(Eager):
    """`transformers.models.timesformer.modeling_timesformer.TimesformerSelfAttention`."""

    weights = "attn_drop"

    def forward(self, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor, ...]:
        if output_attentions or self.closed(hidden_states):
            return super().forward(hidden_states, output_attentions)
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, D)
        return (attention_qkvpacked(qkv, scale=self.scale).flatten(2),)
