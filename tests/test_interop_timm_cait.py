"""CaiT of timm before and after `vitkern.accelerate`: logits, every gradient, hooks, and what is left alone."""

import copy

import pytest
import timm
import torch
from swapping import assert_unchanged, randomise
from timm.models.cait import Cait, ClassAttn, TalkingHeadAttn
from torch import nn

import vitkern


def build(**options):
    return randomise(Cait(img_size=16, patch_size=4, num_classes=5, embed_dim=24, depth=2, num_heads=3, **options))


def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_logits_and_gradients_stay(qkv_bias):
    report = assert_unchanged(build(qkv_bias=qkv_bias), images())
    ops = {kind: [entry.ops for entry in report if entry.original is kind] for kind in (TalkingHeadAttn, ClassAttn)}
    assert ops == {TalkingHeadAttn: [("talking_heads_attention",)] * 2, ClassAttn: [("class_attention",)] * 2}


@pytest.mark.parametrize("name", ["proj_l", "proj_w", "attn_drop"])
def test_what_is_watched_is_left_alone(name):
    """Hooked before, it is not swapped; hooked afterwards, the original runs."""
    model = build()
    swapped, hooked, calls = copy.deepcopy(model), copy.deepcopy(model), []
    vitkern.accelerate(swapped)
    for one in (swapped, hooked):
        getattr(one.blocks[0].attn, name).register_forward_hook(lambda *call: calls.append(call[1][0].shape))
    report = vitkern.accelerate(hooked)
    assert sum(entry.original is TalkingHeadAttn for entry in report) == 1
    expected = model(images())
    for one in (swapped, hooked):
        torch.testing.assert_close(one(images()), expected)
    assert len(calls) == 2


def test_projections_that_are_watched_are_called():
    model, calls = build(), []
    expected = model(images())
    vitkern.accelerate(model)
    for name in ("q", "k", "v"):
        getattr(model.blocks_token_only[0].attn, name).register_forward_hook(
            lambda *call: calls.append(call[1][0].shape)
        )
    torch.testing.assert_close(model(images()), expected)
    assert calls == [(2, 24), (2, 17, 24), (2, 17, 24)]


def test_dropout_in_training():
    torch.manual_seed(0)
    module = TalkingHeadAttn(24, 3, attn_drop=0.5)
    holder = nn.ModuleList([module])
    vitkern.accelerate(holder)
    x = torch.randn(2, 9, 24)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


def test_a_published_model():
    model = timm.create_model("cait_xxs24_224", num_classes=5, depth=1).eval()
    report = vitkern.accelerate(model)
    assert sorted(entry.original.__name__ for entry in report)[:2] == ["ClassAttn", "ClassAttn"]
