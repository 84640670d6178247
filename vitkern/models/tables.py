"""Other libraries' parameter names -> ours (which are timm's): one explicit table per family, and whose names a
checkpoint has.

A key of a checkpoint that no row of its table matches is an error, so nothing is dropped unseen. Rows with None say
what is dropped: buffers that are computed from the architecture, and parts that timm's architecture does not have.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

Target = str | Callable[[re.Match], str]  # a template, or what makes a name of a match
Rows = Sequence[tuple[str, Target | None]]  # patterns; None drops what matches

_WB = r"(weight|bias)"
_DROPPED = (r"(?:.*\.)?(?:relative_position_index|relative_coords_table|attn_mask)", None)

# Within a block, transformers' names: those of its checkpoints on the hub, then those of version 5.
_HF_ROWS = [
    (rf"(?:attention\.(?:attention|self)\.query|attention\.q_proj)\.{_WB}", r"attn.q.\1"),
    (rf"(?:attention\.(?:attention|self)\.key|attention\.k_proj)\.{_WB}", r"attn.k.\1"),
    (rf"(?:attention\.(?:attention|self)\.value|attention\.v_proj)\.{_WB}", r"attn.v.\1"),
    (rf"(?:attention\.output\.dense|attention\.o_proj)\.{_WB}", r"attn.proj.\1"),
    (rf"layernorm_before\.{_WB}", r"norm1.\1"),
    (rf"layernorm_after\.{_WB}", r"norm2.\1"),
    (rf"(?:intermediate\.dense|mlp\.fc1)\.{_WB}", r"mlp.fc1.\1"),
    (rf"(?:output\.dense|mlp\.fc2)\.{_WB}", r"mlp.fc2.\1"),
    (r"attention\.(?:self|relative_position_bias)\.relative_position_bias_table", "attn.relative_position_bias_table"),
    (r"attention\.self\.logit_scale", "attn.logit_scale"),
    (rf"attention\.self\.continuous_position_bias_mlp\.(0|2)\.{_WB}", r"attn.cpb_mlp.\1.\2"),
]
_HF_STEM = [
    (rf"embeddings\.patch_embeddings\.projection\.{_WB}", r"patch_embed.proj.\1"),
    (rf"layernorm\.{_WB}", r"norm.\1"),
    (rf"pooler\.dense\.{_WB}", None),
    (r"embeddings\.mask_token", None),
    _DROPPED,
]
_HF_VIT_STEM = [
    *_HF_STEM,
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (rf"(?:cls_)?classifier\.{_WB}", r"head.\1"),
    (rf"distillation_classifier\.{_WB}", r"head_dist.\1"),
]
_BIT = r"embeddings\.patch_embeddings\.backbone\.bit\."
_HF_HYBRID_STEM: Rows = [
    *_HF_VIT_STEM,
    (rf"embeddings\.patch_embeddings\.projection\.{_WB}", r"patch_embed.proj.\1"),
    (rf"{_BIT}embedder\.convolution\.weight", "patch_embed.backbone.stem.conv.weight"),
    (rf"{_BIT}embedder\.norm\.{_WB}", r"patch_embed.backbone.stem.norm.\1"),
    (rf"{_BIT}encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)", r"patch_embed.backbone.stages.\1.blocks.\2.\3"),
]
_HF_VITDET_STEM: Rows = [
    (rf"embeddings\.projection\.{_WB}", r"patch_embed.proj.\1"),
    (r"embeddings\.position_embeddings", "pos_embed"),
]
_HF_VITDET_ROWS = [(r"attention\.(.+)", r"attn.\1"), (rf"(norm[12]|mlp\.fc[12])\.{_WB}", r"\1.\2")]
_HF_SWIN_STEM = [
    *_HF_STEM,
    (rf"embeddings\.norm\.{_WB}", r"patch_embed.norm.\1"),
    (rf"encoder\.layers\.(\d+)\.downsample\.(\w+\.{_WB})", lambda m: f"layers.{int(m[1]) + 1}.downsample.{m[2]}"),
    (rf"classifier\.{_WB}", r"head.fc.\1"),
]
_TORCHVISION_VIT_STEM = [
    (rf"conv_proj\.(?:conv_last\.)?{_WB}", r"patch_embed.proj.\1"),
    (r"conv_proj\.conv_bn_relu_(\d+)\.(.+)", r"patch_embed.convs.\1.\2"),
    (r"class_token", "cls_token"),
    (r"encoder\.pos_embedding", "pos_embed"),
    (rf"encoder\.ln\.{_WB}", r"norm.\1"),
    (rf"heads\.head\.{_WB}", r"head.\1"),
]
_TORCHVISION_VIT_ROWS = [
    (rf"ln_([12])\.{_WB}", r"norm\1.\2"),
    (rf"self_attention\.in_proj_{_WB}", r"attn.qkv.\1"),
    (rf"self_attention\.out_proj\.{_WB}", r"attn.proj.\1"),
    (rf"mlp\.(?:0|linear_1)\.{_WB}", r"mlp.fc1.\1"),
    (rf"mlp\.(?:3|linear_2)\.{_WB}", r"mlp.fc2.\1"),
]
_TORCHVISION_SWIN_STEM: Rows = [
    (rf"features\.0\.0\.{_WB}", r"patch_embed.proj.\1"),
    (rf"features\.0\.2\.{_WB}", r"patch_embed.norm.\1"),
    (rf"features\.(\d+)\.((?:reduction|norm)\.{_WB})", lambda m: f"layers.{int(m[1]) // 2}.downsample.{m[2]}"),
    (rf"norm\.{_WB}", r"norm.\1"),
    (rf"head\.{_WB}", r"head.fc.\1"),
    _DROPPED,
]
_TORCHVISION_SWIN_ROWS = [
    (r"(norm[12]\.\w+|attn\..+)", r"\1"),
    (rf"mlp\.0\.{_WB}", r"mlp.fc1.\1"),
    (rf"mlp\.3\.{_WB}", r"mlp.fc2.\1"),
]
_MICROSOFT_SWIN_STEM = [
    _DROPPED,
    (rf"patch_embed\.(?:proj|norm)\.{_WB}|norm\.{_WB}", r"\g<0>"),
    (rf"layers\.(\d+)\.downsample\.(\w+\.{_WB})", lambda m: f"layers.{int(m[1]) + 1}.downsample.{m[2]}"),
    (rf"head\.{_WB}", r"head.fc.\1"),
]
# Its names are those of transformers' version 5; these are the ones of its checkpoints on the hub.
_HF_DETR_STEM: Rows = [
    (r"model\.backbone\.conv_encoder\.model\..*num_batches_tracked", None),
    (r"model\.backbone\.conv_encoder\.(model\..+)", r"model.backbone.\1"),
    (rf"(model\.decoder\.layers\.\d+\.self_attn)\.out_proj\.{_WB}", r"\1.o_proj.\2"),
    (rf"(model\.(?:en|de)coder\.layers\.\d+)\.(fc[12])\.{_WB}", r"\1.mlp.\2.\3"),
    (r"(?:model|class_embed|bbox_embed)\..+", r"\g<0>"),
]


class Table(NamedTuple):
    """``prefix`` is removed from keys; ``stem`` rows match whole keys; ``rows`` match what follows ``block``."""

    prefix: str
    stem: Rows
    block: tuple[str, Target]
    rows: Sequence[tuple[str, Target]]


_HF_VIT = Table(r"(?:vit|deit)\.", _HF_VIT_STEM, (r"(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."), _HF_ROWS)
_HF_HYBRID = _HF_VIT._replace(stem=_HF_HYBRID_STEM)
_HF_VITDET = Table("", _HF_VITDET_STEM, (r"encoder\.layer\.(\d+)\.", r"blocks.\1."), _HF_VITDET_ROWS)
_HF_SWIN = Table(
    r"(?:swin|swinv2)\.", _HF_SWIN_STEM, (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.", r"layers.\1.blocks.\2."), _HF_ROWS
)
_TORCHVISION_SWIN = Table(
    "",
    _TORCHVISION_SWIN_STEM,
    (r"features\.(\d+)\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}."),
    _TORCHVISION_SWIN_ROWS,
)


FAMILIES: dict[str, Table] = {
    "transformers_vit": _HF_VIT,
    "transformers_vit_hybrid": _HF_HYBRID,
    "transformers_vitdet": _HF_VITDET,
    "transformers_deit": _HF_VIT,
    "transformers_swin": _HF_SWIN,
    "transformers_swinv2": _HF_SWIN,
    "transformers_deformable_detr": Table("", _HF_DETR_STEM, (r"(?!)", ""), []),
    "torchvision_vit": Table(
        "", _TORCHVISION_VIT_STEM, (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."), _TORCHVISION_VIT_ROWS
    ),
    "torchvision_swin": _TORCHVISION_SWIN,
    "torchvision_swinv2": _TORCHVISION_SWIN,
    "microsoft_swin": Table(
        "",
        _MICROSOFT_SWIN_STEM,
        (r"layers\.(\d+)\.blocks\.(\d+)\.", r"\g<0>"),
        [(r"(?:norm[12]|attn|mlp)\..+", r"\g<0>")],
    ),
}


_marks: dict[str, str] = {}
PROJECTIONS: dict[str, str] = {}  # which of q, k, v are one, where it is not all


def add_family(
    name: str,
    mark: str,
    prefix: str,
    stem: Rows,
    block: tuple[str, Target],
    rows: Sequence[tuple[str, Target]],
    joined: str = "qkv",
) -> None:
    """Adds a table of names; the file of a family does so where its table concerns nobody else.

    Args:
        name: key of `FAMILIES`. mark: end of a name that no other family has. prefix: removed from names.
        stem: rows that match whole names. block, rows: start of the names of a block, and rows for what follows it.
        joined: which of the projections q, k, v are one here.
    """
    FAMILIES[name] = Table(prefix, stem, block, rows)
    _marks[name], PROJECTIONS[name] = mark, joined


def detect_family(state_dict: Mapping[str, Tensor]) -> str | None:
    """The family whose names these are, or None: they are timm's, or nobody's."""
    keys = [key for key in state_dict if isinstance(key, str)]
    if any("patch_embeddings.backbone.bit." in key for key in keys):
        return "transformers_vit_hybrid"
    if any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in keys):
        if any(key.endswith("logit_scale") for key in keys):
            return "transformers_swinv2"
        if any(key.endswith("relative_position_bias_table") for key in keys):
            return "transformers_swin"
        return "transformers_deit" if any(key.endswith("distillation_token") for key in keys) else "transformers_vit"
    if "model.backbone.conv_encoder.model.conv1.weight" in state_dict:
        return "transformers_deformable_detr"
    if "embeddings.projection.weight" in state_dict:
        return "transformers_vitdet"
    if any(key.startswith("conv_proj.") for key in keys):
        return "torchvision_vit"
    if "features.0.0.weight" in state_dict:
        return "torchvision_swinv2" if any(key.endswith("logit_scale") for key in keys) else "torchvision_swin"
    for name, mark in _marks.items():
        if any(key.endswith(mark) for key in keys):
            return name
    # The authors' checkpoints merge patches at the end of a stage, timm's at its start.
    return "microsoft_swin" if "layers.0.downsample.reduction.weight" in state_dict else None
