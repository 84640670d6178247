"""Vision transformers built from `vitkern.nn`, named as in timm or by their authors: `create_model`, `list_models`."""

from vitkern.models import deit, nat, sequence, swin, swin_v2, vil, vit
from vitkern.models.convert import convert_state_dict
from vitkern.models.registry import Architecture, Description, create_model, describe, list_models, register
from vitkern.models.weights import load_weights, read_weights

__all__ = [
    "Architecture",
    "Description",
    "convert_state_dict",
    "create_model",
    "deit",
    "describe",
    "list_models",
    "load_weights",
    "nat",
    "read_weights",
    "register",
    "sequence",
    "swin",
    "swin_v2",
    "vil",
    "vit",
]
