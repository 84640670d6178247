"""Twins against timm and the results of its authors' code: parameters, logits, gradients, maps; what it cannot take."""

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
from vitkern.models.hierarchical.twins import Twins

timm = pytest.importorskip("timm", reason="timm is the reference of this file")

NAMES = ["twins_pcpvt_small", "twins_svt_small"]
SMALL = dict(
    depths=(1, 3, 2, 1), embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 3, 2), num_classes=7
)
SMALL["img_size"] = 64


@stored.each("pcpvt_model")
def test_model_against_the_authors_code(path):
    config, tensors = stored.read(path)
    names = "img_size", "patch_size", "num_classes", "embed_dims", "num_heads", "mlp_ratios", "depths", "sr_ratios"
    stored.assert_stored(Twins(**{name: config[name] for name in names}).eval(), tensors)


@pytest.mark.parametrize(
    "name, count",
    {
        "twins_pcpvt_small": 24_106_216,
        "twins_pcpvt_base": 43_828_456,
        "twins_pcpvt_large": 60_989_672,
        "twins_svt_small": 24_060_776,
        "twins_svt_base": 56_070_952,
        "twins_svt_large": 99_271_400,
    }.items(),
)
def test_parameters_are_those_of_timm(name, count):
    with uninitialised(), torch.device("meta"):
        ours, theirs = models.create_model(name), timm.create_model(name)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    assert models.describe(name).parameters == sum(p.numel() for p in theirs.parameters()) == count
    assert ours.no_weight_decay() == theirs.no_weight_decay()


def test_multiply_adds_are_those_of_the_paper():
    with torch.device("meta"):
        costs = models.count_costs(models.create_model("twins_svt_base"))
    assert costs.macs / 1e9 == pytest.approx(8.6, rel=0.02)


@pytest.mark.parametrize("size", [64, (101, 70)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_timm(name, size):
    """The odd size drops pixels, and its windows and reductions do not divide the maps."""
    assert_logits_agree(*pair(name, **SMALL), size)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_agree_with_timm(name):
    assert_gradients_agree(*pair(name, drop_path_rate=0.2, **SMALL), images((68, 72), 4))


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_those_of_timm(name):
    ours, theirs = pair(name, **SMALL)
    for index, row in enumerate(theirs.feature_info):
        row["module"] = f"blocks.{index}"  # there it is "block.0", which no module of it is called
    assert_intermediates_agree(ours, theirs, images((64, 32)))
    assert_maps(name, 64, **SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_as_a_backbone(name):
    model = models.create_model(name, drop_path_rate=0.3, **SMALL)
    assert_checkpointing_changes_nothing(model, images(32))
    assert_another_head(model, images(32))


def test_what_comes_after_the_last_map_is_gone():
    backbone = models.create_model("twins_svt_small", features_only=True, out_indices=[1], **SMALL)
    kept = {tuple(key.split(".")[1:3]) for key in backbone.state_dict()}
    assert kept == {(part, stage) for part in ("patch_embeds", "blocks", "pos_block") for stage in "01"}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m(torch.zeros(1, 3, 64, 31)), r"image is too small: got \(64, 31\); expected 32 pixels or more"),
        (lambda m: m(torch.zeros(3, 64, 64)), r"a batch of images: got shape \(3, 64, 64\)"),
        (lambda m: Twins(wss=(7, 7)), r"do not fit each other: got lengths .*'wss': 2"),
        (lambda m: m.reset_classifier(3, "max"), "pooling: got global_pool='max'"),
    ],
)
def test_bad_input(call, message):
    model = models.create_model("twins_pcpvt_small", **SMALL)
    with pytest.raises(ValueError, match=f"^Twins: .*{message}"):
        call(model)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
