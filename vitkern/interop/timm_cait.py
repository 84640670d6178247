"""timm's CaiT: heads that talk without all scores in memory, and a class token for which no token is projected."""

from timm.models.cait import ClassAttn as TimmClassAttn
from timm.models.cait import TalkingHeadAttn as TimmTalkingHeadAttn
from torch import Tensor, nn

from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.timm import WATCHED
from vitkern.ops.bypass import plain
from vitkern.ops.class_attention import class_attention
from vitkern.ops.talking_heads_attention import talking_heads_attention


class TalkingHeadAttn(Adapter, TimmTalkingHeadAttn):
    """`timm.models.cait.TalkingHeadAttn`, attention dropout included."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not _is_plain(module):
            return Fit(
                (), ("proj_l, proj_w or attn_drop is hooked or replaced, and the op holds no weights to give it",)
            )
        return Fit(("talking_heads_attention",))

    def forward(self, x: Tensor) -> Tensor:
        if not _is_plain(self):
            return super().forward(x)
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, channels // self.num_heads)
        mixing = self.proj_l.weight, self.proj_w.weight, self.proj_l.bias, self.proj_w.bias
        dropout_p = self.attn_drop.p if self.training else 0.0
        out = talking_heads_attention(qkv, *mixing, scale=self.scale, dropout_p=dropout_p)
        return self.proj_drop(self.proj(out.flatten(2)))


class ClassAttn(Adapter, TimmClassAttn):
    """`timm.models.cait.ClassAttn`, attention dropout included."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not plain(module.attn_drop, nn.Dropout):
            return WATCHED
        return Fit(("class_attention",))

    def forward(self, x: Tensor) -> Tensor:
        if not plain(self.attn_drop, nn.Dropout):
            return super().forward(x)
        heads = self.num_heads
        q = self.q(x[:, 0]).reshape(x.shape[0], heads, 1, x.shape[-1] // heads)  # (B, H, 1, D)
        scale, dropout_p = None if self.fused_attn else self.scale, self.attn_drop.p if self.training else 0.0
        out = class_attention(q, x, self.k, self.v, scale=scale, dropout_p=dropout_p)
        return self.proj_drop(self.proj(out.flatten(2)))


def _is_plain(module: nn.Module) -> bool:
    """What mixes the weights of talking heads, and drops some, may be read."""
    return plain(module.attn_drop, nn.Dropout) and all(plain(x, nn.Linear) for x in (module.proj_l, module.proj_w))
