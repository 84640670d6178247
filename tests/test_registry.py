"""Names: what is listed, what a hub id means, what an unknown name says."""

import re

import pytest
import torch

import vitkern.models as models
from vitkern.models import hub

GOOGLE = {
    "google/vit-base-patch16-224": ("vit_base_patch16_224", 1000),
    "google/vit-base-patch16-224-in21k": ("vit_base_patch16_224", 0),
    "google/vit-base-patch16-384": ("vit_base_patch16_384", 1000),
    "google/vit-base-patch32-384": ("vit_base_patch32_384", 1000),
    "google/vit-base-patch32-224-in21k": ("vit_base_patch32_224", 0),
    "google/vit-large-patch16-224": ("vit_large_patch16_224", 1000),
    "google/vit-large-patch16-224-in21k": ("vit_large_patch16_224", 0),
    "google/vit-large-patch16-384": ("vit_large_patch16_384", 1000),
    "google/vit-large-patch32-224-in21k": ("vit_large_patch32_224", 0),
    "google/vit-large-patch32-384": ("vit_large_patch32_384", 1000),
    "google/vit-huge-patch14-224-in21k": ("vit_huge_patch14_224", 0),
}
FACEBOOK = {
    f"facebook/deit-{size}{distilled}-patch16-{pixels}": (
        f"deit_{size}{distilled.replace('-', '_')}_patch16_{pixels}",
        1000,
    )
    for size, pixels in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384))
    for distilled in ("", "-distilled")
}


def test_list_models_matches_globs_in_natural_order():
    assert models.list_models("vit_base_patch16_*") == ["vit_base_patch16_224", "vit_base_patch16_384"]
    assert models.list_models("swinv2_tiny*") == ["swinv2_tiny_window8_256", "swinv2_tiny_window16_256"]
    assert models.list_models("nothing*") == []
    assert len(models.list_models()) == len(set(models.list_models())) >= 44


@pytest.mark.parametrize("name", [*GOOGLE, *FACEBOOK])
def test_hub_ids_resolve(name):
    architecture, classes = {**GOOGLE, **FACEBOOK}[name]
    found = models.describe(name)
    plain = models.describe(architecture)
    assert found.num_classes == classes and found.input_size == plain.input_size
    with torch.device("meta"):
        model = models.create_model(name)
    assert {m.eps for m in model.modules() if hasattr(m, "eps")} == {1e-12}
    assert type(model) is models.registry.resolve(architecture).build


@pytest.mark.parametrize("name", list(hub.CONFIGS))
def test_published_configurations_build_the_same_model_in_transformers(name):
    transformers = pytest.importorskip("transformers", reason="it is the reference of this test")
    config = hub.config(name)
    built = transformers.AutoConfig.for_model(**config)
    for key, value in config.items():
        assert getattr(built, key) == value, f"transformers does not know {key}"
    head = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        peer = head(built)
    own = models.describe(name)
    parameters = sum(
        p.numel()
        for key, p in peer.named_parameters()
        if not key.startswith("pooler.") and not key.endswith("mask_token")
    )
    assert own.parameters == parameters
    assert own.input_size == (built.num_channels, built.image_size, built.image_size)


def test_configurations_are_copies():
    hub.config("microsoft/swin-tiny-patch4-window7-224")["depths"].append(1)
    assert hub.config("microsoft/swin-tiny-patch4-window7-224")["depths"] == [2, 2, 6, 2]
    with pytest.raises(ValueError, match="no published configuration is known: got 'timm/vit_tiny_patch16_224'"):
        hub.config("timm/vit_tiny_patch16_224")


def test_tags_of_timm_give_the_head_of_that_checkpoint():
    timm = pytest.importorskip("timm", reason="its table of checkpoints is the reference of this test")
    compared = 0
    for architecture in models.list_models():
        for tagged in timm.list_pretrained(f"{architecture}.*"):
            classes = timm.get_pretrained_cfg(tagged).num_classes
            for name in (tagged, f"timm/{tagged}"):
                base, changes = hub.resolve(name)
                assert (base, changes["num_classes"]) == (architecture, classes), name
                compared += 1
    assert compared > 80


@pytest.mark.parametrize(
    "name, architecture, classes, eps",
    [
        ("google/vit-hybrid-base-bit-384", "vit_base_r50_s16_384", 1000, 1e-12),
        ("timm/vit_giant_patch14_dinov2.lvd142m", "vit_giant_patch14_dinov2", 0, 1e-6),
        ("vit_giant_patch14_dinov2.lvd142m", "vit_giant_patch14_dinov2", 0, 1e-6),
    ],
)
def test_ids_without_a_configuration_resolve(name, architecture, classes, eps):
    found = models.registry.resolve(name)
    assert found.build is models.registry.resolve(architecture).build
    assert models.describe(name).num_classes == classes
    with torch.device("meta"):
        model = models.create_model(name, depth=1)
    assert model.norm.eps == eps
    with pytest.raises(ValueError, match=f"no published configuration is known: got '{re.escape(name)}'"):
        hub.config(name)


def test_ids_that_models_name_resolve():
    ids = models.registry.published_ids()
    assert len(ids) == 5 + 4 + 3 + 2 + 5  # CvT, PVT, iGPT, BERT, Deformable DETR
    for hub_id, name in ids.items():
        found, own = models.registry.resolve(hub_id), models.registry.resolve(name)
        assert (found.name, found.build, found.arguments) == (hub_id, own.build, own.arguments)
    assert models.describe("microsoft/cvt-13").parameters == models.describe("cvt_13").parameters


@pytest.mark.parametrize(
    "name, near",
    [
        ("microsoft/cvt-14", "microsoft/cvt-13"),
        ("bert-base-uncased", "google-bert/bert-base-uncased"),
        ("vit_base_patch16_225", "vit_base_patch16_224"),
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        ("google/vit-base-patch16-225", "google/vit-base-patch16-224"),
        ("timm/swin_tiny_patch4_window7_225.ms_in1k", "swin_tiny_patch4_window7_224"),
    ],
)
def test_unknown_names_list_near_matches(name, near):
    for call in (models.create_model, models.describe):
        with pytest.raises(
            ValueError, match=f"unknown model name: got '{re.escape(name)}'.*Did you mean .*{re.escape(near)}"
        ):
            call(name)


def test_other_wrong_calls():
    with pytest.raises(ValueError, match=r"unknown model name: got 'zzz'.*list_models\(\) lists them"):
        models.create_model("zzz")
    with pytest.raises(TypeError, match="the name is no string: got int"):
        models.create_model(3)
    with pytest.raises(TypeError, match="takes no such argument: got img_sise=; expected one of img_size, patch_size"):
        models.create_model("vit_tiny_patch16_224", img_sise=32)
    with pytest.raises(
        TypeError, match=r"takes no such argument: got img_sise=; expected one of .*pretrained_window_sizes"
    ):
        models.create_model("swinv2_tiny_window8_256", img_sise=32)
    with pytest.raises(ValueError, match="the name is taken"):
        models.register("vit_tiny_patch16_224", models.vit.VisionTransformer, "")


def test_a_description_prints():
    text = str(models.describe("swin_tiny_patch4_window7_224"))
    for part in (
        "swin_tiny_patch4_window7_224",
        "SwinTransformer(",
        "28,288,354",
        "3 x 224 x 224",
        "1000",
        "arXiv 2103.14030",
    ):
        assert part in text
    assert "pretrained_window_sizes=(12, 12, 12, 6)" in str(models.describe("swinv2_large_window12to16_192to256"))


def test_overrides_win_over_the_name():
    with torch.device("meta"):
        model = models.create_model("google/vit-base-patch16-224", num_classes=3, img_size=(64, 96), depth=1, eps=1e-6)
    assert (
        model.head.weight.shape == (3, 768) and model.pos_embed.shape == (1, 4 * 6 + 1, 768) and model.norm.eps == 1e-6
    )
