"""Hand-written Triton kernels for vision transformers: `accelerate` a model, or build one of `list_models()`."""

import importlib

__version__ = "0.1.0"

# Public name -> where it lives; imported on first use, so that `import vitkern` stays quick and touches no GPU.
_PUBLIC = {
    "accelerate": "vitkern.interop.accelerate",
    "attention": "vitkern.ops.attention",
    "attention_qkvpacked": "vitkern.ops.attention",
    "create_model": "vitkern.models.registry",
    "describe": "vitkern.models.registry",
    "layernorm": "vitkern.ops.layernorm",
    "layernorm_mlp": "vitkern.ops.layernorm_mlp",
    "local_attention": "vitkern.ops.local_attention",
    "list_models": "vitkern.models.registry",
    "load_weights": "vitkern.models.weights",
    "neighborhood_attention": "vitkern.ops.neighborhood_attention",
    "projected_window_attention": "vitkern.ops.window_attention",
    "use_backend": "vitkern.dispatch",
    "window_attention": "vitkern.ops.window_attention",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
