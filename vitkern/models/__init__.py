"""Vision transformers built from `vitkern.nn`, named as in timm or by their authors: `create_model`, `list_models`."""

from vitkern.models.backbone import Backbone
from vitkern.models.convert import convert_state_dict
from vitkern.models.costs import Costs, count_costs
from vitkern.models.features import FeatureMaps
from vitkern.models.hierarchical import nat, swin, swin_v2, vil
from vitkern.models.plain import deit, vit
from vitkern.models.registry import Architecture, Description, create_model, describe, list_models, register
from vitkern.models.tokens import deformable_detr, dynamic_vit
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
    "deformable_detr",
    "deit",
    "describe",
    "dynamic_vit",
    "list_models",
    "load_weights",
    "nat",
    "read_weights",
    "register",
    "swin",
    "swin_v2",
    "vil",
    "vit",
]
