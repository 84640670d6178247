"""timm's attention with rotated queries and keys: EVA, DINOv3, the RoPE ViTs, the perception encoder, Qwen3's, Gemma's
and DeepSeek's towers. The module rotates, normalises and masks; see `vitkern.interop.sdpa_calls`."""

from timm.layers.attention import AttentionRope as TimmAttentionRope
from timm.models.eva import EvaAttention as TimmEvaAttention
from timm.models.gemma4_vit import Gemma4Attention as TimmGemma4Attention

from vitkern.interop.sdpa_calls import Caller


class AttentionRope(Caller, TimmAttentionRope):
    """`timm.layers.attention.AttentionRope`."""


class EvaAttention(Caller, TimmEvaAttention):
    """`timm.models.eva.EvaAttention`."""


class Gemma4Attention(Caller, TimmGemma4Attention):
    """`timm.models.gemma4_vit.Gemma4Attention`."""
