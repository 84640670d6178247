"""Vision transformers built from `vitkern.nn`, named as in timm or by their authors: `create_model`, `list_models`."""

from vitkern.models.backbone import Backbone
from vitkern.models.convert import convert_state_dict
from vitkern.models.features import FeatureMaps
from vitkern.models.hierarchical import halonet, nat, sasa, swin, swin_v2, vil
from vitkern.models.mobile import mobilevit, mobilevit_v2, mobilevit_v3
from vitkern.models.plain import deit, vit
from vitkern.models.registry import Architecture, Description, create_model, describe, list_models, register
from vitkern.models.tokens import vt
from vitkern.models.weights import load_weights, read_weights

__all__ = [
    "Architecture",
    "Backbone",
    "Description",
    "FeatureMaps",
    "convert_state_dict",
    "create_model",
    "deit",
    "describe",
    "halonet",
    "list_models",
    "load_weights",
    "mobilevit",
    "mobilevit_v2",
    "mobilevit_v3",
    "nat",
    "read_weights",
    "register",
    "sasa",
    "swin",
    "swin_v2",
    "vil",
    "vit",
    "vt",
]
