"""transformers: its models that see, each with a small configuration."""

import importlib
from typing import Any

from torch import nn

from vitkern.covering.family import Family
from vitkern.covering.shrinking import arguments, shrunk
from vitkern.covering.transformers_grids import GRIDS
from vitkern.covering.transformers_parts import Changed
from vitkern.covering.transformers_tasks import TASKS
from vitkern.covering.transformers_towers import TOWERS
from vitkern.covering.transformers_words import WORDS

LIBRARY = "transformers"
# Models that the rules of `shrinking` make small. folder.Class where transformers does not export the class.
PLAIN = """
Aimv2VisionModel Aimv2Model AltCLIPVisionModel AltCLIPModel BeitForImageClassification BlipVisionModel BlipModel
Blip2VisionModel ChineseCLIPVisionModel ChineseCLIPModel CLIPVisionModel CLIPModel CLIPSegVisionModel CLIPSegModel
CvtForImageClassification Data2VecVisionForImageClassification DeiTForImageClassificationWithTeacher
Dinov2ForImageClassification Dinov2WithRegistersForImageClassification DINOv3ViTModel DPTModel FlavaImageModel
FlavaModel FocalNetForImageClassification GitVisionModel GitModel GLPNForDepthEstimation
granite_docling.GraniteDoclingVisionModel GroupViTVisionModel GroupViTModel HieraForImageClassification
idefics2.Idefics2VisionTransformer idefics3.Idefics3VisionTransformer IJepaForImageClassification
InstructBlipVisionModel InstructBlipQFormerModel InstructBlipVideoVisionModel InternVLVisionModel JanusVisionModel
kosmos2.Kosmos2VisionModel MetaClip2VisionModel MetaClip2Model MgpstrForSceneTextRecognition MLCDVisionModel
MobileViTForImageClassification MobileViTForSemanticSegmentation ovis2.Ovis2VisionModel Owlv2VisionModel Owlv2Model
OwlViTVisionModel OwlViTModel phi4_multimodal.Phi4MultimodalVisionModel PixioModel PixtralVisionModel
PoolFormerForImageClassification pp_formulanet.PPFormulaNetVisionModel PvtForImageClassification
PvtV2ForImageClassification qianfan_ocr.QianfanOCRVisionModel RadioModel ResNetForImageClassification
rf_detr.RfDetrDinov2Backbone RfDetrForObjectDetection SamVisionModel Sam3ViTModel Sam3VisionModel SamHQVisionModel
Sapiens2Model SegformerForSemanticSegmentation SiglipVisionModel SiglipModel SLANeXtForTableRecognition
smolvlm.SmolVLMVisionTransformer step3p7.Step3p7VisionModel SwiftFormerForImageClassification Tipsv2VisionModel
Tipsv2Model ViltModel ViTForImageClassification ViTForMaskedImageModeling ViTMAEModel ViTMSNForImageClassification
VitDetBackbone YolosForObjectDetection
"""


def families() -> list[Family]:
    plain = [_family(name, name, Changed()) for name in PLAIN.split()]
    return plain + [
        _family(name, name.split(",")[0], changed) for name, changed in (TOWERS | GRIDS | TASKS | WORDS).items()
    ]


def _family(name: str, kind: str, changed: Changed) -> Family:
    def build() -> tuple[nn.Module, dict[str, Any]]:
        found = _class(kind)
        model = found(found.config_class(**shrunk(found.config_class, **changed.config)))
        return model, arguments(model, changed.size, changed.inputs)

    return Family(name, build)


def _class(name: str) -> Any:
    if "." not in name:
        return getattr(importlib.import_module("transformers"), name)
    folder, name = name.split(".")
    return getattr(importlib.import_module(f"transformers.models.{folder}.modeling_{folder}"), name)
