"""What every image model offers besides its logits: maps, another head, gradient checkpointing, as timm does."""

import pytest
import torch
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models import Backbone, FeatureMaps

# A small one of each family that timm has: the same name and arguments build its peer.
SMALL = {
    "vit_tiny_patch16_224": dict(img_size=64, depth=4, embed_dim=48, num_heads=2),
    "deit_tiny_distilled_patch16_224": dict(img_size=64, depth=3, embed_dim=48, num_heads=2),
    "swin_tiny_patch4_window7_224": dict(img_size=64, embed_dim=24, depths=(1, 2, 1, 1), window_size=4),
    "swinv2_tiny_window8_256": dict(img_size=64, embed_dim=24, depths=(1, 1, 1, 1), window_size=4),
}
# And of those that it lacks.
OURS = {
    "nat_mini": dict(img_size=64, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), kernel_size=3),
    "vil_tiny_window7_224": dict(img_size=64, embed_dims=(12, 24, 24, 48), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)),
}

PLAIN = dict(img_size=32, depth=3, embed_dim=16, num_heads=2)
STAGES = dict(img_size=32, depths=(1, 1, 1, 1), embed_dims=(8, 16, 16, 16), num_heads=(1, 1, 1, 1))
# One of each kind that has parts of its own between the maps and the head, or a pooling.
PARTS = OURS | {
    "vit_tiny_patch16_224": PLAIN,
    "vit_giant_patch14_map_224": PLAIN | dict(img_size=28),
    "cpvt_tiny_patch16_224": PLAIN,
    "cait_xxs24_224": PLAIN,
    "convit_tiny": PLAIN | dict(embed_dim=8, local_up_to_layer=2),
    "dynamicvit_deit_s": PLAIN | dict(pruning_loc=(0, 1), token_ratio=(0.7, 0.5), patch_size=8),
    "davit_tiny": STAGES | dict(window_size=4),
    "pvt_tiny": STAGES,
    "sasa_resnet26": dict(
        img_size=32, depths=(1, 1, 1, 1), mid_chs=(8, 8, 8, 8), stem_chs=8, num_heads=2, kernel_size=3
    ),
    "vt_resnet18": dict(img_size=32, depths=(1, 1, 1), stem_chs=8, vt_depth=2, num_tokens=4, token_dim=16, num_heads=2),
}


def build(name, **overrides):
    torch.manual_seed(0)
    return models.create_model(name, num_classes=5, **{**SMALL, **OURS}[name], **overrides).eval()


def part(name, **overrides):
    """A small one of `PARTS`."""
    torch.manual_seed(0)
    return models.create_model(name, **{**dict(num_classes=5), **PARTS[name], **overrides})


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("name", SMALL)
def test_intermediates_are_those_of_timm(name, image):
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    ours = build(name)
    with uninitialised():
        theirs = timm.create_model(name, num_classes=5, **SMALL[name]).eval()
    theirs.load_state_dict(ours.state_dict())
    for arguments in (dict(), dict(indices=2), dict(indices=[0, -1], norm="vit" in name), dict(indices=[1])):
        features, maps = ours.forward_intermediates(image, **arguments)
        expected, wanted = theirs.forward_intermediates(image, **arguments)
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
        assert len(maps) == len(wanted)
        for own, other in zip(maps, wanted, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    rows = [{key: row[key] for key in ("num_chs", "reduction", "module")} for row in ours.feature_info]
    assert rows == [{key: row[key] for key in rows[0]} for row in theirs.feature_info]


@pytest.mark.parametrize("name", [*SMALL, *OURS])
def test_maps_are_what_feature_info_says(name, image):
    model = build(name)
    whole = model.forward_intermediates(image, intermediates_only=True)
    backbone = models.create_model(
        name, features_only=True, num_classes=5, out_indices=[0, 1], **{**SMALL, **OURS}[name]
    ).eval()
    assert isinstance(backbone, FeatureMaps)
    found = backbone.model.load_state_dict(model.state_dict(), strict=False)
    assert not found.missing_keys and found.unexpected_keys, "what comes after the last map is gone"
    maps = backbone(image)
    for index, (one, row) in enumerate(zip(maps, model.feature_info, strict=False)):
        side = -(-64 // row["reduction"])
        assert one.shape == (2, row["num_chs"], side, side)
        torch.testing.assert_close(one, whole[index], rtol=1e-6, atol=1e-6)
    assert backbone.feature_info.channels() == [one.shape[1] for one in maps]
    assert backbone.feature_info.reduction(1) == model.feature_info[1]["reduction"]
    sum(one.sum() for one in maps).backward()
    assert all(p.grad is not None for p in backbone.model.blocks.parameters()) if hasattr(model, "blocks") else True


@pytest.mark.parametrize("name", [*SMALL, *OURS])
def test_another_head_is_trained_from_its_start(name, image):
    model = build(name).double()
    before = model.forward_features(image.double())
    model.reset_classifier(7)
    assert model.num_classes == 7 and model(image.double()).shape == (2, 7)
    assert model.get_classifier() is not None and len(list(model.get_classifier().parameters())) in (2, 4)
    model.reset_classifier(0)
    assert torch.equal(model(image.double()), model.forward_head(before, pre_logits=True))
    assert model(image.double()).shape == (2, model.num_features)


@pytest.mark.parametrize("name", [*SMALL, *OURS])
def test_checkpointed_blocks_give_the_same_gradients(name, image):
    model, grads = build(name).train(), []
    for drop in model.modules():
        if type(drop).__name__ == "DropPath":
            drop.drop_prob = 0.0
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(image).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_prefix_tokens_and_rows_of_tokens(image):
    model = build("vit_tiny_patch16_224", reg_tokens=2)
    ((one, prefix),) = model.forward_intermediates(
        image, indices=1, return_prefix_tokens=True, intermediates_only=True, stop_early=True
    )
    assert one.shape == (2, 48, 4, 4) and prefix.shape == (2, 3, 48)
    (rows,) = model.forward_intermediates(image, indices=1, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(rows, one.flatten(2).transpose(1, 2))


def test_wrong_indices_say_which_there_are(image):
    model = build("vit_tiny_patch16_224")
    for indices in (5, 0, [4], [-5], []):
        with pytest.raises(ValueError, match=r"VisionTransformer: there is no such feature: got .*some of 0 to 3"):
            model.forward_intermediates(image, indices=indices)
    with pytest.raises(ValueError, match="unknown format: got output_fmt='NHWC'"):
        model.forward_intermediates(image, output_fmt="NHWC")


def test_every_image_model_is_a_backbone():
    seen = {models.registry.resolve(name).build for name in models.list_models()}
    images = [build for build in seen if issubclass(build, Backbone)]
    assert len(images) >= 6


@pytest.mark.parametrize("name", PARTS)
def test_every_parameter_of_a_backbone_is_trained(name):
    """Or is none that wants a gradient: data-parallel training waits for those that never come."""
    x = torch.randn(2, *part(name).input_size)
    for indices in ([0], [-1], None):
        maps = part(name, features_only=True, out_indices=indices).train()
        sum(one.square().sum() for one in maps(x)).backward()
        assert not [key for key, p in maps.named_parameters() if p.requires_grad and p.grad is None], indices
        assert len(maps.eval()(x)) == len(maps.out_indices)


@pytest.mark.parametrize("name", PARTS)
def test_another_pooling_is_one_that_can_be_built(name):
    """What a model is not built with it is not reset to, and what it is not decayed it has."""
    for kind in ("token", "max", "none"):
        model = part(name)
        try:
            part(name, global_pool=kind)
        except (TypeError, ValueError):  # nobody gives it a pooling, or not this one
            with pytest.raises(ValueError, match=r"unknown pooling: got|no token to pool: got"):
                model.reset_classifier(3, kind)
        else:
            model.reset_classifier(3, kind)
            assert model.global_pool == kind
    assert model.no_weight_decay() <= {key for key, _ in model.named_parameters()}


@pytest.mark.parametrize("name", PARTS)
def test_what_is_no_batch_of_images(name):
    model = part(name).eval()
    channels, *size = model.input_size
    for shape in ((1, channels + 1, *size), (channels, *size)):
        with pytest.raises(ValueError, match=r"not a batch of images: got shape .*; expected \(B, 3, height, width\)"):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"(got|img_size=) ?\(0, 64\).*; expected "):
        model(torch.zeros(1, channels, 0, 64))


def test_maps_are_asked_for_where_there_are_some():
    with pytest.raises(ValueError, match=r"got out_indices=\[0\] without features_only=True; expected both"):
        part("vit_tiny_patch16_224", out_indices=[0])
    with torch.device("meta"), pytest.raises(ValueError, match=r"features_only=True for 'bert_base', a Bert; expected"):
        models.create_model("bert_base", depth=1, features_only=True)
