"""MobileViT v3: blocks against the results of their authors' code, the rest against timm's v1 and v2, their names."""

import copy
import re

import model_pairs
import pytest
import stored
import torch
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models import convert
from vitkern.models.mobile.mobilevit_v3 import MobileVitV3Block, MobileVitV3LinearBlock

COUNTS = {
    "mobilevitv3_s": 5_763_912, "mobilevitv3_xs": 2_490_360, "mobilevitv3_xxs": 1_249_448,
    "mobilevitv3_100": 5_139_409, "mobilevitv3_075": 2_999_641, "mobilevitv3_050": 1_429_985,
}  # fmt: skip


# Biases that the next BatchNorm takes away.
BEFORE_BATCH_NORM = "conv3_1x1.bn.bias", "conv_proj.bn.bias", "1.norm.bias"


def renamed(tensors):
    """Of a block: its weights and their gradients under our names, by the table for whole models."""
    found = {key: value for key, value in tensors.items() if "weights." not in key}
    for start in ("weights.", "grad.weights."):
        theirs = {f"layer_3.1.{k.removeprefix(start)}": v for k, v in tensors.items() if k.startswith(start)}
        ours = convert.convert_state_dict(theirs, "cvnets_mobilevit")
        found |= {start + key.removeprefix("stages.2.1."): value for key, value in ours.items()}
    return found


@stored.each("mobilevitv3_v1block_*")
def test_block_against_the_authors_code(path):
    config, tensors = stored.read(path, ".block.conv")
    dim = config["transformer_dim"]
    block = MobileVitV3Block(
        config["in_channels"], dim, config["n_transformer_blocks"], num_heads=dim // config["head_dim"],
        mlp_ratio=config["ffn_dim"] / dim, patch_size=(config["patch_h"], config["patch_w"]),
        fusion=not config.get("no_fusion", False),
    )  # fmt: skip
    stored.assert_stored(block.eval(), renamed(tensors))


@stored.each("mobilevitv3_v2block_*")
def test_linear_block_against_the_authors_code(path):
    config, tensors = stored.read(path, ".block.conv")
    block = MobileVitV3LinearBlock(
        config["in_channels"], config["attn_unit_dim"], config["n_attn_blocks"], mlp_ratio=config["ffn_multiplier"]
    )
    stored.assert_stored(block.eval(), renamed(tensors))


@pytest.mark.parametrize("name, count", COUNTS.items())
def test_parameters_are_as_many_as_the_authors(name, count):
    description = models.describe(name)
    assert (description.parameters, description.input_size, description.num_classes) == (count, (3, 256, 256), 1000)


BASES = {"mobilevitv3_xxs": "mobilevit_xxs", "mobilevitv3_050": "mobilevitv2_050"}


def pair(name):
    """(ours, timm's network of v1 or v2 with the channels of v3 and our blocks in it), with the same random weights."""
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    from timm.models.mobilevit import _inverted_residual_block, _mobilevit_block

    ours, wider = model_pairs.randomise(models.create_model(name, num_classes=5).eval()), {}
    if name == "mobilevitv3_xxs":
        plain = (_inverted_residual_block(d=d, c=c, s=s, br=2.0) for d, c, s in ((1, 16, 1), (3, 24, 2)))
        mixed = (
            _mobilevit_block(d=1, c=c, s=2, transformer_dim=64, transformer_depth=1, br=2.0) for c in (64, 80, 128)
        )
        wider = dict(blocks=(*plain, *mixed), num_features=512)
    with uninitialised():
        theirs = timm.create_model(BASES[name], num_classes=5, **wider)
    for stage, peer in zip(ours.stages[2:], theirs.stages[2:], strict=True):
        peer[1] = copy.deepcopy(stage[1])
    theirs.eval().load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", BASES)
def test_logits_and_maps_agree_with_timm_around_the_blocks(name):
    ours, theirs = pair(name)
    for size in (64, (70, 90)):
        model_pairs.assert_logits_agree(ours, theirs, size)
    model_pairs.assert_intermediates_agree(ours, theirs, model_pairs.images(64, 1))


@pytest.mark.parametrize("name", BASES)
def test_gradients_agree_with_timm_around_the_blocks(name):
    model_pairs.assert_gradients_agree(*pair(name), model_pairs.images((48, 80), 3), BEFORE_BATCH_NORM)


def authors_name(name):
    """Ours -> that of cvnets, written down apart from the table that reads it."""
    linear = "attn.qkv_proj" in name or "attn.out_proj" in name
    name = re.sub(r"^stages\.(\d+)\.", lambda m: f"layer_{int(m[1]) + 1}.", name)
    name = re.sub(r"^stem\.", "conv_1.block.", name)
    name = re.sub(r"^final_conv\.", "conv_1x1_exp.block.", name)
    name = name.replace("conv1_1x1", "block.exp_1x1.block").replace("conv2_kxk", "block.conv_3x3.block")
    name = name.replace("conv3_1x1", "block.red_1x1.block").replace("conv_kxk", "local_rep.conv_3x3.block")
    name = name.replace("conv_1x1.weight", "local_rep.conv_1x1.block.conv.weight")
    name = name.replace("conv_proj", "conv_proj.block").replace("conv_fusion", "fusion.block")
    name = re.sub(r"^(layer_\d\.1\.)norm\.", r"\1global_rep.9.", name).replace(".bn.", ".norm.")
    name = name.replace("transformer.", "global_rep.").replace("head.fc", "classifier.fc")
    name = name.replace("attn.qkv_proj", "pre_norm_attn.1.qkv_proj.block.conv")
    name = name.replace("attn.out_proj", "pre_norm_attn.1.out_proj.block.conv")
    name = name.replace("attn.qkv.", "pre_norm_mha.1.qkv_proj.").replace("attn.proj.", "pre_norm_mha.1.out_proj.")
    name = re.sub(r"(global_rep\.\d\.)norm1", r"\1pre_norm_attn.0" if linear else r"\1pre_norm_mha.0", name)
    return (
        name.replace("norm2", "pre_norm_ffn.0")
        .replace("mlp.fc1", "pre_norm_ffn.1")
        .replace("mlp.fc2", "pre_norm_ffn.4")
    )


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv3_xxs", "mobilevitv3_050"])
def test_names_of_the_authors_and_back(name, tmp_path):
    ours, other = (models.create_model(name, num_classes=3) for _ in range(2))
    model_pairs.randomise(ours)
    theirs = {authors_name(key): value for key, value in ours.state_dict().items()}
    assert len(theirs) == len(ours.state_dict()) and not set(theirs) & set(ours.state_dict())
    torch.save(theirs, tmp_path / "checkpoint.pt")
    models.load_weights(other, tmp_path / "checkpoint.pt")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in ours.state_dict().items())
    with pytest.raises(ValueError, match="these are no names of cvnets_mobilevit"):
        convert.convert_state_dict(theirs | {"layer_3.1.fusion.weight": torch.zeros(1)}, "cvnets_mobilevit")


def test_as_a_backbone():
    x = model_pairs.images(64, 2)
    model = models.create_model("mobilevitv3_050", num_classes=5)
    model_pairs.assert_checkpointing_changes_nothing(model, x)
    model_pairs.assert_another_head(model, x)
    model_pairs.assert_maps("mobilevitv3_xxs", 64)
