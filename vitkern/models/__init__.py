"""Vision transformers built from `vitkern.nn`, named as in timm or by their authors: `create_model`, `list_models`."""

from vitkern.models.backbone import Backbone
from vitkern.models.convert import convert_state_dict
from vitkern.models.costs import Costs, count_costs
from vitkern.models.features import FeatureMaps
from vitkern.models.hierarchical import cvt, davit, halonet, nat, pvt, pvt_v2, sasa, swin, swin_v2, twins, vil
from vitkern.models.mobile import mobilevit, mobilevit_v2, mobilevit_v3
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
from vitkern.models.tokens import deformable_detr, dynamic_vit, vt
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
    "halonet",
    "igpt",
    "list_models",
    "load_weights",
    "mixer",
    "mobilevit",
    "mobilevit_v2",
    "mobilevit_v3",
    "nat",
    "pvt",
    "pvt_v2",
    "read_weights",
    "register",
    "sasa",
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
    "vt",
]
