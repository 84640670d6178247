"""timm's models before and after `vitkern.accelerate`: logits, every gradient, and what stays out of it."""

import copy

import pytest
import timm
import torch
from swapping import assert_near, assert_same_gradients, assert_unchanged, gradients, logits, randomise
from timm.layers import Attention, LayerScale
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import nn

import vitkern


def vit(**changes):
    arguments = dict(depth=2, embed_dim=48, num_heads=3, img_size=32, patch_size=8, num_classes=5)
    return randomise(timm.create_model("vit_tiny_patch16_224", **{**arguments, **changes}))


def swin(name="swin_tiny_patch4_window7_224", **changes):
    arguments = dict(depths=(2, 2), embed_dim=16, num_heads=(2, 4), img_size=(40, 56), window_size=4, num_classes=5)
    return randomise(timm.create_model(name, **{**arguments, **changes}))


def swin_v2(**changes):
    return swin("swinv2_tiny_window8_256", **changes)


def images_for(model, size=None):
    return torch.randn(
        2, 3, *(size or getattr(model.patch_embed, "img_size", None)), generator=torch.Generator().manual_seed(1)
    )


VARIANTS = {
    "vit": lambda: vit(),
    "vit, LayerScale and stochastic depth": lambda: vit(init_values=0.5, drop_path_rate=0.5),
    "vit, normalised q and k": lambda: vit(qk_norm=True),
    "vit, scaled norms": lambda: vit(scale_attn_norm=True, scale_mlp_norm=True),
    "vit, no biases": lambda: vit(qkv_bias=False, proj_bias=False),
    "vit, quick GELU": lambda: vit(act_layer="quick_gelu"),
    "vit, tanh GELU": lambda: vit(act_layer="gelu_tanh"),
    "deit, distilled": lambda: randomise(
        timm.create_model(
            "deit_tiny_distilled_patch16_224",
            depth=2,
            embed_dim=48,
            num_heads=3,
            img_size=32,
            patch_size=8,
            num_classes=5,
        )
    ),
    "swin, the window does not divide the image": lambda: swin(),
    "swin, stochastic depth": lambda: swin(drop_path_rate=0.5),
    "swin, no qkv bias": lambda: swin(qkv_bias=False),
    "swin, heads of another size": lambda: swin(head_dim=12),
    "swin, rectangular window": lambda: swin(window_size=(4, 3), img_size=(48, 52)),
    "swin, window shrunk along one axis": lambda: swin(img_size=(16, 56)),
    "swin, one window": lambda: swin(img_size=(32, 32), window_size=8),
    "swin, always partitioned": lambda: swin(img_size=(24, 40), always_partition=True),
    "swin v2, the window does not divide the image": lambda: swin_v2(),
    "swin v2, stochastic depth": lambda: swin_v2(drop_path_rate=0.5),
    "swin v2, no qkv bias": lambda: swin_v2(qkv_bias=False),
    "swin v2, pretrained window": lambda: swin_v2(pretrained_window_sizes=(6, 6)),
    "swin v2, window shrunk along one axis": lambda: swin_v2(img_size=(16, 56)),
    "swin v2, window 16 of 12": lambda: swin_v2(img_size=(80, 96), window_size=16, pretrained_window_sizes=(12, 6)),
    "swin v2, window 24 of 12": lambda: swin_v2(img_size=(112, 100), window_size=24, pretrained_window_sizes=(12, 6)),
}


@pytest.mark.walk(3)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_stay(variant):
    model = VARIANTS[variant]()
    report = assert_unchanged(model, images_for(model))
    kept = {entry.reason for entry in report.kept}
    assert kept == ({"MLP not fused: it holds a LayerNorm"} if variant == "vit, scaled norms" else set())
    assert len(report) == (2 if kept else 4)


@pytest.mark.parametrize("build", [swin, swin_v2])
def test_other_sizes_than_the_model_was_built_for(build):
    model = build(img_size=(32, 32), strict_img_size=False)  # timm computes its masks anew then
    assert_unchanged(model, images_for(model, (44, 52)))


@pytest.mark.parametrize("kind", [SwinTransformerBlock, SwinTransformerV2Block])
def test_a_fixed_mask_of_another_size_still_raises(kind):
    block = kind(16, input_resolution=(8, 8), num_heads=2, window_size=4, shift_size=2)
    vitkern.accelerate(block)
    assert block(torch.randn(1, 8, 8, 16)).shape == (1, 8, 8, 16)
    with pytest.raises(RuntimeError):
        block(torch.randn(1, 12, 12, 16))


def test_set_input_size_after_the_swap():
    model = swin_v2().eval()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    for each in (model, swapped):
        each.set_input_size((64, 48))
    images = images_for(model, (64, 48))
    assert_near(logits(swapped, images), logits(model, images), 2e-5, "logits")


@pytest.mark.parametrize("kind", ["bool", "additive", "learnt", "causal"])
@pytest.mark.parametrize("fused", [True, False])
def test_attention_masks(kind, fused):
    torch.manual_seed(0)
    attention = Attention(24, num_heads=3, qkv_bias=True).double()
    attention.fused_attn = fused
    other = copy.deepcopy(attention)
    assert len(vitkern.accelerate(other)) == 1
    x = torch.randn(2, 7, 24, dtype=torch.double)
    mask = {
        "bool": torch.rand(2, 1, 7, 7) > 0.4,
        "additive": torch.randn(7, 7, dtype=torch.double),
        "learnt": torch.randn(1, 3, 7, 7, dtype=torch.double),
        "causal": None,
    }[kind]
    if kind == "bool":
        mask |= torch.eye(7, dtype=torch.bool)
    results = []
    for module in (attention, other):
        given = mask.clone().requires_grad_() if kind == "learnt" else mask
        out = module(x, attn_mask=given, is_causal=kind == "causal")
        out.square().sum().backward()
        results.append((out.detach(), module.qkv.weight.grad, given.grad if kind == "learnt" else torch.zeros(1)))
    for actual, expected in zip(results[1], results[0], strict=True):
        assert_near(actual, expected, 1e-10, kind)


def test_gated_attention():
    torch.manual_seed(0)
    attention = Attention(24, num_heads=3, gated=True)
    other = copy.deepcopy(attention)
    vitkern.accelerate(other)
    x = torch.randn(2, 7, 24)
    assert_near(other(x), attention(x), 1e-5, "gated")


def test_attention_dropout_in_training():
    attention = Attention(64, num_heads=2, attn_drop=0.25)
    vitkern.accelerate(attention)
    with torch.no_grad():
        attention.qkv.weight.zero_()
        attention.qkv.weight[128:].copy_(torch.eye(64))  # equal scores, v = x
        attention.proj.weight.copy_(torch.eye(64))
        attention.proj.bias.zero_()
    out = attention(torch.ones(8, 64, 64))
    assert 0.2 < (1 - (out * 48).round() / 64).mean() + 0.0 < 0.3  # each row keeps about 48 of 64 weights of 1/48
    assert torch.equal(attention.eval()(torch.ones(1, 4, 64)).round(decimals=5), torch.ones(1, 4, 64))


@pytest.mark.parametrize("build", [swin, swin_v2])
def test_attention_dropout_in_windows_takes_the_original_path(build):
    model = build(attn_drop_rate=0.3)
    swapped = copy.deepcopy(model)
    report = vitkern.accelerate(swapped)
    assert all("attention dropout" in entry.notes[0] for entry in report)
    model.double().train(), swapped.double().train()
    assert_same_gradients(model, swapped, images_for(model).double())
    model.float().eval(), swapped.float().eval()
    assert_near(logits(swapped, images_for(model)), logits(model, images_for(model)), 2e-5, "eval")


@pytest.mark.parametrize("build", [vit, swin, swin_v2])
def test_dropout_of_projections(build):
    model = build(proj_drop_rate=0.4)
    swapped = copy.deepcopy(model)
    report = vitkern.accelerate(swapped)
    assert any("in training" in note for entry in report for note in entry.notes)
    model.eval(), swapped.eval()
    images = images_for(model)
    with torch.no_grad():
        assert_near(logits(swapped, images), logits(model, images), 2e-5, "eval")
    if build is vit:  # windows drop in another order
        model.double().train(), swapped.double().train()
        assert_same_gradients(model, swapped, images.double())
    else:
        for name, module in swapped.named_modules():
            if isinstance(module, nn.Dropout) and not name.endswith("attn.proj_drop"):
                module.p = 0.0
        first, _ = gradients(swapped.train(), images, seed=1)
        second, _ = gradients(swapped, images, seed=2)
        assert not torch.allclose(first, second)


@pytest.mark.parametrize("masked", [False, True])
def test_windows_that_are_cut_out_already(masked):
    torch.manual_seed(0)
    attention = WindowAttention(24, num_heads=3, window_size=(3, 4)).double()
    other = copy.deepcopy(attention)
    assert [entry.ops for entry in vitkern.accelerate(other)] == [("attention",)]
    x = torch.randn(8, 12, 24, dtype=torch.double)
    mask = torch.where(torch.rand(4, 12, 12) > 0.5, 0.0, -100.0).double() if masked else None
    for module in (attention, other):
        (module(x, mask) * x).sum().backward()
    assert_near(other(x, mask), attention(x, mask), 1e-10, "windows")
    for (name, a), b in zip(other.named_parameters(), attention.parameters(), strict=True):
        assert_near(a.grad, b.grad, 1e-9, name)


def test_a_kept_block_still_has_its_attention_swapped():
    model = swin()
    model.layers[0].blocks[0].__class__ = type("Mine", (SwinTransformerBlock,), {})
    report = vitkern.accelerate(model)
    assert [entry.name for entry in report if entry.original is WindowAttention] == ["layers.0.blocks.0.attn"]
    assert [(kept.name, kept.reason.split(",")[0]) for kept in report.kept] == [
        ("layers.0.blocks.0", "a subclass of timm.models.swin_transformer.SwinTransformerBlock")
    ]


def test_unknown_parts_stay():
    model = vit(norm_layer="rmsnorm", act_layer="silu")
    report = assert_unchanged(model, images_for(model))
    assert {entry.original.__name__ for entry in report} == {"Attention"}
    assert {kept.reason for kept in report.kept} == {"MLP not fused: its norm is a RmsNorm"}


def test_a_hooked_layer_scale_is_called():
    model = vit(init_values=0.5).eval()
    expected = copy.deepcopy(model)
    for each in (expected, model):
        if each is model:
            vitkern.accelerate(each)
        for module in each.modules():
            if isinstance(module, LayerScale):
                module.register_forward_hook(lambda module, args, out: out * 3)
    assert_near(logits(model, images_for(model)), logits(expected, images_for(model)), 2e-5, "hooked")


def test_attention_weights_for_those_who_hook_them():
    model = vit().eval()
    for block in model.blocks:
        block.attn.fused_attn = False
    vitkern.accelerate(model)
    seen = []
    model.blocks[0].attn.attn_drop.register_forward_hook(lambda module, args, out: seen.append(out))
    model(images_for(model))
    assert seen[0].shape == (2, 3, 17, 17)
    assert torch.allclose(seen[0].sum(-1), torch.ones(2, 3, 17))


@pytest.mark.parametrize("build", [vit, swin, swin_v2])
def test_compiles_as_one_graph(build):
    model = build(depths=(2,), num_heads=(2,)) if build is not vit else build(depth=1, init_values=0.5)
    vitkern.accelerate(model)
    images = images_for(model)
    expected, expected_gradients = gradients(model, images)
    torch._dynamo.reset()
    actual, actual_gradients = gradients(torch.compile(model, backend="aot_eager", fullgraph=True), images)
    assert_near(actual, expected, 1e-5, "logits")
    for name, gradient in expected_gradients.items():
        if gradient is not None:
            assert_near(actual_gradients.get(f"_orig_mod.{name}", actual_gradients.get(name)), gradient, 1e-4, name)


def test_module_kinds_survive():
    model = swin()
    vitkern.accelerate(model)
    assert isinstance(model.layers[0].blocks[0], SwinTransformerBlock)
    assert isinstance(model.layers[0].blocks[0], nn.Module)
    assert "VitkernSwinTransformerBlock" in repr(model)
