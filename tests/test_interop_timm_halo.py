"""HaloNets of timm before and after `vitkern.accelerate`: logits, every gradient, and what is left alone."""

import copy

import pytest
import timm
import torch
from swapping import assert_near, assert_same_gradients, assert_unchanged, logits, randomise
from timm.layers.halo_attn import HaloAttn
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

import vitkern


def build(**attention):
    """Two stages, the second with a stride, as HaloNet-H1 has them."""
    stages = tuple(ByoBlockCfg(type="self_attn", d=2, c=channels, s=stride) for channels, stride in ((16, 1), (32, 2)))
    attention = dict(block_size=4, halo_size=1, num_heads=2) | attention
    config = ByoModelCfg(
        blocks=stages, stem_type="3x3", stem_pool="", stem_chs=8, self_attn_layer="halo", self_attn_kwargs=attention
    )
    return randomise(ByobNet(config, num_classes=5))


def images(height=16, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def attentions(model):
    return [module for module in model.modules() if isinstance(module, HaloAttn)]


VARIANTS = {
    "plain": {},
    "no halo": dict(halo_size=0),
    "biases, narrow queries": dict(qkv_bias=True, qk_ratio=0.5),
    "wide queries": dict(dim_head=24),
    "means of an odd block": dict(block_size=1, halo_size=1),
    "scaled positions": dict(scale_pos_embed=True),
    "means": dict(avg_down=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_stay(variant):
    model = build(**VARIANTS[variant])
    report = assert_unchanged(model, images())
    swapped = [entry for entry in report if entry.original is HaloAttn]
    assert len(swapped) == 4 and {entry.ops for entry in swapped} == {("halo_attention",)}
    strided = [entry.name for entry in swapped if "the original runs where no kernel does" in entry.notes]
    pooled = variant.startswith("means")
    assert strided == ([] if pooled else ["stages.1.0.self_attn"])


def test_a_published_model():
    model = randomise(timm.create_model("halonet26t", num_classes=5)).eval()
    swapped = copy.deepcopy(model)
    assert len(vitkern.accelerate(swapped)) == 3
    with torch.no_grad():
        assert_near(logits(swapped, images(256, 256)), logits(model, images(256, 256)), 2e-5, "logits")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_result_lies_as_the_image_does(layout):
    model = build().eval()
    vitkern.accelerate(model)
    attn = attentions(model)[0]
    x = torch.randn(2, attn.q.in_channels, 8, 8).contiguous(memory_format=layout)
    assert attn(x).is_contiguous(memory_format=layout)


def test_projections_are_called_where_they_are_hooked():
    model = build().double().eval()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    for each in (model, swapped):
        for attn in attentions(each):
            attn.q.register_forward_hook(lambda module, args, out: out * 1.5)
            attn.kv.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    assert_same_gradients(model, swapped, images().double())


def double(module, args, out):
    return out * 2.0


def test_positions_that_are_hooked_are_called():
    model = build()
    attentions(model)[0].pos_embed.register_forward_hook(double)
    report = assert_unchanged(model, images())
    assert [entry.reason for entry in report.kept] == ["its relative positions are replaced or hooked"]
    assert len(report) == 3


def test_positions_that_are_hooked_later_are_called():
    model = build().eval()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    plain = logits(model, images())
    for each in (model, swapped):
        for attn in attentions(each):
            attn.pos_embed.register_forward_hook(double)
    expected = logits(model, images())
    assert (expected - plain).abs().max() > 1e-3
    assert_near(logits(swapped, images()), expected, 1e-5, "logits")


def test_an_image_that_blocks_do_not_divide_is_the_originals_to_refuse():
    model = build().eval()
    vitkern.accelerate(model)
    with pytest.raises(AssertionError):
        model(images(20, 16))


def test_restores_and_compiles():
    model = build().eval()
    before, expected = [type(module) for module in model.modules()], logits(model, images())
    report = vitkern.accelerate(model)
    torch._dynamo.reset()
    with torch.no_grad():
        assert_near(logits(torch.compile(model, backend="aot_eager"), images()), expected.detach(), 1e-5, "logits")
    report.restore()
    assert [type(module) for module in model.modules()] == before
