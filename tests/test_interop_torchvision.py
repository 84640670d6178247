"""torchvision's models before and after `vitkern.accelerate`."""

import copy

import pytest
import torch
from swapping import assert_near, assert_same_gradients, assert_unchanged, gradients, logits, randomise
from torch import nn
from torchvision.models import swin_transformer as swins
from torchvision.models import vision_transformer as vits

import vitkern


def swin(v2=False, **changes):
    arguments = dict(
        patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], num_classes=5
    )
    if v2:
        arguments.update(block=swins.SwinTransformerBlockV2, downsample_layer=swins.PatchMergingV2)
    return randomise(swins.SwinTransformer(**{**arguments, **changes}))


def vit(**changes):
    arguments = dict(image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=5)
    return randomise(vits.VisionTransformer(**{**arguments, **changes}))


def pictures(height=32, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_unchanged_in_eval(model, images):
    swapped = copy.deepcopy(model)
    report = vitkern.accelerate(swapped)
    assert_near(logits(swapped.eval(), images), logits(model.eval(), images), 2e-5, "eval")
    return report


@pytest.mark.parametrize("size", [(64, 64), (40, 56), (16, 56), (12, 12)], ids=str)
@pytest.mark.parametrize("v2", [False, True])
def test_swin_stays(v2, size):
    report = assert_unchanged(swin(v2), pictures(*size))
    assert len(report) == 8 and not report.kept


def test_a_swapped_swin_takes_every_size_in_turn():
    model = swin().eval()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    for size in [(64, 64), (16, 16), (40, 56)]:
        assert_near(logits(swapped, pictures(*size)), logits(model, pictures(*size)), 2e-5, str(size))


@pytest.mark.parametrize("v2", [False, True])
def test_swin_without_qkv_bias(v2):
    model = swin(v2)
    for module in model.modules():
        if isinstance(module, swins.ShiftedWindowAttention):
            module.qkv = nn.Linear(module.qkv.in_features, module.qkv.out_features, bias=False)
    assert_unchanged(model, pictures(40, 56))


def test_rectangular_windows():
    assert_unchanged(swin(window_size=[4, 3]), pictures(40, 52))


def test_vit_stays():
    report = assert_unchanged(vit(), pictures())
    assert len(report) == 2 and not report.kept
    assert {entry.ops for entry in report} == {("attention", "layernorm_mlp")}


def test_attention_dropout_of_vit():
    model = vit(attention_dropout=0.5)
    report = assert_unchanged_in_eval(model, pictures())
    assert len(report) == 2
    first, _ = gradients(report.model.train(), pictures(), seed=1)
    second, _ = gradients(report.model, pictures(), seed=2)
    again, _ = gradients(report.model, pictures(), seed=1)
    assert not torch.allclose(first, second)
    assert torch.equal(first, again)


@pytest.mark.parametrize("v2", [False, True])
def test_attention_dropout_in_windows_takes_the_original_path(v2):
    model = swin(v2, attention_dropout=0.3)
    report = assert_unchanged_in_eval(model, pictures(40, 56))
    assert any("attention dropout" in note for entry in report for note in entry.notes)
    model.double().train(), report.model.double().train()
    assert_same_gradients(model, report.model, pictures(40, 56).double())


def test_stochastic_depth_takes_the_same_random_numbers():
    model = swin(stochastic_depth_prob=0.5)
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    model.double().train(), swapped.double().train()
    assert_same_gradients(model, swapped, pictures(40, 56).double())


class Doubled(nn.Module):
    """Twice a linear layer, with its weight where torchvision looks for it."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return 2 * self.linear(x)


def test_a_wrapped_projection_keeps_the_original_attention():
    model = swin().eval()
    model.features[1][0].attn.qkv = Doubled(model.features[1][0].attn.qkv)
    report = assert_unchanged_in_eval(model, pictures(40, 56))
    assert [kept.name for kept in report.kept] == ["features.1.0.attn"]
    assert "reads their weights" in report.kept[0].reason


def test_a_projection_wrapped_after_the_swap_keeps_the_original_attention():
    model = swin().eval()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    for each in (model, swapped):
        each.features[1][0].attn.proj = Doubled(each.features[1][0].attn.proj)
    assert_near(logits(swapped, pictures(40, 56)), logits(model, pictures(40, 56)), 2e-5, "wrapped")


@pytest.mark.parametrize("change", ["hook on attention", "hook on fc1", "LoRA on fc2", "out_proj replaced"])
@pytest.mark.parametrize("first", ["swap", "change"])
def test_attachments_to_vit_keep_their_effect(change, first):
    model = vit().eval()
    swapped = copy.deepcopy(model)

    def attach(each):
        block = each.encoder.layers[1]
        if change == "hook on attention":
            block.self_attention.register_forward_hook(lambda module, args, out: (out[0] * 2, out[1]))
        elif change == "hook on fc1":
            block.mlp[0].register_forward_hook(lambda module, args, out: out * 2)
        elif change == "LoRA on fc2":
            block.mlp[3] = Doubled(block.mlp[3])
        else:
            block.self_attention.out_proj = Doubled(block.self_attention.out_proj)

    attach(model)
    for step in (attach, vitkern.accelerate) if first == "change" else (vitkern.accelerate, attach):
        step(swapped)
    assert_near(logits(swapped, pictures()), logits(model, pictures()), 2e-5, change)


@pytest.mark.parametrize("build", [swin, vit])
def test_compiles_as_one_graph(build):
    model = (vit(num_layers=1) if build is vit else build(depths=[2], num_heads=[2])).eval()
    vitkern.accelerate(model)
    images = pictures() if build is vit else pictures(40, 56)
    torch._dynamo.reset()
    with torch.no_grad():
        assert_near(torch.compile(model, backend="aot_eager", fullgraph=True)(images), model(images), 1e-5, "compiled")
