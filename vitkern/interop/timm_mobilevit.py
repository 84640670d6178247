"""timm's separable attention of MobileViT v2."""

from timm.models.mobilevit import LinearSelfAttention as TimmLinearSelfAttention
from torch import Tensor, nn

from vitkern.dispatch import autocast, runs_kernel
from vitkern.interop.adapter import WAITS, Adapter, Fit
from vitkern.ops.bypass import plain
from vitkern.ops.separable_attention import separable_attention


class LinearSelfAttention(Adapter, TimmLinearSelfAttention):
    """`timm.models.mobilevit.LinearSelfAttention` on its own tokens. The original runs where no kernel does, where it
    drops context scores, and for the tokens of another image."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not plain(module.attn_drop, nn.Dropout):
            return Fit((), ("attn_drop is hooked or replaced, and the op holds no context scores to give it",))
        return Fit(("separable_attention",), (WAITS,), True)

    def forward(self, x: Tensor, x_prev: Tensor | None = None) -> Tensor:
        usual = x_prev is not None or not plain(self.attn_drop, nn.Dropout)
        dropped = self.training and self.attn_drop.p > 0.0
        if usual or dropped or not runs_kernel("separable_attention", autocast(x)):
            return super().forward(x, x_prev)
        out = separable_attention(self.qkv_proj(x), patch_size=(x.shape[2], 1))
        return self.out_drop(self.out_proj(out))
