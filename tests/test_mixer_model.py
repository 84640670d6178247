"""MLP-Mixer against timm's."""

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
    same_weights,
)
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models.plain.mixer import MlpMixer

timm = pytest.importorskip("timm", reason="timm is the reference of this file")

Peer = timm.models.mlp_mixer.MlpMixer
SMALL = dict(embed_dim=32, num_blocks=2, img_size=(48, 80), num_classes=5)
COUNTS = {
    "mixer_s32_224": 19_104_624,
    "mixer_s16_224": 18_528_264,
    "mixer_b32_224": 60_293_428,
    "mixer_b16_224": 59_880_472,
    "mixer_l32_224": 206_939_264,
    "mixer_l16_224": 208_196_168,
    "mixer_h14_224": 432_350_952,  # 431 million without the head, as published
}


def built(**options):
    """(ours, timm's) with the same random weights."""
    with uninitialised():
        return same_weights(MlpMixer(**SMALL | options), Peer(**SMALL | options))


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_timm(name):
    with uninitialised(), torch.device("meta"):
        ours = models.create_model(name)
        theirs = timm.create_model(name) if name in timm.list_models() else ours
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    assert models.describe(name).parameters == COUNTS[name] == sum(p.numel() for p in theirs.parameters())
    assert models.describe(name).input_size == (3, 224, 224)


@pytest.mark.parametrize("options", [dict(), dict(mlp_ratio=(1.5, 2.0), global_pool=""), dict(num_classes=0)], ids=str)
def test_logits_agree_with_timm(options):
    ours, theirs = built(**options)
    assert_logits_agree(ours, theirs, SMALL["img_size"])
    assert_intermediates_agree(ours, theirs, images(SMALL["img_size"]))


def test_gated_perceptrons_are_those_of_timm():
    theirs = Peer(**SMALL, mlp_layer=timm.layers.GluMlp, act_layer=torch.nn.GELU)
    assert_logits_agree(*same_weights(MlpMixer(**SMALL, mlp_layer="geglu"), theirs), SMALL["img_size"])


def test_gradients_agree_with_timm():
    ours, theirs = built(drop_path_rate=0.2)
    assert_gradients_agree(ours, theirs, images(SMALL["img_size"], 4))


def test_a_random_start_follows_timm():
    ours, theirs = (build(num_blocks=1, patch_size=32) for build in (MlpMixer, Peer))
    peers = dict(theirs.named_parameters())
    for key, p in ours.named_parameters():
        if key.endswith("weight") and "stem" not in key and "norm" not in key:
            assert abs(p.std() - peers[key].std()) <= 0.1 * peers[key].std(), key
    assert not ours.head.weight.any() and not ours.head.bias.any()


def test_as_a_backbone():
    assert_maps("mixer_s16_224", SMALL["img_size"], **SMALL | dict(num_blocks=3))
    model, x = models.create_model("mixer_s16_224", **SMALL), images(SMALL["img_size"])
    assert_another_head(model, x)
    assert_checkpointing_changes_nothing(model, x)


def test_bad_input():
    with pytest.raises(
        ValueError, match="MlpMixer: unknown pooling: got global_pool='token'; expected one of 'avg', ''"
    ):
        MlpMixer(global_pool="token")
    with pytest.raises(ValueError, match=r"the image size differs.*got \(48, 64\); expected \(48, 80\)"):
        MlpMixer(**SMALL)(torch.zeros(1, 3, 48, 64))
