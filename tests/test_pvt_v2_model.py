"""PVTv2 against timm: parameters, logits, gradients, maps; sizes of images; what it cannot take."""

import pytest
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

timm = pytest.importorskip("timm", reason="timm is the reference of this file")

NAMES = ["pvt_v2_b0", "pvt_v2_b2_li"]
SMALL = dict(
    depths=(2, 1, 1, 1), embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 3, 2), num_classes=7
)


@pytest.mark.parametrize(
    "name, count",
    {
        "pvt_v2_b0": 3_666_760,
        "pvt_v2_b1": 14_009_000,
        "pvt_v2_b2": 25_362_856,
        "pvt_v2_b2_li": 22_553_512,
        "pvt_v2_b3": 45_238_696,
        "pvt_v2_b4": 62_556_072,
        "pvt_v2_b5": 81_956_008,
    }.items(),
)
def test_parameters_are_those_of_timm(name, count):
    with uninitialised(), torch.device("meta"):
        ours, theirs = models.create_model(name), timm.create_model(name)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    assert models.describe(name).parameters == sum(p.numel() for p in theirs.parameters()) == count


def test_multiply_adds_are_those_of_the_paper():
    with torch.device("meta"):
        costs = models.count_costs(models.create_model("pvt_v2_b2"))
    assert costs.macs / 1e9 == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize("size", [64, (61, 90)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_timm(name, size):
    assert_logits_agree(*pair(name, **SMALL), size)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_timm(name):
    assert_gradients_agree(*pair(name, drop_path_rate=0.2, **SMALL), images((68, 72), 4))


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_those_of_timm(name):
    assert_intermediates_agree(*pair(name, **SMALL), images(32))
    assert_maps(name, 64, **SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_as_a_backbone(name):
    model = models.create_model(name, drop_path_rate=0.3, **SMALL)
    assert_checkpointing_changes_nothing(model, images(32))
    assert_another_head(model, images(32))


def test_initial_weights_follow_timm():
    torch.manual_seed(0)
    ours, theirs = (library.create_model("pvt_v2_b0", **SMALL) for library in (models, timm))
    for (key, p), peer in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if p.numel() > 500:
            assert p.std().item() == pytest.approx(peer.std().item(), rel=0.25), key
        assert p.mean().item() == pytest.approx(peer.mean().item(), abs=0.05), key


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m(torch.zeros(1, 3, 28, 64)), r"too small: got \(28, 64\); expected 29 pixels or more each way"),
        (lambda m: m(torch.zeros(1, 4, 64, 64)), r"a batch of images.*expected \(B, 3, height, width\)"),
        (lambda m: type(m)(depths=(1, 1)), r"stages do not fit each other: got lengths .*'depths': 2"),
        (lambda m: type(m)(global_pool="token"), "pooling: got global_pool='token'"),
    ],
)
def test_bad_input(call, message):
    model = models.create_model("pvt_v2_b0", **SMALL)
    with pytest.raises(ValueError, match=f"^PyramidVisionTransformerV2: .*{message}"):
        call(model)
    assert model.eval()(torch.zeros(1, 3, 29, 29)).shape == (1, 7)
    assert "or of 29 pixels or more each way" in model.input_rule
    assert models.create_model("pvt_v2_b2_li", **SMALL).eval()(torch.zeros(1, 3, 5, 5)).shape == (1, 7)
