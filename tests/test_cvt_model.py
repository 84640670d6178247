"""CvT against the results of its authors' code and transformers: names, parameters, logits, gradients, maps."""

import pytest
import stored
import torch
from key_tables import assert_both_ways
from model_pairs import (
    assert_another_head,
    assert_checkpointing_changes_nothing,
    images,
    randomise,
)
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models.hierarchical.cvt import ConvolutionalVisionTransformer

# transformers' model needs a block more in each stage: it looks rates of blocks up by the number of the stage.
SMALL = dict(depths=(1, 2, 3), embed_dims=(16, 32, 48), num_heads=(1, 2, 3), mlp_ratios=(2.0, 3.0, 2.0), num_classes=7)


def peer(depths, embed_dims, num_heads, mlp_ratios, num_classes):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference of this test")
    config = transformers.CvtConfig(
        depth=list(depths),
        embed_dim=list(embed_dims),
        num_heads=list(num_heads),
        mlp_ratio=list(mlp_ratios),
        num_labels=num_classes,
        drop_path_rate=[0.0] * 3,
    )
    return transformers.CvtForImageClassification(config).eval()


@pytest.fixture
def pair():
    """(ours, that of transformers) with the same random weights, by the table of names."""
    theirs = randomise(peer(**SMALL))
    ours = models.create_model("cvt_13", drop_path_rate=0.0, **SMALL).eval()
    assert_both_ways(ours, theirs)
    return ours, theirs


@stored.each("cvt_model")
def test_model_against_the_authors_code(path):
    config, tensors = stored.read(path)
    names = dict(embed_dims="DIM_EMBED", depths="DEPTH", num_heads="NUM_HEADS", mlp_ratios="MLP_RATIO")
    model = ConvolutionalVisionTransformer(num_classes=5, **{ours: config[theirs] for ours, theirs in names.items()})
    stored.assert_stored(model.eval(), tensors, lambda x: model(x)[0])  # theirs drops the batch of one


@pytest.mark.parametrize(
    "name, count, size",
    [
        ("cvt_13", 19_997_480, 224),
        ("cvt_13_384", 19_997_480, 384),
        ("cvt_21", 31_622_696, 224),
        ("cvt_21_384", 31_622_696, 384),
        ("cvt_w24_384", 277_196_392, 384),
    ],
)
def test_parameters_are_as_many_as_those_of_transformers(name, count, size):
    description = models.describe(name)
    shape = dict(embed_dims=(64, 192, 384), depths=(1, 2, 10), num_heads=(1, 3, 6)) | description.arguments
    with uninitialised(), torch.device("meta"):
        keys = "depths", "embed_dims", "num_heads"
        theirs = peer(mlp_ratios=(4.0,) * 3, num_classes=1000, **{key: shape[key] for key in keys})
    assert description.parameters == sum(p.numel() for p in theirs.parameters()) == count
    assert description.input_size == (3, size, size)


def test_multiply_adds_are_those_of_the_paper():
    with torch.device("meta"):
        costs = models.count_costs(models.create_model("cvt_13_384"))
    assert costs.macs / 1e9 == pytest.approx(16.3, rel=0.02)


@pytest.mark.parametrize("size", [64, (61, 90)], ids=str)
def test_logits_agree_with_transformers(pair, size):
    ours, theirs = pair
    x = images(size)
    with torch.no_grad():
        expected, actual = theirs(x, output_hidden_states=True), ours(x)
        maps = ours.forward_intermediates(x, intermediates_only=True, return_prefix_tokens=True)
    largest = max(1.0, expected.logits.abs().max().item())
    torch.testing.assert_close(actual, expected.logits, rtol=1e-5, atol=1e-5 * largest)
    assert expected.logits.std() > 1e-2
    maps[-1] = maps[-1][0]
    for one, other, row in zip(maps, expected.hidden_states, ours.feature_info, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item()))
        assert row["num_chs"] == one.shape[1]


@pytest.mark.parametrize("training", [False, True])
def test_gradients_agree_with_transformers(pair, training):
    """In training BatchNorm takes the statistics of the batch, and both keep the same running ones."""
    ours, theirs = pair
    x, results = images((36, 40)), []
    for model in (ours, theirs):
        model.double().train(training)
        image = x.double().requires_grad_()
        logits = model(image)
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        logits.square().sum().backward()
        results.append((logits, image.grad, {key: p.grad for key, p in model.named_parameters()}))
    (logits, d_image, found), (expected, d_expected, gradients) = results
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d_image, d_expected, rtol=1e-7, atol=1e-9 * d_expected.abs().max().item())
    gradients = models.convert_state_dict(gradients, "transformers_cvt")
    assert gradients.keys() == found.keys()
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for key, wanted in gradients.items():
        # Keys that all move alike change nothing, nor does a query in the last block but that of the class token.
        still = ".bn.bias" in key or "proj_k.bias" in key or key.startswith("stage2.blocks.2.attn.conv_proj_q")
        assert still or wanted.abs().max() > 0, key
        torch.testing.assert_close(
            found[key], wanted, rtol=1e-7, atol=1e-9 * (largest if still else wanted.abs().max().item())
        )
    state = models.convert_state_dict(theirs.state_dict(), "transformers_cvt")
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, state[key])


@pytest.mark.parametrize("options", [{}, dict(class_token=False, global_pool="avg")], ids=str)
def test_as_a_backbone(options):
    model = models.create_model("cvt_13", drop_path_rate=0.2, **SMALL, **options)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # a block that runs again counts its batch again
    assert_checkpointing_changes_nothing(model, images(32))
    assert_another_head(model, images(32))
    assert model.no_weight_decay() == ({"stage2.cls_token"} if not options else set())


def test_what_comes_after_the_last_map_is_gone():
    whole = models.create_model("cvt_13", **SMALL).eval()
    backbone = models.create_model("cvt_13", features_only=True, out_indices=[0, 1], **SMALL).eval()
    found = backbone.model.load_state_dict(whole.state_dict(), strict=False)
    assert not found.missing_keys and {key.split(".")[0] for key in found.unexpected_keys} == {"stage2", "norm", "head"}
    x = images((32, 48))
    for one, other in zip(backbone(x), whole.forward_intermediates(x, intermediates_only=True), strict=False):
        torch.testing.assert_close(one, other)
    assert [tuple(one.shape) for one in backbone(x)] == [(2, 16, 8, 12), (2, 32, 4, 6)]


def test_only_the_last_stage_drops_branches():
    model = models.create_model("cvt_13", drop_path_rate=0.3, **SMALL)
    rates = [[block.drop_path2.drop_prob for block in stage.blocks] for stage in model.stages]
    assert rates == [[0.0], [0.0, 0.0], pytest.approx([0.0, 0.15, 0.3])]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m(torch.zeros(1, 3, 2, 64)), r"image is too small: got \(2, 64\); expected 3 pixels or more"),
        (lambda m: m(torch.zeros(1, 4, 64, 64)), r"a batch of images: got shape \(1, 4, 64, 64\)"),
        (lambda m: type(m)(class_token=False), "token to pool: got global_pool='token', class_token=False"),
        (lambda m: type(m)(depths=(1, 1)), "do not fit each other: got lengths"),
    ],
)
def test_bad_input(call, message):
    model = models.create_model("cvt_13", **SMALL)
    with pytest.raises(ValueError, match=f"^ConvolutionalVisionTransformer: .*{message}"):
        call(model)
    assert model.eval()(torch.zeros(1, 3, 3, 3)).shape == (1, 7)
