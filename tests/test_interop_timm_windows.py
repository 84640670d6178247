"""Twins, DaViT and MaxViT of timm before and after `vitkern.accelerate`: logits, gradients, and what is left alone."""

import copy

import pytest
import timm
import torch
from swapping import assert_near, assert_unchanged, logits, randomise
from timm.models.davit import SpatialBlock
from timm.models.maxxvit import PartitionAttentionCl
from timm.models.twins import LocallyGroupedAttn

import vitkern


def twins(**changes):
    arguments = dict(embed_dims=(16, 32), num_heads=(1, 2), mlp_ratios=(2, 2), depths=(2, 1), sr_ratios=(2, 1))
    arguments |= dict(wss=(3, 4), num_classes=5, img_size=32) | changes
    return randomise(timm.create_model("twins_svt_small", **arguments))


def davit(**changes):
    arguments = dict(depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4), window_size=3, num_classes=5) | changes
    return randomise(timm.create_model("davit_tiny", **arguments))


def maxvit(name="maxvit_tiny_rw_224", **changes):
    arguments = dict(embed_dim=(32, 64), depths=(1, 1), stem_width=16, num_classes=5, img_size=32) | changes
    return randomise(timm.create_model(name, **arguments))


def images(height=32, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


VARIANTS = {
    "twins, the window does not divide the image": (twins, {}, (LocallyGroupedAttn,)),
    "twins, stochastic depth": (twins, dict(drop_path_rate=0.5), (LocallyGroupedAttn,)),
    "davit, the window does not divide the image": (davit, {}, (SpatialBlock,)),
    "davit, stochastic depth": (davit, dict(drop_path_rate=0.5), (SpatialBlock,)),
    "maxvit": (maxvit, {}, (PartitionAttentionCl,)),
    "maxvit, tables of TensorFlow": (lambda: maxvit("maxvit_tiny_tf_224"), {}, (PartitionAttentionCl,)),
    "maxvit, positions from an MLP": (lambda: maxvit("maxvit_rmlp_tiny_rw_256"), {}, (PartitionAttentionCl,)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_stay(variant):
    build, changes, kinds = VARIANTS[variant]
    model = build(**changes)
    report = assert_unchanged(model, images())
    swapped = [entry for entry in report if entry.original in kinds]
    assert len(swapped) == sum(type(module) in kinds for module in model.modules()) > 0
    assert all("attention" in entry.ops[0] for entry in swapped)


def test_other_sizes_than_the_model_was_built_for():
    for model in (davit(), twins(img_size=(40, 56))):
        assert_unchanged(model, images(40, 56))


KINDS = {
    LocallyGroupedAttn: (twins, "attn_drop"),
    SpatialBlock: (davit, "attn.softmax"),
    PartitionAttentionCl: (maxvit, "attn.attn_drop"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("late", [False, True], ids=["hooked before", "hooked after"])
def test_what_wants_the_weights_keeps_them(kind, late):
    build, path = KINDS[kind]
    model = build().eval()
    expected = logits(model, images())
    notes = str(vitkern.accelerate(model)) if late else ""
    for module in model.modules():
        if isinstance(module, kind):
            module.get_submodule(path).register_forward_hook(lambda *call: None)
    notes = notes or str(vitkern.accelerate(model))
    assert ("hooked" in notes) == (not late)
    assert_near(logits(model, images()), expected, 2e-5, "logits")


def test_attention_dropout_in_training_is_the_originals():
    attention = LocallyGroupedAttn(16, num_heads=2, attn_drop=0.5, ws=4)
    other = copy.deepcopy(attention)
    report = vitkern.accelerate(other)
    assert "attention dropout is active in training" in str(report)
    x, results = torch.randn(2, 64, 16), []
    for module in (attention, other):
        torch.manual_seed(0)
        results.append(module(x, (8, 8)))
    assert torch.equal(*results)
