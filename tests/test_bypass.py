"""What somebody attached, to a class, to a module, to its weights or to all of PyTorch, has its effect in a swapped
model too; what the swapped model bypasses is called wherever somebody could tell."""

import copy
import functools
import importlib

import pytest
import timm
import torch
import torchvision
import transformers as hf
from swapping import assert_near, logits, randomise
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.modules import module as hooks
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import vitkern
from vitkern.nn.layernorm_mlp import Mlp
from vitkern.ops import bypass
from vitkern.ops.projection import calls_freely

hf.logging.set_verbosity_error()
VIT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
SWIN = dict(embed_dim=16, depths=[2], num_heads=[2], window_size=4, image_size=32, patch_size=4, drop_path_rate=0.0)


def timm_vit():
    return timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2, img_size=32, patch_size=8)


def timm_swin():
    return timm.create_model(
        "swin_tiny_patch4_window7_224", depths=(2,), embed_dim=16, num_heads=(2,), img_size=32, window_size=4
    )


def tv_vit():
    return torchvision.models.VisionTransformer(32, 8, 1, 2, 32, 64, num_classes=5)


def tv_swin():
    return torchvision.models.SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=5)


def hf_vit():
    return hf.ViTForImageClassification(hf.ViTConfig(intermediate_size=64, **VIT))


def hf_swin():
    return hf.SwinForImageClassification(hf.SwinConfig(**SWIN))


def hf_swin_v2():
    return hf.Swinv2ForImageClassification(hf.Swinv2Config(**SWIN))


def hf_sam():
    config = dict(VIT, output_channels=8, mlp_dim=64, global_attn_indexes=[], window_size=3)
    return hf.SamVisionModel(hf.SamVisionConfig(**config))


BUILD = {f.__name__: f for f in (timm_vit, timm_swin, tv_vit, tv_swin, hf_vit, hf_swin, hf_swin_v2, hf_sam)}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def answer(model):
    with torch.no_grad():
        out = logits(model, IMAGES)
        return out if isinstance(out, torch.Tensor) else out.last_hidden_state


def made(name):
    return randomise(BUILD[name]()).eval()


TV, HF = "torchvision.models.", "transformers.models."
PATCHED = [
    ("timm_vit", "timm.layers.mlp.Mlp", "forward"),
    ("timm_vit", "timm.layers.attention.Attention", "forward"),
    ("timm_vit", "timm.models.vision_transformer.Block", "forward"),
    ("timm_vit", "torch.nn.Linear", "forward"),
    ("timm_vit", "torch.nn.GELU", "forward"),
    ("timm_vit", "timm.layers.norm.LayerNorm", "forward"),
    ("timm_vit", "torch.nn.Identity", "forward"),
    ("timm_vit", "torch.nn.Linear", "__call__"),
    ("timm_swin", "timm.models.swin_transformer.WindowAttention", "forward"),
    ("timm_swin", "timm.models.swin_transformer.WindowAttention", "_get_rel_pos_bias"),
    ("timm_swin", "timm.models.swin_transformer.SwinTransformerBlock", "_attn"),
    ("timm_swin", "torch.nn.Softmax", "forward"),
    ("tv_vit", "torch.nn.MultiheadAttention", "forward"),
    ("tv_vit", "torch.nn.Sequential", "forward"),
    ("tv_swin", TV + "swin_transformer.ShiftedWindowAttention", "get_relative_position_bias"),
    ("tv_swin", "torchvision.ops.StochasticDepth", "forward"),
    ("hf_vit", HF + "vit.modeling_vit.ViTMLP", "forward"),
    ("hf_vit", HF + "vit.modeling_vit.ViTAttention", "forward"),
    ("hf_vit", HF + "vit.modeling_vit.ViTLayer", "forward"),
    ("hf_vit", "transformers.activations.GELUActivation", "forward"),
    ("hf_swin", HF + "swin.modeling_swin.SwinAttention", "forward"),
    ("hf_swin", HF + "swin.modeling_swin.SwinRelativePositionBias", "forward"),
    ("hf_swin", HF + "swin.modeling_swin.SwinMLP", "forward"),
    ("hf_swin_v2", HF + "swinv2.modeling_swinv2.Swinv2SelfAttention", "forward"),
    ("hf_swin_v2", HF + "swinv2.modeling_swinv2.Swinv2Intermediate", "forward"),
    ("hf_sam", HF + "sam.modeling_sam.SamVisionSdpaAttention", "forward"),
    ("hf_sam", HF + "sam.modeling_sam.SamMLPBlock", "forward"),
]


def louder(function):
    """``function``, whose positive results are twice as large: no norm that follows hides that."""

    @functools.wraps(function)
    def patched(*args, **kwargs):
        out = function(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        first = first + first.relu()
        return (first, *out[1:]) if isinstance(out, tuple) else first

    return patched


@pytest.mark.parametrize("first", ["patch", "swap"])
@pytest.mark.parametrize(("name", "path", "function"), PATCHED)
def test_patches_of_a_class_have_their_effect(name, path, function, first, monkeypatch):
    model = made(name)
    swapped, plain = copy.deepcopy(model), answer(model)
    module, kind = path.rsplit(".", 1)
    target = getattr(importlib.import_module(module), kind)
    with monkeypatch.context() as patches:
        if first == "swap":
            vitkern.accelerate(swapped)
        patches.setattr(target, function, louder(getattr(target, function)))
        if first == "patch":
            vitkern.accelerate(swapped)
        patched = answer(model)
        assert not torch.allclose(patched, plain, atol=1e-3)
        assert_near(answer(swapped), patched, 2e-5, "patched")
    assert_near(answer(swapped), plain, 2e-5, "unpatched again")


def test_a_patched_class_is_kept_and_named(monkeypatch):
    kind = timm.layers.Attention
    monkeypatch.setattr(kind, "forward", louder(kind.forward))
    assert ("blocks.0.attn", "its class is patched") in [
        (kept.name, kept.reason) for kept in vitkern.accelerate(made("timm_vit")).kept
    ]


@pytest.mark.parametrize("name", ["hf_swin", "hf_sam"])
def test_an_mlp_of_another_class_is_called(name):
    model = made(name)
    layer = (model.swin.encoder.layers[0].blocks if name == "hf_swin" else model.vision_encoder.layers)[0]
    kind = type(layer.mlp)
    layer.mlp.__class__ = type("Mine", (kind,), {"forward": lambda self, x: 3 * kind.forward(self, x)})
    expected = answer(model)
    report = vitkern.accelerate(model)
    assert any("it is a Mine" in note for entry in report for note in entry.notes)
    assert_near(answer(model), expected, 2e-5, "an MLP of somebody's own")


# Hooks


def attach(module, sort):
    if sort == "forward":
        return module.register_forward_hook(lambda m, args, out: changed(out))
    if sort == "forward, with keywords":
        return module.register_forward_hook(lambda m, args, kwargs, out: changed(out), with_kwargs=True)
    if sort == "forward, always called":
        return module.register_forward_hook(lambda m, args, out: changed(out), always_call=True)
    if sort == "before":
        return module.register_forward_pre_hook(lambda m, args: tuple(map(changed, args)))
    return module.register_forward_pre_hook(lambda m, a, k: (tuple(map(changed, a)), k), with_kwargs=True)


def changed(value):
    if isinstance(value, tuple):
        return (changed(value[0]), *value[1:])
    return value + value.relu() + 0.25 if isinstance(value, torch.Tensor) and value.is_floating_point() else value


SORTS = ["forward", "forward, with keywords", "forward, always called", "before", "before, with keywords"]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("name", BUILD)
def test_hooks_on_any_module_have_their_effect(name, sort):
    model = made(name)
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    parts = [part for part, module in model.named_modules() if not list(module.children()) and "pooler" not in part]
    for part in parts[2:]:
        ends = [attach(each.get_submodule(part), sort) for each in (model, swapped)]
        assert_near(answer(swapped), answer(model), 3e-5, f"{sort} of {part}")
        for end in ends:
            end.remove()


def recorded(model):
    """What a hook on all modules sees of ``model``: {name: result}."""
    names, seen = {id(module): name for name, module in model.named_modules()}, {}

    def record(module, args, out):
        seen[names[id(module)]] = out[0] if isinstance(out, tuple) else out

    handle = hooks.register_module_forward_hook(record)
    try:
        answer(model)
    finally:
        handle.remove()
    return {name: out for name, out in seen.items() if isinstance(out, torch.Tensor)}


@pytest.mark.parametrize("name", BUILD)
def test_hooks_on_all_modules_see_what_they_saw(name):
    model = made(name)
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    expected, actual = recorded(model), recorded(swapped)
    assert actual.keys() == expected.keys()
    for part, out in expected.items():
        assert_near(actual[part], out, 3e-5, part)


def overwritten(model):
    """Names of the projections and norms whose results are not, in the end, what a hook was given."""
    held = {}

    def hold(module, name):
        module.register_forward_hook(lambda m, args, out: held.update({name: (out, out.clone())}))

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            hold(module, name)
    answer(model)
    assert held
    return {name for name, (out, copied) in held.items() if not torch.equal(out, copied)}


@pytest.mark.parametrize("name", BUILD)
def test_what_a_hook_recorded_stays_as_it_was(name):
    model = made(name)
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    assert overwritten(swapped) <= overwritten(model)  # an activation of the original may work in place


# Weights and modes


class Doubled(torch.Tensor):
    """A weight with a linear layer of its own, as quantised ones have."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        def plain(value):
            return value.as_subclass(torch.Tensor) if isinstance(value, Doubled) else value

        if func is nn.functional.linear:
            return 2 * func(*map(plain, args), **{key: plain(value) for key, value in (kwargs or {}).items()})
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("name", BUILD)
def test_weights_with_functions_of_their_own_keep_them(name):
    model = made(name)
    swapped, plain = copy.deepcopy(model), answer(model)
    for module, twin in zip(model.modules(), swapped.modules(), strict=True):
        if type(module) is nn.Linear:
            weight = nn.Parameter(module.weight.data.as_subclass(Doubled), requires_grad=False)
            module.weight = twin.weight = weight
    vitkern.accelerate(swapped)
    expected = answer(model)
    assert not torch.allclose(expected, plain, atol=1e-3)
    assert_near(answer(swapped), expected, 3e-5, "doubled")


class Halved(TorchFunctionMode):
    """Halves what every linear layer gives."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out / 2 if func is nn.functional.linear else out


class Tallied(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func] = self.counts.get(func, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", BUILD)
def test_modes_see_the_functions_that_they_saw(name):
    model = made(name)
    swapped, plain = copy.deepcopy(model), answer(model)
    vitkern.accelerate(swapped)
    with Halved():
        expected, actual = answer(model), answer(swapped)
    assert not torch.allclose(expected, plain, atol=1e-3)
    assert_near(actual, expected, 3e-5, "halved")
    with Tallied() as first:
        answer(model)
    with Tallied() as second:
        answer(swapped)
    products = [op for op in first.counts if op.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.mm)]
    assert products and all(second.counts.get(op) == first.counts[op] for op in products)


def test_modes_of_pytorch_itself_are_no_obstacle():
    linear = nn.Linear(4, 4)
    assert bypass.may_bypass(linear, nn.Linear)
    with torch.device("meta"):
        assert bypass.may_bypass(linear, nn.Linear)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert bypass.may_bypass(linear, nn.Linear)
    with Halved():
        assert not bypass.may_bypass(linear, nn.Linear)


# The question itself


def parametrised(linear):
    nn.utils.parametrizations.weight_norm(linear)


def with_another_weight(linear):
    weight = linear.weight.detach()
    del linear.weight
    linear.weight = weight


def with_a_weight_of_its_own_kind(linear):
    linear.weight = nn.Parameter(linear.weight.data.as_subclass(Doubled), requires_grad=False)


@pytest.mark.parametrize(
    "change",
    [
        with_a_weight_of_its_own_kind,
        parametrised,
        with_another_weight,
        lambda linear: prune.random_unstructured(linear, "weight", amount=1),
        lambda linear: setattr(linear, "forward", lambda x: x),
        lambda linear: setattr(linear, "__class__", type("Mine", (nn.Linear,), {})),
        lambda linear: linear.register_full_backward_hook(lambda m, i, o: None),
        lambda linear: linear.register_full_backward_pre_hook(lambda m, o: None),
    ],
)
def test_a_module_with_something_attached_may_not_be_bypassed(change):
    linear = nn.Linear(4, 4)
    assert bypass.may_bypass(linear, nn.Linear) and calls_freely(linear)
    change(linear)
    assert not bypass.may_bypass(linear, nn.Linear) and not calls_freely(linear)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_hook_on_all_modules_is_one_on_each(kind):
    register = getattr(hooks, f"register_module_{kind}_hook")
    handle = register(lambda *args: None)
    try:
        assert bypass.watched() and not bypass.may_bypass(nn.Linear(4, 4), nn.Linear)
    finally:
        handle.remove()
    assert not bypass.watched()


@pytest.mark.parametrize("function", ["__call__", "_call_impl"])
def test_a_patched_call_of_all_modules_is_seen(function, monkeypatch):
    linear = nn.Linear(4, 4)
    monkeypatch.setattr(nn.Module, function, louder(getattr(nn.Module, function)))
    assert not bypass.may_bypass(linear, nn.Linear)
    monkeypatch.undo()
    assert bypass.may_bypass(linear, nn.Linear)


def test_a_module_of_this_package_with_a_patched_class_is_called(monkeypatch):
    block = randomise(vitkern.create_model("vit_tiny_patch16_224", depth=1)).eval()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    plain = block(images)
    monkeypatch.setattr(Mlp, "forward", lambda self, x: torch.zeros_like(x))
    patched = block(images)
    assert not torch.allclose(patched, plain, atol=1e-3)
