"""timm's attention between channels, DaViT's, XCiT's and EdgeNeXt's: q, k and v as the projection leaves them."""

from timm.models.davit import ChannelAttention as TimmChannelAttention
from timm.models.davit import ChannelAttentionV2 as TimmChannelAttentionV2
from timm.models.edgenext import CrossCovarianceAttn as TimmCrossCovarianceAttn
from timm.models.xcit import XCA as TimmXCA
from torch import Tensor, nn

from vitkern.dispatch import autocast, runs_kernel
from vitkern.interop.adapter import WAITS, Adapter, Fit
from vitkern.interop.timm import WATCHED
from vitkern.ops.bypass import plain
from vitkern.ops.channel_attention import channel_attention, cross_covariance_attention
from vitkern.ops.sizes import fixed


class ChannelAttention(Adapter, TimmChannelAttention):
    """`timm.models.davit.ChannelAttention`."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(("channel_attention",))

    def forward(self, x: Tensor) -> Tensor:
        qkv = _heads(self.qkv(x), self.num_heads)
        return self.proj(channel_attention(qkv, scale=self.scale).flatten(2))


class ChannelAttentionV2(Adapter, TimmChannelAttentionV2):
    """`timm.models.davit.ChannelAttentionV2`."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(("channel_attention",))

    def forward(self, x: Tensor) -> Tensor:
        qkv = _heads(self.qkv(x), self.groups)
        scale = max(1, fixed(x.shape[1])) ** -0.5 if self.dynamic_scale else self.head_dim**-0.5
        return self.proj(channel_attention(qkv, value="v", scale=scale).flatten(2))


class XCA(Adapter, TimmXCA):
    """`timm.models.xcit.XCA`; the original where it drops attention weights."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not plain(module.attn_drop, nn.Dropout):
            return WATCHED
        return Fit(("cross_covariance_attention",))

    def forward(self, x: Tensor) -> Tensor:
        if not plain(self.attn_drop, nn.Dropout) or (self.training and self.attn_drop.p > 0.0):
            return super().forward(x)
        out = cross_covariance_attention(_heads(self.qkv(x), self.num_heads), self.temperature)
        return self.proj_drop(self.proj(out.flatten(2)))


class CrossCovarianceAttn(Adapter, TimmCrossCovarianceAttn):
    """`timm.models.edgenext.CrossCovarianceAttn`; the original where it drops attention weights, or no kernel runs."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not plain(module.attn_drop, nn.Dropout):
            return WATCHED
        return Fit(("cross_covariance_attention",), (WAITS,), True)

    def forward(self, x: Tensor) -> Tensor:
        if not plain(self.attn_drop, nn.Dropout) or (self.training and self.attn_drop.p > 0.0):
            return super().forward(x)
        if not runs_kernel("cross_covariance_attention", autocast(x), operator="channel_attention"):
            return super().forward(x)
        out = cross_covariance_attention(_heads(self.qkv(x), self.num_heads), self.temperature)
        return self.proj_drop(self.proj(out.flatten(2)))


def _heads(qkv: Tensor, heads: int) -> Tensor:
    """(B, N, 3 C) -> (B, N, 3, H, D)."""
    batch, tokens, channels = qkv.shape
    return qkv.reshape(batch, tokens, 3, heads, channels // (3 * heads))
