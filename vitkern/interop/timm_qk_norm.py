"""Norms of queries and keys that an adapter of timm reads instead of calling them."""

from typing import Any, NamedTuple

from timm.layers import LayerNorm, RmsNorm
from torch import Tensor, nn

from vitkern.ops.bypass import may_bypass

_LAYER_NORMS, _RMS_NORMS = (nn.LayerNorm, LayerNorm), (nn.RMSNorm, RmsNorm)


class QkNorms(NamedTuple):
    """Arguments of `vitkern.ops.qk_norm_attention.qk_norm_attention`."""

    parameters: tuple[Tensor | None, ...]
    options: dict[str, Any]


def qk_norms(q_norm: nn.Module, k_norm: nn.Module) -> QkNorms | None:
    """Of two norms over the channels of a head that nobody watches; None where they have to be called."""
    if may_bypass(q_norm, *_LAYER_NORMS) and may_bypass(k_norm, *_LAYER_NORMS):
        parameters, kind = (q_norm.weight, q_norm.bias, k_norm.weight, k_norm.bias), "layernorm"
    elif may_bypass(q_norm, *_RMS_NORMS) and may_bypass(k_norm, *_RMS_NORMS):
        parameters, kind = (q_norm.weight, None, k_norm.weight, None), "rmsnorm"
    else:
        return None
    if q_norm.eps is None or q_norm.eps != k_norm.eps or len(q_norm.normalized_shape) != 1:
        return None
    if any(getattr(norm, "_fast_norm", False) for norm in (q_norm, k_norm)):
        return None
    return QkNorms(parameters, dict(norm=kind, eps=q_norm.eps))
