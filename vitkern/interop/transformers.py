"""``attn_implementation="vitkern"`` for transformers: an attention and a mask function under one name.

Importing this module registers both. Without the mask function transformers would drop padding masks for a name that
it does not know.
"""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vitkern import dispatch
from vitkern.interop.adapter import ADAPTERS, Adapter, path_of
from vitkern.interop.report import Kept, Report, Swapped
from vitkern.ops.attention import attention

NAME = "vitkern"

# What models hand on to every attention function and does not change the result.
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
        "use_cache",
    )
)


def register() -> None:
    """Make ``attn_implementation="vitkern"`` known to transformers. Done on import as well; harmless twice."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


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
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """The function behind ``attn_implementation="vitkern"``.

    Args:
        module: the attention module; says with ``is_causal`` (True where it has none) what ``is_causal=None`` means.
        query: (B, H, N, D). key, value: (B, Hk, M, D), Hk divides H.
        attention_mask: broadcastable to (B, H, N, M): bool, True attends; or additive, then it may have a gradient.
        dropout: of attention weights; the caller passes 0 outside training.
        position_bias: broadcastable to (B, H, N, M), added to the scores, with a gradient.

    Where calls are recorded (`vitkern.dispatch.is_recorded`), transformers' own function for SDPA is.

    Returns:
        ((B, N, H, D) contiguous, attention weights (B, H, N, M) if ``output_attentions`` is given, else None).

    Raises:
        NotImplementedError: an argument that may change the result and that vitkern does not know, by name.
    """
    unknown = [name for name, given in kwargs.items() if given is not None and name not in HARMLESS]
    if unknown:
        raise NotImplementedError(
            f"attention_forward: unknown arguments: got {', '.join(sorted(unknown))} from {type(module).__name__}; "
            'expected none that could change the result. Use attn_implementation="sdpa" or "eager" for this model.'
        )
    if dispatch.is_recorded(query) and not (dispatch.is_forced() or kwargs.get("output_attentions")):
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
    if kwargs.get("output_attentions"):
        return _with_weights(query, key, value, bias, mask, causal, scaling, dropout)
    out = attention(query, key, value, bias=bias, mask=mask, causal=causal, scale=scaling, dropout_p=dropout)
    return out.transpose(1, 2).contiguous(), None


def _with_weights(query, key, value, bias, mask, causal, scaling, dropout):
    """The plain formula, for callers that ask for the attention weights."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if causal:
        scores = scores.masked_fill(scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = torch.dropout(weights, dropout, train=dropout > 0.0)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def set_attention(model: nn.Module, allowed, report: Report) -> None:
    """Give each outermost model of transformers inside ``model`` this attention function, and say so in ``report``."""
    register()
    found, outermost = False, ""
    for name, module in model.named_modules():
        if not isinstance(module, PreTrainedModel) or (found and name.startswith(outermost)):
            continue
        found, outermost = True, f"{name}." if name else ""
        reason = _reason_to_keep(module, name, allowed)
        if reason is not None:
            if reason:
                report.kept.append(Kept(name, type(module), reason))
            continue
        before = {id(config): (config, config._attn_implementation) for config in _configs(module)}
        report.undo.append(lambda before=before: _put_back(before))
        module.set_attn_implementation(NAME)
        report.swapped.append(Swapped(name, type(module), (f'attention, as attn_implementation="{NAME}"',)))


def _reason_to_keep(module: PreTrainedModel, name: str, allowed) -> str | None:
    """Why a model's attention function stays; "" where that needs no word, since its layers are swapped whole."""
    if not allowed(module, name):
        return "attention function left out by only"
    if module.config._attn_implementation == NAME:
        return "attention function swapped already"
    if module.config.output_attentions:
        return "attention function kept: config.output_attentions asks for the weights"
    if not module._can_set_attn_implementation():
        known = any(path_of(type(m)) in ADAPTERS or isinstance(m, Adapter) for m in module.modules())
        return "" if known else "its attention does not go through transformers' attention interface"
    return None


def _configs(model: nn.Module):
    """Every configuration in ``model``, sub-configurations included."""
    pending = [m.config for m in model.modules() if isinstance(m, PreTrainedModel)]
    while pending:
        config = pending.pop()
        yield config
        pending += [sub for key in config.sub_configs if (sub := getattr(config, key, None)) is not None]


def _put_back(before: dict) -> None:
    for config, implementation in before.values():
        if config._attn_implementation == NAME:
            config._attn_implementation_internal = implementation


register()
