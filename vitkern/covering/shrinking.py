"""Small configurations of transformers, and small arguments for the forward of its models: by the names of fields."""

import dataclasses
import inspect
from typing import Any

import torch
from torch import nn

from vitkern.covering.family import BATCH, pictures

WORDS, TOKENS = 96, 9  # of a vocabulary, and of a text
# Fields that are one number.
SIZES: dict[str, Any] = dict(
    hidden_size=32,
    embed_dim=32,
    d_model=32,
    dim=32,
    num_hidden_layers=2,
    num_layers=2,
    depth=2,
    encoder_layers=2,
    decoder_layers=2,
    num_attention_heads=2,
    num_heads=2,
    attention_heads=2,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
    attention_head_dim=16,
    intermediate_size=64,
    mlp_dim=64,
    encoder_ffn_dim=64,
    decoder_ffn_dim=64,
    ffn_dim=64,
    projection_dim=16,
    projection_size=16,
    vocab_size=WORDS,
    max_position_embeddings=64,
    image_size=32,
    patch_size=8,
    num_labels=5,
    num_frames=4,
    num_queries=6,
    num_experts=2,
    num_local_experts=2,
    n_routed_experts=2,
    num_experts_per_tok=1,
    moe_intermediate_size=32,
)
DEEP = ("depths", "layers", "num_blocks")  # lists of numbers of blocks
WIDE = ("hidden_sizes", "embed_dims", "embed_dim", "dims", "encoder_hidden_sizes", "neck_hidden_sizes", "widths")
IDENTITIES = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def shrunk(kind: Any, **changes: Any) -> dict[str, Any]:
    """The options that make ``kind``, a class of configurations, small; ``changes`` go before them, those of inner
    configurations as dictionaries."""
    options: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        small = _small(field.name, _default(field))
        if small is not None:
            options[field.name] = small
    for name, inner in getattr(kind, "sub_configs", {}).items():
        change = changes.pop(name, {})
        if isinstance(change, dict) and "model_type" in change:
            inner = type(_auto(change["model_type"]))
            change = {key: value for key, value in change.items() if key != "model_type"}
        elif inner.__name__ == "AutoConfig":
            inner = type(getattr(kind(), name, None))
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            options[name] = {"model_type": getattr(inner, "model_type", ""), **shrunk(inner, **change)}
    return {**options, **changes}


def _auto(model_type: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type)


def _default(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _small(name: str, default: Any) -> Any:
    if isinstance(default, list | tuple) and default and all(isinstance(each, int) for each in default):
        if name in DEEP:
            return [1] * len(default)
        if name in WIDE:
            return [max(8, each // 4) for each in default]
        if name in ("image_size", "patch_size"):
            return [SIZES[name]] * len(default)
        return None
    if isinstance(default, int) and not isinstance(default, bool):
        if name in IDENTITIES:
            return default if default < WORDS else 1
        return SIZES.get(name)
    return None


def arguments(model: nn.Module, size: int, given: dict[str, Any]) -> dict[str, Any]:
    """Images, text, or both, as the forward of ``model`` names them. Of ``given`` a tuple is the shape of noise,
    a list a tensor's numbers, and None leaves an argument out."""
    names = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(2)
    made: dict[str, Any] = {}
    if "pixel_values" in names:
        made["pixel_values"] = pictures(size)
    if "input_ids" in names:
        made["input_ids"] = torch.randint(3, WORDS - 8, (BATCH, TOKENS), generator=generator)
        if "attention_mask" in names:
            made["attention_mask"] = torch.ones(BATCH, TOKENS, dtype=torch.long)
    for name, value in given.items():
        if isinstance(value, tuple):
            value = torch.randn(value, generator=generator)
        made[name] = torch.tensor(value) if isinstance(value, list) else value
    return {name: value for name, value in made.items() if value is not None}
