"""Vision transformers built from `vitkern.nn`, under timm's names: `create_model`, `list_models`, `describe`."""

from vitkern.models import deit, swin, swin_v2, vit
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
    "read_weights",
    "register",
    "swin",
    "swin_v2",
    "vit",
]
