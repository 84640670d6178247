"""The huge and the giant SwinV2: published sizes; and their norms on the main branch, against timm's blocks."""

import pytest
import torch
from model_pairs import (
    assert_checkpointing_changes_nothing,
    assert_gradients_agree,
    assert_logits_agree,
    images,
    same_weights,
)
from torch import nn
from uninitialised import uninitialised

import vitkern.models as models

timm = pytest.importorskip("timm", reason="timm is the reference of this file")

NORMS = {"swinv2_huge_window12_192": (18 // 6) * 2 * 4 * 352, "swinv2_giant_window12_192": (42 // 6) * 2 * 4 * 512}
SMALL = dict(img_size=64, window_size=4, embed_dim=16, depths=(1, 2, 7, 3), num_heads=(1, 2, 2, 4), num_classes=7)


@pytest.mark.parametrize("name, published", [*zip(NORMS, (658e6, 3.0e9), strict=True)])
def test_parameters_are_those_of_timms_blocks_and_the_norms(name, published):
    arguments = dict(models.describe(name).arguments)
    assert arguments.pop("extra_norm_period") == 6
    with uninitialised(), torch.device("meta"):
        ours, theirs = models.create_model(name), timm.models.SwinTransformerV2(**arguments)
    count = sum(p.numel() for p in ours.parameters())
    assert count == models.describe(name).parameters == sum(p.numel() for p in theirs.parameters()) + NORMS[name]
    assert count == pytest.approx(published, rel=1e-3)
    norms = {key for key in ours.state_dict() if "norm3" in key}
    assert norms == ours.state_dict().keys() - {k for k in theirs.state_dict() if "relative_position_index" not in k}
    assert len(norms) == 2 * len({key.rsplit(".", 2)[0] for key in norms}) == 2 * (arguments["depths"][2] // 6)
    assert {int(key.split(".")[3]) % 6 for key in norms} == {5} and {key.split(".")[1] for key in norms} == {"2"}


@pytest.fixture
def pair():
    """(ours with a norm after every third block, timm's blocks with one attached), the same random weights."""
    theirs = timm.models.SwinTransformerV2(**SMALL, drop_path_rate=0.1)
    for stage, depth in enumerate(SMALL["depths"]):
        for block in [theirs.layers[stage].blocks[index] for index in range(2, depth, 3)]:
            block.norm3 = nn.LayerNorm(SMALL["embed_dim"] << stage)
            block.register_forward_hook(lambda module, inputs, out: module.norm3(out))
    ours = models.create_model("swinv2_giant_window12_192", **SMALL, extra_norm_period=3)
    assert sum("norm3" in key for key in ours.state_dict()) == 2 * 3
    return same_weights(ours, theirs)


def test_logits_agree_with_timms_blocks(pair):
    assert_logits_agree(*pair, 64)


def test_gradients_agree_with_timms_blocks(pair):
    assert_gradients_agree(*pair, images(64))


def test_checkpointing_changes_nothing(pair):
    assert_checkpointing_changes_nothing(pair[0], images(64))
