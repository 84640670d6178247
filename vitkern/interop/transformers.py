"""``attn_implementation="vitkern"`` for transformers: an attention and a mask function under one name.

`vitkern.announce` makes the name known as soon as transformers is imported. Without the mask function transformers
would drop padding masks for a name that it does not know.
"""

import torch
from torch import Tensor, nn
from transformers import masking_utils, modeling_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from vitkern import dispatch
from vitkern.announce import NAME
from vitkern.ops.attention import attention

# What models hand on to every attention function and does not change the result. The mask holds the sliding window.
HARMLESS = frozenset(
    (
        "cache_position",
        "deterministic",
        "interpolate_pos_encoding",
        "labels",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    )
)
KNOWN = frozenset(("dropout", "is_causal", "position_bias", "scaling", "softcap"))  # to every attention function


def register() -> None:
    """Make ``attn_implementation="vitkern"`` known to transformers. Done on import as well; harmless twice."""
    modeling_utils.AttentionInterface.register(NAME, attention_forward)
    masking_utils.AttentionMaskInterface.register(NAME, masking_utils.sdpa_mask)


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """The function behind ``attn_implementation="vitkern"``.

    Args:
        module: the attention module; says with ``is_causal`` (True where it has none) what ``is_causal=None`` means.
        query: (B, H, N, D). key: (B, Hk, M, D), Hk divides H. value: (B, Hk, M, Dv).
        attention_mask: broadcastable to (B, H, N, M): bool, True attends; or additive, then it may have a gradient.
        dropout: of attention weights; the caller passes 0 outside training.
        position_bias: broadcastable to (B, H, N, M), added to the scores, with a gradient.
        softcap: scores s become softcap * tanh(s / softcap) before anything is added.
        s_aux: (H,) attention sinks: one more score of each head, for a key whose value is 0.

    Where calls are recorded (`vitkern.dispatch.is_recorded`), transformers' own function for SDPA is, or the plain
    formula, where SDPA knows no caps and sinks.

    Returns:
        ((B, N, H, Dv) contiguous, attention weights (B, H, N, M) if ``output_attentions`` is given, else None).

    Raises:
        NotImplementedError: an argument that may change the result and that vitkern does not know, by name.
    """
    strangers = unknown(kwargs)
    if strangers:
        raise NotImplementedError(
            f"attention_forward: unknown arguments: got {', '.join(sorted(strangers))} from {type(module).__name__}; "
            'expected none that could change the result. Use attn_implementation="sdpa" or "eager" for this model.'
        )
    wants_weights = bool(kwargs.get("output_attentions"))
    recorded = dispatch.is_recorded(query) and not dispatch.is_forced()
    if recorded and not wants_weights and softcap is None and s_aux is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal,
            position_bias=position_bias, **kwargs,
        )  # fmt: skip
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    tokens = query.shape[2]
    causal = bool(is_causal) and attention_mask is None and tokens > 1
    if (
        causal and key.shape[2] > tokens
    ):  # an empty static cache behind the tokens: transformers aligns to the upper left
        key, value = key[:, :, :tokens], value[:, :, :tokens]
        position_bias = None if position_bias is None else position_bias[..., :tokens]
    bias, mask = position_bias, attention_mask
    if mask is not None and mask.requires_grad:
        bias, mask = (mask if bias is None else bias + mask), None
    if recorded or wants_weights:
        out, weights = _in_steps(query, key, value, bias, mask, causal, scaling, dropout, softcap, s_aux)
        return out, weights if wants_weights else None
    out = attention(
        query, key, value, bias=bias, mask=mask, causal=causal, scale=scaling, dropout_p=dropout,
        softcap=softcap, sinks=s_aux,
    )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None


def unknown(arguments: dict[str, object]) -> list[str]:
    """Names of the arguments that are given and may change the result in a way that is not known here."""
    known = HARMLESS | KNOWN
    return [name for name, given in arguments.items() if given is not None and name not in known]


def _in_steps(query, key, value, bias, mask, causal, scaling, dropout, softcap, sinks):
    """The plain formula, where the attention weights are asked for, or calls are recorded that SDPA cannot do."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)), -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = weights.masked_fill(scores.amax(-1, keepdim=True) == float("-inf"), 0.0)  # nothing to attend to
    weights = weights if sinks is None else weights[..., :-1]
    weights = torch.dropout(weights, dropout, train=dropout > 0.0)
    return (weights @ value).transpose(1, 2).contiguous(), weights


register()
