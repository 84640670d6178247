"""Other libraries' parameter names -> ours (which are timm's): one explicit table per family.

A key of a checkpoint that no row of its table matches is an error, so nothing is dropped unseen. Rows with None say
what is dropped: buffers that are computed from the architecture, and parts that timm's architecture does not have.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vitkern.models.names import few

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
_HF_SWIN_STEM = [
    *_HF_STEM,
    (rf"embeddings\.norm\.{_WB}", r"patch_embed.norm.\1"),
    (rf"encoder\.layers\.(\d+)\.downsample\.(\w+\.{_WB})", lambda m: f"layers.{int(m[1]) + 1}.downsample.{m[2]}"),
    (rf"classifier\.{_WB}", r"head.fc.\1"),
]
_TORCHVISION_VIT_STEM = [
    (rf"conv_proj\.{_WB}", r"patch_embed.proj.\1"),
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
# Every convolution of cvnets is a block of a convolution and a norm.
_BN = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_CVNETS_STEM: Rows = [
    (r"conv_1\.block\.conv\.weight", "stem.conv.weight"),
    (rf"conv_1\.block\.norm\.{_BN}", r"stem.bn.\1"),
    (r"conv_1x1_exp\.block\.conv\.weight", "final_conv.conv.weight"),
    (rf"conv_1x1_exp\.block\.norm\.{_BN}", r"final_conv.bn.\1"),
    (rf"classifier\.(?:fc|1)\.{_WB}", r"head.fc.\1"),
]
_CVNETS_CONVS = {
    "block.exp_1x1": "conv1_1x1",
    "block.conv_3x3": "conv2_kxk",
    "block.red_1x1": "conv3_1x1",
    "local_rep.conv_3x3": "conv_kxk",
    "local_rep.0": "conv_kxk",
    "conv_proj": "conv_proj",
    "fusion": "conv_fusion",
}
_CVNETS_CONV = "|".join(map(re.escape, _CVNETS_CONVS))
_CVNETS_ROWS: Sequence[tuple[str, Target]] = [
    (rf"({_CVNETS_CONV})\.block\.conv\.weight", lambda m: f"{_CVNETS_CONVS[m[1]]}.conv.weight"),
    (rf"({_CVNETS_CONV})\.block\.norm\.{_BN}", lambda m: f"{_CVNETS_CONVS[m[1]]}.bn.{m[2]}"),
    (r"local_rep\.(?:conv_1x1|1)\.block\.conv\.weight", "conv_1x1.weight"),
    (rf"global_rep\.\d+\.{_WB}", r"norm.\1"),
    (rf"global_rep\.(\d+)\.pre_norm_(?:mha|attn)\.0\.{_WB}", r"transformer.\1.norm1.\2"),
    (rf"global_rep\.(\d+)\.pre_norm_mha\.1\.qkv_proj\.{_WB}", r"transformer.\1.attn.qkv.\2"),
    (rf"global_rep\.(\d+)\.pre_norm_mha\.1\.out_proj\.{_WB}", r"transformer.\1.attn.proj.\2"),
    (rf"global_rep\.(\d+)\.pre_norm_attn\.1\.(qkv|out)_proj\.block\.conv\.{_WB}", r"transformer.\1.attn.\2_proj.\3"),
    (rf"global_rep\.(\d+)\.pre_norm_ffn\.0\.{_WB}", r"transformer.\1.norm2.\2"),
    (rf"global_rep\.(\d+)\.pre_norm_ffn\.1\.(?:block\.conv\.)?{_WB}", r"transformer.\1.mlp.fc1.\2"),
    (rf"global_rep\.(\d+)\.pre_norm_ffn\.(?:4|3\.block\.conv)\.{_WB}", r"transformer.\1.mlp.fc2.\2"),
]


class _Table(NamedTuple):
    """``prefix`` is removed from keys; ``stem`` rows match whole keys; ``rows`` match what follows ``block``."""

    prefix: str
    stem: Rows
    block: tuple[str, Target]
    rows: Sequence[tuple[str, Target]]


_HF_VIT = _Table(r"(?:vit|deit)\.", _HF_VIT_STEM, (r"(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."), _HF_ROWS)
_HF_SWIN = _Table(
    r"(?:swin|swinv2)\.", _HF_SWIN_STEM, (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.", r"layers.\1.blocks.\2."), _HF_ROWS
)
_TORCHVISION_SWIN = _Table(
    "",
    _TORCHVISION_SWIN_STEM,
    (r"features\.(\d+)\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}."),
    _TORCHVISION_SWIN_ROWS,
)

FAMILIES: dict[str, _Table] = {
    "transformers_vit": _HF_VIT,
    "transformers_deit": _HF_VIT,
    "transformers_swin": _HF_SWIN,
    "transformers_swinv2": _HF_SWIN,
    "torchvision_vit": _Table(
        "", _TORCHVISION_VIT_STEM, (r"encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."), _TORCHVISION_VIT_ROWS
    ),
    "torchvision_swin": _TORCHVISION_SWIN,
    "torchvision_swinv2": _TORCHVISION_SWIN,
    "microsoft_swin": _Table(
        "",
        _MICROSOFT_SWIN_STEM,
        (r"layers\.(\d+)\.blocks\.(\d+)\.", r"\g<0>"),
        [(r"(?:norm[12]|attn|mlp)\..+", r"\g<0>")],
    ),
    "cvnets_mobilevit": _Table(
        "", _CVNETS_STEM, (r"layer_(\d+)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.{m[2]}."), _CVNETS_ROWS
    ),
}


def detect_family(state_dict: Mapping[str, Tensor]) -> str | None:
    """The family whose names these are, or None: they are timm's, or nobody's."""
    keys = [key for key in state_dict if isinstance(key, str)]
    if any(key.endswith("embeddings.patch_embeddings.projection.weight") for key in keys):
        if any(key.endswith("logit_scale") for key in keys):
            return "transformers_swinv2"
        if any(key.endswith("relative_position_bias_table") for key in keys):
            return "transformers_swin"
        return "transformers_deit" if any(key.endswith("distillation_token") for key in keys) else "transformers_vit"
    if "conv_proj.weight" in state_dict:
        return "torchvision_vit"
    if "features.0.0.weight" in state_dict:
        return "torchvision_swinv2" if any(key.endswith("logit_scale") for key in keys) else "torchvision_swin"
    if "conv_1.block.conv.weight" in state_dict:
        return "cvnets_mobilevit"
    # The authors' checkpoints merge patches at the end of a stage, timm's at its start.
    return "microsoft_swin" if "layers.0.downsample.reduction.weight" in state_dict else None


def convert_state_dict(state_dict: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """A state dict under our names. Separate q, k and v projections are joined; nothing else is computed.

    Args:
        state_dict: as the other library saves it.
        family: a key of `FAMILIES`, for example "transformers_vit"; `detect_family` names it.

    Raises:
        ValueError: an unknown family, keys that its table does not have or that mean the same, or projections that do
            not join.
    """
    if family not in FAMILIES:
        raise ValueError(f"convert_state_dict: unknown family: got {family!r}; expected one of {', '.join(FAMILIES)}.")
    table, renamed, unknown, twice = FAMILIES[family], {}, [], []
    for key, value in state_dict.items():
        known, name = _rename(re.sub(f"^{table.prefix}", "", key), table) if isinstance(key, str) else (False, None)
        if not known:
            unknown.append(key)
        elif name in renamed:
            twice.append(key)
        elif name is not None:
            renamed[name] = value
    for what, keys in (("these are no names of", unknown), ("two names mean one tensor of", twice)):
        if keys:
            raise ValueError(
                f"convert_state_dict: {what} {family}: got {few(keys)}; "
                "expected a state dict of that library's unchanged model."
            )
    return _split_bias(_join_projections(renamed, family), family)


def _rename(key: str, table: _Table) -> tuple[bool, str | None]:
    """(the table has the key, its new name; None drops it)."""
    for pattern, target in table.stem:
        if found := re.fullmatch(pattern, key):
            return True, None if target is None else _expand(found, target)
    if start := re.match(table.block[0], key):
        for pattern, target in table.rows:
            if found := re.fullmatch(pattern, key[start.end() :]):
                return True, _expand(start, table.block[1]) + _expand(found, target)
    return False, None


def _expand(found: re.Match, target: Target) -> str:
    return target(found) if callable(target) else found.expand(target)


def _join_projections(renamed: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """``attn.q``, ``attn.k``, ``attn.v`` -> ``attn.qkv``; SwinV2 keeps its biases of q and v apart."""
    out = {}
    for name, value in renamed.items():
        part = re.fullmatch(r"(.*attn\.)([qkv])\.(weight|bias)", name)
        if part is None:
            out[name] = value
        elif family == "transformers_swinv2" and part[3] == "bias":
            out[f"{part[1]}{part[2]}_bias"] = value
        else:
            names = [f"{part[1]}{letter}.{part[3]}" for letter in "qkv"]
            missing = [wanted for wanted in names if wanted not in renamed]
            if missing:
                raise ValueError(
                    f"convert_state_dict: a projection is missing: got no source of {missing[0]}; "
                    "expected q, k and v of each block."
                )
            if part[2] == "q":
                out[f"{part[1]}qkv.{part[3]}"] = _joined([renamed[wanted] for wanted in names], names)
    return out


def _joined(parts: list[Tensor], names: list[str]) -> Tensor:
    if len({(part.shape, part.dtype) for part in parts}) > 1 or parts[0].dim() == 0:
        got = ", ".join(f"{tuple(part.shape)} {part.dtype}".replace("torch.", "") for part in parts)
        raise ValueError(
            f"convert_state_dict: a projection does not join: got {got} for {names[0]} and what follows it; "
            "expected q, k and v of one shape and dtype."
        )
    return torch.cat(parts)


def _split_bias(named: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """torchvision's SwinV2 keeps a bias for k that its forward pass ignores."""
    if family != "torchvision_swinv2":
        return named
    out = {}
    for name, value in named.items():
        if name.endswith("attn.qkv.bias"):
            if value.dim() != 1 or len(value) % 3:
                raise ValueError(
                    f"convert_state_dict: a bias does not split: got {tuple(value.shape)} for {name}; "
                    "expected those of q, k and v, one after another."
                )
            q, _, v = value.chunk(3)
            out[name.replace("qkv.bias", "q_bias")], out[name.replace("qkv.bias", "v_bias")] = q.clone(), v.clone()
        else:
            out[name] = value
    return out
