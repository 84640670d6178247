"""ViT-22B at reduced depth against timm's blocks of its kind, and its size as published."""

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
from vitkern.models.plain.vit_22b import ParallelVisionTransformer

timm = pytest.importorskip("timm", reason="timm is the reference of this file")
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer  # noqa: E402

SMALL = dict(embed_dim=64, num_heads=4, depth=2, img_size=(28, 56), patch_size=14, num_classes=7)


def built(**options):
    """(ours, timm's) with the same random weights."""
    peer = dict(qkv_bias=False, qk_norm=True, block_fn=ParallelScalingBlock)
    with uninitialised():
        return same_weights(ParallelVisionTransformer(**SMALL | options), VisionTransformer(**SMALL | peer | options))


@pytest.mark.parametrize("pooled, count", [("map", 22_203_918_336), ("token", 21_750_872_064)])
def test_parameters_are_as_many_as_published(pooled, count):
    """The paper's 21,743 million are the matrices of the blocks; timm's blocks have all that ours have."""
    options = dict(num_classes=0, global_pool=pooled, class_token=pooled == "token")
    with uninitialised(), torch.device("meta"):
        model = models.create_model("vit_22b_patch14_224", **options)
    assert sum(p.numel() for p in model.parameters()) == count
    matrices = sum(p.numel() for name, p in model.blocks.named_parameters() if name.endswith("proj.weight"))
    assert matrices == 48 * 12 * 6144**2 == 21_743_271_936


OPTIONS = pytest.mark.parametrize(
    "options",
    [
        dict(global_pool="map", class_token=False),
        dict(qkv_bias=True, qk_norm=False, init_values=0.3, drop_path_rate=0.2),
    ],
    ids=str,
)


@OPTIONS
def test_logits_agree_with_timm(options):
    ours, theirs = built(**options)
    assert_logits_agree(ours, theirs, SMALL["img_size"])
    assert_intermediates_agree(ours, theirs, images(SMALL["img_size"]))


@OPTIONS
def test_gradients_agree_with_timm(options):
    silent = ("k_norm.bias",)  # a softmax does not see it
    assert_gradients_agree(*built(**options), images(SMALL["img_size"], 4), silent)


def test_as_a_backbone():
    assert_maps("vit_22b_patch14_224", SMALL["img_size"], **SMALL | dict(depth=3))
    model, x = models.create_model("vit_22b_patch14_224", **SMALL), images(SMALL["img_size"])
    assert_another_head(model, x)
    assert_checkpointing_changes_nothing(model, x)


def test_gated_perceptrons_are_refused():
    with pytest.raises(ValueError, match="the MLP of a parallel block is the plain one: got mlp_layer='swiglu'"):
        ParallelVisionTransformer(**SMALL, mlp_layer="swiglu")
