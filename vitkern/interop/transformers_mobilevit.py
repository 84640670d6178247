"""Separable attention of transformers' MobileViT v2."""

from torch import Tensor, nn

from vitkern.dispatch import autocast, runs_kernel
from vitkern.interop.adapter import WAITS, Adapter, Fit
from vitkern.interop.fusion import silent
from vitkern.ops.bypass import plain
from vitkern.ops.separable_attention import separable_attention


class MobileViTV2LinearSelfAttention(Adapter):
    """`transformers.models.mobilevitv2.modeling_mobilevitv2.MobileViTV2LinearSelfAttention`. The original runs where no
    kernel does, and where it drops context scores."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not plain(module.attn_dropout, nn.Dropout):
            return Fit((), ("its dropout is hooked or replaced, and the op holds no context scores to give it",))
        return Fit(("separable_attention",), (WAITS,), True)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not silent(self.attn_dropout) or not runs_kernel("separable_attention", autocast(hidden_states)):
            return super().forward(hidden_states)
        out = separable_attention(self.qkv_proj(hidden_states), patch_size=(hidden_states.shape[2], 1))
        return self.out_proj(out)
