"""Hand-written Triton kernels for vision transformers: `accelerate` a model, or build one of `list_models()`."""

import importlib
from typing import TYPE_CHECKING

from vitkern.announce import announce as _announce

__version__ = "0.1.0"

# Public name -> where it lives; imported on first use, so that `import vitkern` stays quick and touches no GPU.
_PUBLIC = {
    "accelerate": "vitkern.interop.accelerate",
    "additive_attention": "vitkern.ops.additive_attention",
    "attention": "vitkern.ops.attention",
    "attention_map": "vitkern.ops.attention_map",
    "attention_qkvpacked": "vitkern.ops.attention",
    "attention_relevance": "vitkern.ops.attention_map",
    "channel_attention": "vitkern.ops.channel_attention",
    "class_attention": "vitkern.ops.class_attention",
    "create_model": "vitkern.models.registry",
    "cross_covariance_attention": "vitkern.ops.channel_attention",
    "deformable_attention": "vitkern.ops.deformable_attention",
    "describe": "vitkern.models.registry",
    "explain": "vitkern.explaining.explanation",
    "gated_positional_attention": "vitkern.ops.gated_positional_attention",
    "layernorm": "vitkern.ops.layernorm",
    "layernorm_glu": "vitkern.ops.layernorm_glu",
    "layernorm_mlp": "vitkern.ops.layernorm_mlp",
    "local_attention": "vitkern.ops.local_attention",
    "list_models": "vitkern.models.registry",
    "load_weights": "vitkern.models.weights",
    "nadaraya_watson": "vitkern.ops.nadaraya_watson",
    "neighborhood_attention": "vitkern.ops.neighborhood_attention",
    "policy_attention": "vitkern.ops.policy_attention",
    "projected_window_attention": "vitkern.ops.window_attention",
    "qk_norm_attention": "vitkern.ops.qk_norm_attention",
    "rmsnorm": "vitkern.ops.rmsnorm",
    "separable_attention": "vitkern.ops.separable_attention",
    "talking_heads_attention": "vitkern.ops.talking_heads_attention",
    "token_mixing": "vitkern.ops.token_mixing",
    "use_backend": "vitkern.dispatch",
    "window_attention": "vitkern.ops.window_attention",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:  # the same, for type checkers and editors
    from vitkern.dispatch import use_backend as use_backend
    from vitkern.explaining.explanation import explain as explain
    from vitkern.interop.accelerate import accelerate as accelerate
    from vitkern.models.registry import create_model as create_model
    from vitkern.models.registry import describe as describe
    from vitkern.models.registry import list_models as list_models
    from vitkern.models.weights import load_weights as load_weights
    from vitkern.ops.additive_attention import additive_attention as additive_attention
    from vitkern.ops.attention import attention as attention
    from vitkern.ops.attention import attention_qkvpacked as attention_qkvpacked
    from vitkern.ops.attention_map import attention_map as attention_map
    from vitkern.ops.attention_map import attention_relevance as attention_relevance
    from vitkern.ops.channel_attention import channel_attention as channel_attention
    from vitkern.ops.channel_attention import cross_covariance_attention as cross_covariance_attention
    from vitkern.ops.class_attention import class_attention as class_attention
    from vitkern.ops.deformable_attention import deformable_attention as deformable_attention
    from vitkern.ops.gated_positional_attention import gated_positional_attention as gated_positional_attention
    from vitkern.ops.layernorm import layernorm as layernorm
    from vitkern.ops.layernorm_glu import layernorm_glu as layernorm_glu
    from vitkern.ops.layernorm_mlp import layernorm_mlp as layernorm_mlp
    from vitkern.ops.local_attention import local_attention as local_attention
    from vitkern.ops.nadaraya_watson import nadaraya_watson as nadaraya_watson
    from vitkern.ops.neighborhood_attention import neighborhood_attention as neighborhood_attention
    from vitkern.ops.policy_attention import policy_attention as policy_attention
    from vitkern.ops.qk_norm_attention import qk_norm_attention as qk_norm_attention
    from vitkern.ops.rmsnorm import rmsnorm as rmsnorm
    from vitkern.ops.separable_attention import separable_attention as separable_attention
    from vitkern.ops.talking_heads_attention import talking_heads_attention as talking_heads_attention
    from vitkern.ops.token_mixing import token_mixing as token_mixing
    from vitkern.ops.window_attention import projected_window_attention as projected_window_attention
    from vitkern.ops.window_attention import window_attention as window_attention
else:

    def __getattr__(name: str) -> object:
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value


_announce()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
