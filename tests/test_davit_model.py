"""DaViT against timm: blocks, parameters, logits, gradients, maps; what it cannot take."""

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
from vitkern.models.hierarchical.davit import ChannelBlock, DaViT, SpatialBlock
from vitkern.nn import ChannelAttention, Mlp, WindowAttention

timm = pytest.importorskip("timm", reason="timm is the reference of this file")

SMALL = dict(depths=(1, 1, 2, 1), embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), mlp_ratio=2.0, num_classes=7)
NAMES = {"davit_tiny": dict(SMALL), "davit_base_fl": dict(SMALL, window_size=5)}


@stored.each("davit_*_block")
def test_block_against_stored_results(path):
    config, tensors = stored.read(path)
    dim, heads = config["dim"], config["num_heads"]
    if "window_size" in config:
        build, attn = SpatialBlock, WindowAttention(dim, heads, config["window_size"], rel_pos=False)
    else:
        build, attn = ChannelBlock, ChannelAttention(dim, heads, qkv_bias=True)
    block = build(dim, attn, Mlp(dim, int(dim * config["mlp_ratio"])), 0.0, 1e-5)
    stored.assert_stored(block, tensors, lambda x: block(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "name, count",
    {
        "davit_tiny": 28_360_168,
        "davit_small": 49_745_896,
        "davit_base": 87_954_408,
        "davit_large": 196_811_752,
        "davit_huge": 348_922_856,
        "davit_giant": 1_406_470_120,
        "davit_base_fl": 90_370_048,
        "davit_huge_fl": 360_636_416,
    }.items(),
)
def test_parameters_are_those_of_timm(name, count):
    with uninitialised(), torch.device("meta"):
        ours, theirs = models.create_model(name), timm.create_model(name)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    description = models.describe(name)
    assert description.parameters == sum(p.numel() for p in theirs.parameters()) == count
    assert (description.num_classes, description.input_size) == (
        theirs.num_classes,
        timm.get_pretrained_cfg(name).input_size,
    )


def test_multiply_adds_are_those_of_the_paper():
    with torch.device("meta"):
        costs = models.count_costs(models.create_model("davit_tiny"))
    assert costs.macs / 1e9 == pytest.approx(4.5, rel=0.02)


@pytest.mark.parametrize("size", [64, (59, 90)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_timm(name, size):
    """The odd size is padded between stages and in the windows."""
    assert_logits_agree(*pair(name, **NAMES[name]), size)


@pytest.mark.parametrize("pooling", ["max", "avgmax"])
def test_poolings_are_those_of_timm(pooling):
    assert_logits_agree(*pair("davit_tiny", global_pool=pooling, **SMALL), 32)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_timm(name):
    assert_gradients_agree(*pair(name, drop_path_rate=0.2, **NAMES[name]), images((36, 40), 4))


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_those_of_timm(name):
    assert_intermediates_agree(*pair(name, **NAMES[name]), images((64, 32)))
    assert_maps(name, 64, **NAMES[name])


@pytest.mark.parametrize("name", NAMES)
def test_as_a_backbone(name):
    model = models.create_model(name, drop_path_rate=0.3, **NAMES[name])
    assert_checkpointing_changes_nothing(model, images(32))
    assert_another_head(model, images(32))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m(torch.zeros(1, 1, 64, 64)), r"a batch of images: got shape \(1, 1, 64, 64\)"),
        (lambda m: DaViT(depths=(1, 1)), r"do not fit each other: got lengths .*'depths': 2"),
        (lambda m: m.reset_classifier(3, "token"), "pooling: got global_pool='token'"),
    ],
)
def test_bad_input(call, message):
    model = models.create_model("davit_tiny", **SMALL)
    with pytest.raises(ValueError, match=f"^DaViT: .*{message}"):
        call(model)
    assert model.eval()(torch.zeros(1, 3, 1, 1)).shape == (1, 7)
    assert "or of any size" in model.input_rule
