"""timm's attention pooling: latent queries, means and maps that attend to all tokens. See
`vitkern.interop.sdpa_calls`."""

from timm.layers.attention_pool import AttentionPoolLatent as TimmAttentionPoolLatent
from timm.layers.attention_pool import AttentionPoolPrr as TimmAttentionPoolPrr
from timm.layers.attention_pool2d import AttentionPool2d as TimmAttentionPool2d
from timm.layers.attention_pool2d import RotAttentionPool2d as TimmRotAttentionPool2d
from timm.layers.other_pool import SimPool1d as TimmSimPool1d
from timm.layers.other_pool import SimPool2d as TimmSimPool2d

from vitkern.interop.sdpa_calls import Caller


class AttentionPoolLatent(Caller, TimmAttentionPoolLatent):
    """`timm.layers.attention_pool.AttentionPoolLatent`."""


class AttentionPoolPrr(Caller, TimmAttentionPoolPrr):
    """`timm.layers.attention_pool.AttentionPoolPrr`."""


class AttentionPool2d(Caller, TimmAttentionPool2d):
    """`timm.layers.attention_pool2d.AttentionPool2d`."""


class RotAttentionPool2d(Caller, TimmRotAttentionPool2d):
    """`timm.layers.attention_pool2d.RotAttentionPool2d`."""


class SimPool1d(Caller, TimmSimPool1d):
    """`timm.layers.other_pool.SimPool1d`."""


class SimPool2d(Caller, TimmSimPool2d):
    """`timm.layers.other_pool.SimPool2d`."""
