"""The adapters that know a class by its structure: one description serves a library's class and all copies of it."""

import functools
import importlib
import inspect
import re

from vitkern.interop.structure import difference

# Class that a description was written for -> description. Read by name, as the adapters are.
DESCRIPTIONS = {
    "transformers.models.beit.modeling_beit.BeitLayer": "transformers_beit.BeitLayer",
    "transformers.models.clap.modeling_clap.ClapAudioLayer": "transformers_donut.DonutSwinLayer",
    "transformers.models.clip.modeling_clip.CLIPEncoderLayer": "transformers_clip.EncoderLayer",
    "transformers.models.cvt.modeling_cvt.CvtSelfAttention": "transformers_cvt.CvtSelfAttention",
    "transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionLayer": (
        "transformers_beit.Data2VecVisionLayer"
    ),
    "transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionSdpaSelfAttention": (
        "transformers_beit.Data2VecVisionSdpaSelfAttention"
    ),
    "transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionSelfAttention": (
        "transformers_beit.Data2VecVisionSelfAttention"
    ),
    "transformers.models.deformable_detr.modeling_deformable_detr.MultiScaleDeformableAttention": (
        "transformers_deformable.MultiScaleDeformableAttention"
    ),
    "transformers.models.dinov2.modeling_dinov2.Dinov2Layer": "transformers_dinov2.Dinov2Layer",
    "transformers.models.donut.modeling_donut_swin.DonutSwinLayer": "transformers_donut.DonutSwinLayer",
    "transformers.models.flava.modeling_flava.FlavaSelfAttention": "transformers_eager.SelfAttention",
    "transformers.models.glpn.modeling_glpn.GLPNEfficientSelfAttention": (
        "transformers_reduced.GLPNEfficientSelfAttention"
    ),
    "transformers.models.maskformer.modeling_maskformer_swin.MaskFormerSwinLayer": (
        "transformers_donut.MaskFormerSwinLayer"
    ),
    "transformers.models.mobilevit.modeling_mobilevit.MobileViTSelfAttention": (
        "transformers_eager.MobileViTSelfAttention"
    ),
    "transformers.models.mobilevitv2.modeling_mobilevitv2.MobileViTV2LinearSelfAttention": (
        "transformers_mobilevit.MobileViTV2LinearSelfAttention"
    ),
    "transformers.models.pvt.modeling_pvt.PvtEfficientSelfAttention": "transformers_reduced.PvtEfficientSelfAttention",
    "transformers.models.pvt_v2.modeling_pvt_v2.PvtV2SelfAttention": "transformers_reduced.PvtV2SelfAttention",
    "transformers.models.sam.modeling_sam.SamVisionLayer": "transformers_sam.SamVisionLayer",
    "transformers.models.siglip.modeling_siglip.SiglipEncoderLayer": "transformers_clip.EncoderLayer",
    "transformers.models.swin.modeling_swin.SwinLayer": "transformers_swin.SwinLayer",
    "transformers.models.swinv2.modeling_swinv2.Swinv2Layer": "transformers_swin.Swinv2Layer",
    "transformers.models.timesformer.modeling_timesformer.TimesformerSelfAttention": (
        "transformers_eager.TimesformerSelfAttention"
    ),
    "transformers.models.videomae.modeling_videomae.VideoMAELayer": "transformers_clip.VideoMAELayer",
    "transformers.models.vilt.modeling_vilt.ViltSelfAttention": "transformers_eager.SelfAttention",
    "transformers.models.visual_bert.modeling_visual_bert.VisualBertSelfAttention": "transformers_eager.SelfAttention",
    "transformers.models.vit.modeling_vit.ViTLayer": "transformers_vit.ViTLayer",
    "transformers.models.vitdet.modeling_vitdet.VitDetLayer": "transformers_vitdet.VitDetLayer",
}


@functools.cache
def exemplar_of(kind: type) -> str | None:
    """The class with a description that ``kind`` is, or that it is a copy of."""
    for path in _candidates(kind):
        exemplar = _load(path)
        if exemplar is kind or (exemplar is not None and difference(kind, exemplar) is None):
            return path
    return None


@functools.cache
def near_miss(kind: type) -> str | None:
    """Why ``kind``, with the name and the arguments of a class that has a description, is no copy of it, or None."""
    for path in _candidates(kind):
        exemplar = _load(path)
        if exemplar is not None and kind.__name__.endswith(exemplar.__name__) and _takes(kind) >= _takes(exemplar):
            unlike = difference(kind, exemplar)
            return None if unlike is None else f"differs from {path} {unlike}"
    return None


def _candidates(kind: type) -> list[str]:
    """Classes of its library whose names end with the same word: what may be a copy is looked for among these."""
    library, name = kind.__module__.split(".")[0], kind.__name__
    return [path for path in DESCRIPTIONS if path.split(".")[0] == library and name.endswith(_last_word(path))]


def _last_word(path: str) -> str:
    return re.findall("[A-Z][a-z0-9]*", path)[-1]


def _takes(kind: type) -> set[str]:
    """What a forward cannot be called without."""
    parameters = inspect.signature(getattr(kind, "forward", kind)).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}


def _load(path: str) -> type | None:
    """The class, None where the installed version of its library has none of this name."""
    module, name = path.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
