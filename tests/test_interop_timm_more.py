"""DaViT, XCiT, PVTv2, Twins and MobileViT v2 of timm before and after `vitkern.accelerate`: logits, every gradient, and
what is left alone. With kernels: tests/interpreter/test_timm_modules.py."""

import copy

import pytest
import torch
from small_timm import MODELS, SIZES, build
from swapping import assert_unchanged
from torch import nn

import vitkern


def images(name):
    return torch.randn(2, 3, *SIZES[name], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_stay(name):
    report = assert_unchanged(build(name), images(name))
    swapped = {entry.original.__name__: entry.ops for entry in report}
    assert {kind: swapped.get(kind) for kind in MODELS[name].kinds} == MODELS[name].kinds


@pytest.mark.parametrize("name", ["convit", "xcit", "pvt", "twins", "mobilevit"])
def test_a_dropout_that_is_watched_is_left_alone(name):
    """Hooked before, its attention is not swapped; hooked afterwards, the original runs."""
    model = build(name)
    kind, expected = next(iter(MODELS[name].kinds)), model(images(name))
    hooked, swapped, calls = copy.deepcopy(model), copy.deepcopy(model), []
    vitkern.accelerate(swapped)

    def watch(one):
        found = [m for m in one.modules() if type(m).__name__ == kind]
        for module in found:
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # else timm does not call it
            module.attn_drop.register_forward_hook(lambda *call: calls.append(call))
        return len(found)

    assert watch(swapped) == watch(hooked) > 0
    report = vitkern.accelerate(hooked)
    assert not any(entry.original.__name__ == kind for entry in report)
    for one in (swapped, hooked):
        torch.testing.assert_close(one(images(name)), expected)
        assert calls
        calls.clear()


def test_dropout_of_cross_covariances_is_the_originals():
    torch.manual_seed(0)
    model = build("xcit")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    vitkern.accelerate(model)
    module = next(m for m in model.modules() if type(m).__name__ == "XCA")
    x = torch.randn(2, 9, 16)
    assert not torch.equal(module.train()(x), module(x))


def test_positions_that_are_watched_are_computed():
    """A hook on pos_proj sees the logits that it saw before."""
    model, seen = build("convit"), []
    expected = model(images("convit"))
    vitkern.accelerate(model)
    model.blocks[0].attn.pos_proj.register_forward_hook(lambda *call: seen.append(call[2].shape))
    torch.testing.assert_close(model(images("convit")), expected)
    assert seen == [(2, 16, 16, 4)]


@pytest.mark.parametrize(
    "name, block, factors", [("cait", "LayerScaleBlock", "gamma_2"), ("xcit", "XCABlock", "gamma2")]
)
def test_factors_of_another_shape_are_the_originals(name, block, factors):
    """Given before, the block is not swapped; afterwards, the original runs."""
    later, model = build(name), build(name)
    vitkern.accelerate(later)
    for one in (later, model):
        for module in one.modules():
            if getattr(module, factors, None) is not None:
                setattr(module, factors, nn.Parameter(torch.tensor(0.5)))
    expected = model(images(name))
    assert not any(entry.original.__name__ == block for entry in vitkern.accelerate(model))
    for one in (later, model):
        torch.testing.assert_close(one(images(name)), expected)
