"""MobileViT v1 and v2 against timm's with the same random weights: counts, logits, gradients, maps, odd images."""

import model_pairs
import pytest
import torch
from checkpoints import assert_blocks_run_again
from uninitialised import uninitialised

import vitkern.models as models

# As timm's own and transformers' MobileViTForImageClassification.
COUNTS = {
    "mobilevit_xxs": 1_272_024, "mobilevit_xs": 2_317_848, "mobilevit_s": 5_578_632,
    "mobilevitv2_050": 1_370_593, "mobilevitv2_075": 2_866_009, "mobilevitv2_100": 4_901_841,
    "mobilevitv2_125": 7_478_089, "mobilevitv2_150": 10_594_753, "mobilevitv2_175": 14_251_833,
    "mobilevitv2_200": 18_449_329,
}  # fmt: skip
# Biases that the next BatchNorm takes away.
BEFORE_BATCH_NORM = "conv3_1x1.bn.bias", "conv_proj.bn.bias", "1.norm.bias"
SMALL = "mobilevit_xxs", "mobilevitv2_050"


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_timm(name):
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    with uninitialised(), torch.device("meta"):
        ours, theirs = models.create_model(name), timm.create_model(name)
        description = models.describe(name)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    assert description.parameters == COUNTS[name] == sum(p.numel() for p in theirs.parameters())
    assert description.input_size == timm.get_pretrained_cfg(name).input_size
    assert description.input_rule == "image 3 x 256 x 256, or any size"
    eps = [{m.eps for m in model.modules() if hasattr(m, "eps")} for model in (ours, theirs)]
    assert eps[0] == eps[1] == {1e-5}


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_maps_agree_with_timm(name):
    """Sizes with whole patches in every stage, and such that each block resizes, or two of three."""
    pytest.importorskip("timm", reason="timm is the reference of this test")
    ours, theirs = model_pairs.pair(name, num_classes=5, drop_path_rate=0.2)
    for size in (64, (70, 90), (36, 56)):
        model_pairs.assert_logits_agree(ours, theirs, size)
    model_pairs.assert_intermediates_agree(ours, theirs, model_pairs.images((64, 80), 1))


@pytest.mark.parametrize("name", SMALL)
def test_gradients_agree_with_timm(name):
    pytest.importorskip("timm", reason="timm is the reference of this test")
    pair = model_pairs.pair(name, num_classes=5, drop_path_rate=0.2)
    model_pairs.assert_gradients_agree(*pair, model_pairs.images((48, 80), 3), BEFORE_BATCH_NORM)


@pytest.mark.parametrize("name", SMALL)
def test_as_a_backbone(name):
    x = model_pairs.images(64, 2)
    model = models.create_model(name, num_classes=5)
    model_pairs.assert_checkpointing_changes_nothing(model, x)
    assert_blocks_run_again(model, [model.stages[1][0], model.stages[3][1]], x)
    model_pairs.assert_another_head(model, x)
    model_pairs.assert_maps(name, 64)


def test_both_memory_formats_give_the_same(name="mobilevit_xxs"):
    model = models.create_model(name, num_classes=3).eval()
    x = model_pairs.images((64, 96), 1)
    torch.testing.assert_close(model(x), model(x.contiguous(memory_format=torch.channels_last)))
    torch.testing.assert_close(model(x), model(x.transpose(2, 3).contiguous().transpose(2, 3)))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(transformer_depths=(2, 2)), r"MobileViT: stages do not fit each other: .*transformer_depths=\(2, 2\)"),
        (dict(transformer_dims=(66, 80, 96)), r"do not split into heads: got dim=66, num_heads=4"),
        (dict(global_pool="token"), "unknown pooling: got global_pool='token'"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        models.create_model("mobilevit_xxs", **changes)


def test_bad_images():
    with pytest.raises(ValueError, match=r"MobileViTV2: not a batch of images: got shape \(3, 64, 64\)"):
        models.create_model("mobilevitv2_050")(torch.zeros(3, 64, 64))
