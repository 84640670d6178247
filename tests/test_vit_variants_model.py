"""ViTs beyond the first: other heads, perceptrons, norms; DINOv2, larger sizes, tokens of one pixel; against timm."""

import re

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
    randomise,
    same_weights,
)
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models.plain.vit import VisionTransformer
from vitkern.nn import GluMlp as GatedMlp

timm = pytest.importorskip("timm", reason="timm is the reference of this file")
from timm.layers import GluMlp, SwiGLUPacked  # noqa: E402
from timm.models.vision_transformer import VisionTransformer as Peer  # noqa: E402

NAMED = [name for name in models.list_models() if re.fullmatch(r"vit_.*(dinov2|(giant|gigantic)_patch14_224)", name)]
SMALL = dict(embed_dim=48, num_heads=3, depth=2, img_size=(48, 80), num_classes=7)
# Ours -> timm's, where a name stands for a class.
GATED = {
    "swiglu": dict(mlp_layer=SwiGLUPacked, act_layer=torch.nn.SiLU),
    "glu": dict(mlp_layer=GluMlp, act_layer=torch.nn.Sigmoid),
    "bilinear": dict(mlp_layer=GluMlp, act_layer=torch.nn.Identity),
    "reglu": dict(mlp_layer=GluMlp, act_layer=torch.nn.ReLU),
    "geglu": dict(mlp_layer=GluMlp, act_layer=torch.nn.GELU),
}


def built(theirs=None, **ours):
    """(ours, timm's) of these arguments, those of timm replaced by ``theirs``."""
    peer = {key: value for key, value in ours.items() if key != "mlp_layer"} | (theirs or {})
    with uninitialised():
        return same_weights(VisionTransformer(**SMALL | ours), Peer(**SMALL | peer))


@pytest.mark.parametrize("name", NAMED)
def test_parameters_are_those_of_timm(name):
    with uninitialised(), torch.device("meta"):
        ours, theirs = models.create_model(name), timm.create_model(name)
        description = models.describe(name)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    assert (ours.num_classes, description.input_size) == (theirs.num_classes, timm.get_pretrained_cfg(name).input_size)


@pytest.mark.parametrize(
    "name, classes, count",
    [
        ("vit_giant_patch14_dinov2", 0, 1_136_479_232),
        ("vit_giant_patch14_reg4_dinov2", 0, 1_136_483_840),
        ("vit_giant_patch14_224", 1000, 1_012_611_432),
        ("vit_gigantic_patch14_224", 1000, 1_844_440_680),
        ("vit_e_patch14_224", 29593, 3_926_402_969),  # as published, with the head of its training
        ("vit_e_patch14_224", 0, 3_873_342_720),
        ("vit_base_patch1_224", 1000, 86_567_656 - 196 * 768 - 768 * 765 + 50_176 * 768),
    ],
)
def test_published_parameter_counts(name, classes, count):
    with uninitialised(), torch.device("meta"):
        model = models.create_model(name, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == count


DINOV2 = pytest.mark.parametrize("name", ["vit_giant_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])


def pair_of_dinov2(name):
    return pair(name, embed_dim=48, num_heads=3, depth=2, img_size=56, dynamic_img_size=True)


@DINOV2
def test_logits_of_dinov2_agree_with_timm(name):
    ours, theirs = pair_of_dinov2(name)
    for size in (56, (42, 84)):
        assert_logits_agree(ours, theirs, size)
    assert_intermediates_agree(ours, theirs, images((28, 70)))


@DINOV2
def test_gradients_of_dinov2_agree_with_timm(name):
    assert_gradients_agree(*pair_of_dinov2(name), images(56))


@pytest.mark.parametrize("name", ["vit_giant_patch14_224", "vit_gigantic_patch14_224"])
def test_logits_of_heads_that_are_no_power_of_two_wide(name):
    heads = models.describe(name).arguments
    width = heads["embed_dim"] // heads["num_heads"]
    assert width in (88, 104)
    assert_logits_agree(*pair(name, embed_dim=2 * width, num_heads=2, depth=1, img_size=42, num_classes=5), 42)


@pytest.mark.parametrize("kind", GATED)
def test_logits_of_gated_perceptrons_agree_with_timm(kind):
    assert_logits_agree(*built(GATED[kind], mlp_layer=kind, mlp_ratio=3.0), SMALL["img_size"])


OPTIONS = pytest.mark.parametrize(
    "options",
    [
        dict(global_pool="map", reg_tokens=2),
        dict(global_pool="map", class_token=False),
        dict(pre_norm=True, pos_embed="none"),
        dict(pre_norm=True, no_embed_class=True, drop_path_rate=0.2),
    ],
    ids=str,
)


@OPTIONS
def test_logits_agree_with_timm(options):
    assert_logits_agree(*built(**options), SMALL["img_size"])


@OPTIONS
def test_gradients_agree_with_timm(options):
    assert_gradients_agree(*built(**options), images(SMALL["img_size"], 4))


def test_gradients_of_gated_perceptrons_agree_with_timm():
    ours, theirs = built(GATED["swiglu"], mlp_layer="swiglu", init_values=0.3, drop_path_rate=0.2)
    assert_gradients_agree(ours, theirs, images(SMALL["img_size"]))
    assert_checkpointing_changes_nothing(ours.float(), images(SMALL["img_size"]))


def test_another_pooling():
    model = VisionTransformer(**SMALL, global_pool="map")
    x = images(SMALL["img_size"])
    assert_another_head(model, x)
    model.reset_classifier(3, "avg")
    assert model.attn_pool is None and not [name for name in model.state_dict() if name.startswith("attn_pool")]
    torch.testing.assert_close(model(x), model.head(model.forward_features(x)[:, 1:].mean(1)))
    with pytest.raises(ValueError, match=r"no latents to pool with: got global_pool='map'.*built with 'map'"):
        model.reset_classifier(3, "map")


@pytest.mark.parametrize("pooled", ["map", "avg"])
def test_a_backbone_does_not_pool(pooled):
    maps = models.create_model("vit_tiny_patch16_224", features_only=True, **SMALL, global_pool=pooled)
    assert {name.split(".")[1] for name, _ in maps.named_parameters()} == {
        "cls_token", "pos_embed", "patch_embed", "blocks"
    }  # fmt: skip


PYRAMID = dict(depths=(1, 1, 1, 1), embed_dims=(16, 16, 16, 16), num_heads=(1, 1, 1, 1))
# A small one of each family beside the plain ones.
OTHERS = {
    "swin_tiny_patch4_window7_224": dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2)),
    "swinv2_tiny_window8_256": dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2)),
    "nat_mini": dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2), kernel_size=3),
    "vil_tiny_window7_224": dict(embed_dims=(16, 16, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)),
    "vitdet_base": dict(embed_dim=16, depth=1, num_heads=1),
    "pvt_tiny": PYRAMID,
    "cvt_13": PYRAMID | dict(depths=(1, 1, 1), embed_dims=(16, 16, 16), num_heads=(1, 1, 1)),
    "twins_pcpvt_small": PYRAMID,
    "davit_tiny": PYRAMID | dict(window_size=4),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_model_has_gated_perceptrons(name):
    model = randomise(models.create_model(name, **OTHERS[name], img_size=32, mlp_layer="swiglu"))
    gated = [module for module in model.modules() if isinstance(module, GatedMlp)]
    assert len(gated) == sum(OTHERS[name].get("depths", (1,))) * (2 if name.startswith("davit") else 1)
    assert all(module.act == "silu" and not module.gate_last for module in gated)
    model(images(32)).square().sum().backward()
    assert all(module.fc1.weight.grad.abs().max() > 0 for module in gated)


PIXELS = dict(embed_dim=16, num_heads=1, depth=1, img_size=64, num_classes=5)


def pair_of_pixels():
    """4096 tokens."""
    with uninitialised():
        theirs = Peer(patch_size=1, **PIXELS)
    return same_weights(models.create_model("vit_tiny_patch1_224", **PIXELS), theirs)


def test_logits_of_pixels_agree_with_timm():
    assert_logits_agree(*pair_of_pixels(), 64, batch=1)
    assert_maps("vit_tiny_patch1_224", 4, **PIXELS | dict(img_size=4, depth=3))


def test_gradients_of_pixels_agree_with_timm():
    assert_gradients_agree(*pair_of_pixels(), images(64, 1))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(mlp_layer="relu"), "unknown perceptron: got mlp_layer='relu'; expected one of mlp, glu, bilinear"),
        (dict(mlp_layer="glu", mlp_ratio=1.03), "no common width: got 49 hidden channels"),
        (dict(pos_embed="sincos"), "unknown positions: got pos_embed='sincos'"),
        (dict(img_size=8), r"PatchEmbed: the image holds no patch: got img_size=\(8, 8\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**SMALL | options)


def test_a_random_start_follows_timm():
    ours, theirs = VisionTransformer(**SMALL, global_pool="map"), Peer(**SMALL, global_pool="map")
    peers = dict(theirs.named_parameters())
    for key, p in ours.named_parameters():
        if p.numel() >= 1000:
            assert abs(p.std() - peers[key].std()) <= 0.1 * peers[key].std() + 1e-3, key


def test_weights_without_a_head_load():
    whole = randomise(VisionTransformer(**SMALL, global_pool="map"))
    bare = VisionTransformer(**SMALL | dict(num_classes=0), global_pool="map")
    bare.load_state_dict({key: value for key, value in whole.state_dict().items() if not key.startswith("head.")})
