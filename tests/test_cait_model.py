"""CaiT against timm's, and against the results of its authors' code."""

import pytest
import stored
import torch
from model_pairs import (
    assert_another_head,
    assert_checkpointing_changes_nothing,
    assert_gradients_agree,
    assert_intermediates_agree,
    assert_logits_agree,
    assert_maps,
    images,
    pair,
)
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models.plain.cait import Cait

NAMES = models.list_models("cait_*")
SMALL = dict(embed_dim=32, num_heads=4, depth=2, img_size=(32, 80), num_classes=5)


@stored.each("cait_model")
def test_model_against_the_authors_code(path):
    config, tensors = stored.read(path)
    names = "img_size", "patch_size", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "depth_token_only"
    stored.assert_stored(Cait(**{name: config[name] for name in names}).eval(), tensors)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_timm(name):
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    with uninitialised(), torch.device("meta"):
        ours, theirs = models.create_model(name), timm.create_model(name)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    assert models.describe(name).input_size == timm.get_pretrained_cfg(name).input_size
    assert ours.blocks[0].gamma_1.shape == theirs.blocks[0].gamma_1.shape


@pytest.mark.parametrize("name, start", [("cait_xxs36_224", 1e-5), ("cait_s24_384", 1e-5), ("cait_m36_384", 1e-6)])
def test_branches_start_small(name, start):
    model = models.create_model(name, depth=1, depth_token_only=1, embed_dim=32, num_heads=4, img_size=32)
    for block in (model.blocks[0], model.blocks_token_only[0]):
        assert torch.equal(block.gamma_1, torch.full((32,), start)) and torch.equal(block.gamma_2, block.gamma_1)


@pytest.mark.parametrize("options", [dict(), dict(global_pool="avg", qkv_bias=False), dict(num_classes=0)], ids=str)
def test_logits_agree_with_timm(options):
    pytest.importorskip("timm", reason="timm is the reference of this test")
    assert_logits_agree(*pair("cait_xxs24_224", **SMALL | options), SMALL["img_size"])


def test_heads_of_48_channels_agree_with_timm():
    pytest.importorskip("timm", reason="timm is the reference of this test")
    ours, theirs = pair("cait_s24_224", embed_dim=96, num_heads=2, depth=1, img_size=48, num_classes=5)
    assert_logits_agree(ours, theirs, 48)
    assert_intermediates_agree(ours, theirs, images(48))


def test_gradients_agree_with_timm():
    pytest.importorskip("timm", reason="timm is the reference of this test")
    ours, theirs = pair("cait_xxs24_224", drop_path_rate=0.2, **SMALL)
    silent = "proj_l.bias", ".attn.k.bias"  # a softmax does not see them
    assert_gradients_agree(ours, theirs, images(SMALL["img_size"], 4), silent=silent)


def test_as_a_backbone():
    x = images(SMALL["img_size"])
    assert_maps("cait_xxs24_224", SMALL["img_size"], **SMALL | dict(depth=3))
    model = models.create_model("cait_xxs24_224", **SMALL)
    assert_another_head(model, x)
    assert_checkpointing_changes_nothing(model, x)
    maps = models.create_model("cait_xxs24_224", features_only=True, **SMALL)
    assert not [name for name, _ in maps.named_parameters() if "token_only" in name]
    gated = models.create_model("cait_xxs24_224", **SMALL, mlp_layer="geglu")
    assert gated(x).shape == (2, 5)


def test_bad_input():
    with pytest.raises(ValueError, match="Cait: unknown pooling: got global_pool='max'"):
        Cait(global_pool="max")
    with pytest.raises(ValueError, match="do not split into heads: got dim=32, num_heads=5"):
        Cait(**SMALL | dict(num_heads=5))
    with pytest.raises(ValueError, match=r"the image size differs.*expected \(32, 80\)"):
        Cait(**SMALL)(torch.zeros(1, 3, 32, 64))
