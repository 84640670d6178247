"""Vision transformers built from `vitkern.nn`, named as in timm or by their authors: `create_model`, `list_models`."""

from vitkern.models.backbone import Backbone
from vitkern.models.convert import convert_state_dict
from vitkern.models.costs import Costs, count_costs
from vitkern.models.features import FeatureMaps
from vitkern.models.hierarchical import cvt, davit, nat, pvt, pvt_v2, swin, swin_v2, twins, vil
from vitkern.models.plain import (
    cait,
    convit,
    cpvt,
    deit,
    dinov2,
    mixer,
    vit,
    vit_22b,
    vit_c,
    vit_hybrid,
    vit_pixel,
    vit_scaled,
    vitdet,
    vitdet_pyramid,
)
from vitkern.models.registry import Architecture, Description, create_model, describe, list_models, register
from vitkern.models.sequence import bert, igpt, transformer
from vitkern.models.tokens import deformable_detr, dynamic_vit
from vitkern.models.weights import load_weights, read_weights

__all__ = [
    "Architecture",
    "Backbone",
    "Costs",
    "Description",
    "FeatureMaps",
    "bert",
    "cait",
    "convert_state_dict",
    "convit",
    "count_costs",
    "cpvt",
    "create_model",
    "cvt",
    "davit",
    "deformable_detr",
    "deit",
    "describe",
    "dinov2",
    "dynamic_vit",
    "igpt",
    "list_models",
    "load_weights",
    "mixer",
    "nat",
    "pvt",
    "pvt_v2",
    "read_weights",
    "register",
    "swin",
    "swin_v2",
    "transformer",
    "twins",
    "vil",
    "vit",
    "vit_22b",
    "vit_c",
    "vit_hybrid",
    "vit_pixel",
    "vit_scaled",
    "vitdet",
    "vitdet_pyramid",
]
