"""Vision transformers built from `vitkern.nn`, named as in timm or by their authors: `create_model`, `list_models`."""

from vitkern.models.backbone import Backbone
from vitkern.models.convert import convert_state_dict
from vitkern.models.costs import Costs, count_costs
from vitkern.models.features import FeatureMaps
from vitkern.models.hierarchical import cvt, davit, nat, pvt, pvt_v2, swin, swin_v2, twins, vil
from vitkern.models.plain import deit, vit
from vitkern.models.registry import Architecture, Description, create_model, describe, list_models, register
from vitkern.models.weights import load_weights, read_weights

__all__ = [
    "Architecture",
    "Backbone",
    "Costs",
    "Description",
    "FeatureMaps",
    "convert_state_dict",
    "count_costs",
    "create_model",
    "cvt",
    "davit",
    "deit",
    "describe",
    "list_models",
    "load_weights",
    "nat",
    "pvt",
    "pvt_v2",
    "read_weights",
    "register",
    "swin",
    "swin_v2",
    "twins",
    "vil",
    "vit",
]
