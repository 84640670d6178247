"""PVT against the results of its authors' code and transformers: names, parameters, logits, gradients, positions."""

import pytest
import stored
import torch
import torch.nn.functional as F
from key_tables import assert_both_ways
from model_pairs import (
    assert_another_head,
    assert_checkpointing_changes_nothing,
    assert_maps,
    images,
    randomise,
    step,
)
from safetensors.torch import save_file
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models.hierarchical.pvt import PyramidVisionTransformer

SMALL = dict(
    depths=(1, 2, 1, 1), embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 3, 2), num_classes=7
)


def peer(img_size, depths, embed_dims, num_heads, mlp_ratios, num_classes):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference of this test")
    config = transformers.PvtConfig(
        image_size=img_size,
        depths=list(depths),
        hidden_sizes=list(embed_dims),
        num_attention_heads=list(num_heads),
        mlp_ratios=list(mlp_ratios),
        num_labels=num_classes,
    )
    return transformers.PvtForImageClassification(config).eval()


@pytest.fixture(params=[64, 96])
def pair(request):
    """(ours, that of transformers, pixels) with the same random weights, by the table of names."""
    theirs = randomise(peer(request.param, **SMALL))
    ours = models.create_model("pvt_tiny", img_size=request.param, embed_eps=1e-6, **SMALL).eval()
    assert_both_ways(ours, theirs)
    return ours, theirs, request.param


@stored.each("pvt_model")
def test_model_against_the_authors_code(path):
    config, tensors = stored.read(path)
    names = "img_size", "patch_size", "num_classes", "embed_dims", "num_heads", "mlp_ratios", "depths", "sr_ratios"
    model = PyramidVisionTransformer(**{name: config[name] for name in names}).eval()
    stored.assert_stored(model, tensors)


@pytest.mark.parametrize(
    "name, count", dict(pvt_tiny=13_229_288, pvt_small=24_485_864, pvt_medium=44_208_104, pvt_large=61_369_320).items()
)
def test_parameters_are_as_many_as_those_of_transformers(name, count):
    wide = dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4))
    with uninitialised(), torch.device("meta"):
        ours = models.create_model(name)
        theirs = peer(224, models.describe(name).arguments["depths"], num_classes=1000, **wide)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == count
    assert models.describe(name).parameters == count and models.describe(name).input_size == (3, 224, 224)
    assert {key for key in ours.state_dict() if "." not in key} == {"cls_token", *(f"pos_embed{k}" for k in "1234")}


def test_norms_have_the_eps_of_the_authors():
    """1e-5 after embeddings and reductions, 1e-6 elsewhere; transformers has one for all."""
    for options, embed in (({}, 1e-5), (dict(embed_eps=1e-6), 1e-6)):
        model = models.create_model("pvt_tiny", img_size=64, **SMALL, **options)
        found = {name: module.eps for name, module in model.named_modules() if hasattr(module, "eps")}
        assert found == {
            name: embed if name.endswith(("attn.norm", *(f"embed{k}.norm" for k in "1234"))) else 1e-6 for name in found
        }


def test_multiply_adds_are_those_of_the_paper():
    with torch.device("meta"):
        costs = models.count_costs(models.create_model("pvt_small"))
    assert costs.macs / 1e9 == pytest.approx(3.8, rel=0.02)


def test_logits_agree_with_transformers(pair):
    ours, theirs, size = pair
    x = images(size)
    with torch.no_grad():
        expected, actual = theirs(x).logits, ours(x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))
    assert expected.std() > 1e-2


def test_gradients_agree_with_transformers(pair):
    ours, theirs, size = pair
    theirs_logits = lambda x: theirs(x).logits  # noqa: E731
    x, results = images(size), []
    for model, call in ((ours, ours), (theirs, theirs_logits)):
        model.double()
        image = x.double().requires_grad_()
        logits = call(image)
        logits.square().sum().backward()
        results.append((logits, image.grad, {key: p.grad for key, p in model.named_parameters()}))
    (logits, d_image, found), (expected, d_expected, gradients) = results
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d_image, d_expected, rtol=1e-7, atol=1e-9 * d_expected.abs().max().item())
    gradients = models.convert_state_dict(gradients, "transformers_pvt")
    assert gradients.keys() == found.keys()
    for key, wanted in gradients.items():
        assert wanted.abs().max() > 0, key
        torch.testing.assert_close(found[key], wanted, rtol=1e-7, atol=1e-9 * wanted.abs().max().item())


def test_a_checkpoint_of_transformers_is_loaded(tmp_path):
    theirs = randomise(peer(64, **SMALL))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = models.create_model("pvt_tiny", img_size=64, embed_eps=1e-6, weights=tmp_path / "model.safetensors", **SMALL)
    x = images(64)
    torch.testing.assert_close(ours.eval()(x), theirs(x).logits, rtol=1e-5, atol=1e-5)


def test_positions_are_resampled_for_other_images():
    """As if the model had been built for them with positions between its own."""
    model = randomise(models.create_model("pvt_tiny", img_size=64, **SMALL)).eval()
    other = models.create_model("pvt_tiny", img_size=(100, 70), **SMALL).eval()
    state = model.state_dict()
    for index, (old, new) in enumerate(zip(model.grids, other.grids, strict=True), 1):
        position = state[f"pos_embed{index}"]
        prefix, position = position[:, : index // 4], position[:, index // 4 :]
        position = F.interpolate(position.mT.unflatten(2, old), new, mode="bilinear").flatten(2).mT
        state[f"pos_embed{index}"] = torch.cat([prefix, position], 1)
    other.load_state_dict(state)
    x = images((100, 70))
    assert other.grids == [(25, 17), (12, 8), (6, 4), (3, 2)]
    torch.testing.assert_close(model(x), other(x))


@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_as_a_backbone(pooling):
    model = models.create_model("pvt_tiny", img_size=64, global_pool=pooling, drop_path_rate=0.2, **SMALL)
    assert_checkpointing_changes_nothing(model, images(64))
    assert_another_head(model, images(64))
    assert model.no_weight_decay() == {"cls_token"}


def test_maps_are_the_tokens_of_stages():
    model = randomise(models.create_model("pvt_tiny", img_size=64, **SMALL)).eval()
    features, maps = model.forward_intermediates(images((64, 96)), norm=True, return_prefix_tokens=True)
    (last, prefix) = maps[-1]
    assert [tuple(one.shape[2:]) for one in maps[:-1]] == [(16, 24), (8, 12), (4, 6)]
    torch.testing.assert_close(torch.cat([prefix, last.flatten(2).mT], 1), features)
    assert_maps("pvt_tiny", 64, img_size=64, **SMALL)
    backbone = models.create_model("pvt_tiny", img_size=64, features_only=True, out_indices=[1], **SMALL)
    assert {key.split(".")[1] for key in backbone.state_dict()} == {
        part + k for part in ("patch_embed", "pos_embed", "block") for k in "12"
    }


def test_a_training_step_moves_every_parameter():
    _, _, gradients = step(models.create_model("pvt_tiny", img_size=64, drop_path_rate=0.1, **SMALL), images(64))
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m(torch.zeros(1, 3, 31, 64)), r"image is too small: got \(31, 64\); expected 32 pixels or more"),
        (lambda m: m(torch.zeros(1, 1, 64, 64)), r"a batch of images: got shape \(1, 1, 64, 64\)"),
        (lambda m: type(m)(img_size=16), r"image is too small: got img_size=\(16, 16\); expected 8 tokens or more"),
        (lambda m: type(m)(sr_ratios=(8, 4, 2, 2)), "class token is not reduced"),
        (lambda m: type(m)(num_heads=(1, 2)), "do not fit each other: got lengths"),
    ],
)
def test_bad_input(call, message):
    model = models.create_model("pvt_tiny", img_size=64, **SMALL)
    with pytest.raises(ValueError, match=f"^PyramidVisionTransformer: .*{message}"):
        call(model)
