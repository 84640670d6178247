"""ViTs behind a ResNet against timm's, whose names they have; and transformers' names of one of them."""

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
from vitkern.models.plain.vit_hybrid import HybridVisionTransformer

timm = pytest.importorskip("timm", reason="timm is the reference of this file")

NAMES = [n for n in models.list_models("vit_*") if models.registry.resolve(n).build is HybridVisionTransformer]
SMALL = dict(embed_dim=48, num_heads=3, num_classes=5)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_timm(name):
    pixels = models.describe(name).input_size
    with uninitialised(), torch.device("meta"):
        ours, theirs = models.create_model(name), timm.create_model(name)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    assert (ours.num_classes, pixels) == (theirs.num_classes, timm.get_pretrained_cfg(name).input_size)


def test_published_parameter_counts():
    counts = {name: models.describe(name).parameters for name in NAMES}
    assert len(NAMES) == 9
    assert counts["vit_base_r50_s16_384"] == 98_950_952 and counts["vit_tiny_r_s16_p8_224"] == 6_337_704
    assert counts["vit_small_r26_s32_224"] == 36_431_912 and counts["vit_large_r50_s32_224"] == 328_994_856


# Sizes that the stages halve evenly, that they do not, and that are not square.
@pytest.mark.parametrize(
    "name, size",
    [
        ("vit_base_r50_s16_384", (48, 80)),
        ("vit_base_r50_s16_384", 37),
        ("vit_small_r26_s32_224", (64, 33)),
        ("vit_tiny_r_s16_p8_224", (64, 96)),
    ],
)
def test_logits_agree_with_timm(name, size):
    ours, theirs = pair(name, img_size=size, depth=1, **SMALL)
    assert_logits_agree(ours, theirs, size)
    if size == (48, 80):  # timm's stride of an uneven map is that of its last pixel
        assert_intermediates_agree(ours, theirs, images(size, 1))


def test_other_sizes_when_asked():
    ours, theirs = pair("vit_tiny_r_s16_p8_224", img_size=64, depth=1, dynamic_img_size=True, **SMALL)
    for size in (64, (32, 128)):
        assert_logits_agree(ours, theirs, size, batch=1)


def test_gradients_agree_with_timm():
    ours, theirs = pair("vit_small_r26_s32_224", img_size=(32, 64), depth=1, drop_path_rate=0.2, **SMALL)
    assert_gradients_agree(ours, theirs, images((32, 64)))
    assert_checkpointing_changes_nothing(ours.float(), images((32, 64)))


def test_as_a_backbone():
    options = dict(img_size=64, depth=3, embed_dim=48, num_heads=3)
    assert_maps("vit_tiny_r_s16_p8_224", 64, **options)
    assert_another_head(models.create_model("vit_tiny_r_s16_p8_224", **options), images(64))


def test_transformers_names_are_known():
    """Those of google/vit-hybrid-base-bit-384, made here from ours; transformers 5 has no such model."""
    with uninitialised(), torch.device("meta"):
        model = models.create_model("vit_base_r50_s16_384")
    theirs = {}
    for key, value in model.state_dict().items():
        for ours, name in (
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("patch_embed.backbone.stem.conv", "embeddings.patch_embeddings.backbone.bit.embedder.convolution"),
            ("patch_embed.backbone.stem.norm", "embeddings.patch_embeddings.backbone.bit.embedder.norm"),
            ("patch_embed.backbone.stages", "embeddings.patch_embeddings.backbone.bit.encoder.stages"),
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."),
            (".attn.proj.", ".attention.output.dense."),
        ):
            key = key.replace(ours, name)
        if "bit.encoder" in key:
            key = key.replace(".blocks.", ".layers.")
        else:
            key = key.replace("blocks.", "encoder.layer.").replace(".norm1.", ".layernorm_before.")
            key = key.replace(".norm2.", ".layernorm_after.")
        if key.startswith("norm."):
            key = f"layernorm.{key.removeprefix('norm.')}"
        key = key.replace("head.", "classifier.") if key.startswith("head.") else f"vit.{key}"
        if ".attn.qkv." in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs[key.replace(".attn.qkv.", f".attention.attention.{name}.")] = part
        else:
            theirs[key] = value
    assert models.tables.detect_family(theirs) == "transformers_vit_hybrid"
    found = models.convert_state_dict(theirs, "transformers_vit_hybrid")
    assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_wrong_images_are_refused():
    model = models.create_model("vit_tiny_r_s16_p8_224", img_size=64, depth=1, **SMALL)
    with pytest.raises(ValueError, match=r"HybridEmbed: the image size differs.*expected \(64, 64\)"):
        model(torch.zeros(1, 3, 64, 32))
    with pytest.raises(ValueError, match=r"HybridEmbed: not a batch of images.*expected \(B, 3, height, width\)"):
        model(torch.zeros(1, 4, 64, 64))
