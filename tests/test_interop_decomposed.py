"""SAM of timm and transformers and VitDet before and after `vitkern.accelerate`: logits and every gradient."""

import copy

import pytest
import stored
import timm
import torch
import transformers as hf
from swapping import assert_near, assert_same_gradients, assert_unchanged, gradients, logits, randomise
from torch import nn

import vitkern

hf.logging.set_verbosity_error()
SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=40, patch_size=4)


class Features(nn.Module):
    """A backbone with one tensor as its answer."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        out = self.model(images)
        return out.feature_maps[0] if hasattr(out, "feature_maps") else out.last_hidden_state


def randomised(model):
    """Random everywhere: relative positions begin at zero."""
    model = randomise(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name or "pos_embed" in name or "norm3" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    return model


def sam_of_timm(**changes):
    arguments = dict(
        depth=2, embed_dim=24, num_heads=3, img_size=40, patch_size=4, window_size=4, global_attn_indexes=(1,),
        num_classes=5, neck_chans=16,
    )  # fmt: skip
    return randomised(timm.create_model("samvit_base_patch16_224", **arguments | changes))


def vitdet(**changes):
    options = dict(window_size=4, window_block_indices=[0], use_relative_position_embeddings=True, mlp_ratio=2)
    return randomised(Features(hf.VitDetBackbone(hf.VitDetConfig(**SIZES | options | changes))))


def sam(implementation="sdpa", **changes):
    options = dict(window_size=4, global_attn_indexes=[1], output_channels=16, mlp_dim=48)
    config = hf.SamVisionConfig(**SIZES | options | changes)
    config._attn_implementation = implementation
    return randomised(Features(hf.SamVisionModel(config)))


def images_for(size=(40, 40)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


VARIANTS = {
    "timm, windows that reach beyond the image": lambda: sam_of_timm(),
    "timm, LayerScale and no bias": lambda: sam_of_timm(init_values=0.5, qkv_bias=False),
    "timm, windows that fit": lambda: sam_of_timm(window_size=5),
    "timm, stochastic depth": lambda: sam_of_timm(drop_path_rate=0.5),
    "timm, stochastic depth of windows": lambda: sam_of_timm(drop_path_rate=0.5, global_attn_indexes=(0,)),
    "VitDet": lambda: vitdet(),
    "VitDet, no bias, in windows alone": lambda: vitdet(qkv_bias=False, window_block_indices=[0, 1]),
    "VitDet, residual convolutions": lambda: vitdet(residual_block_indices=[1]),
    "VitDet, stochastic depth": lambda: vitdet(drop_path_rate=0.5),
    "SAM": lambda: sam(),
    "SAM, no bias": lambda: sam(qkv_bias=False),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_stay(variant):
    model = VARIANTS[variant]()
    report = assert_unchanged(model, images_for())
    layers = [entry for entry in report if entry.original.__name__ in ("Block", "VitDetLayer", "SamVisionLayer")]
    assert [entry.ops for entry in layers] == [("decomposed_attention", "layernorm_mlp")] * 2
    assert not report.kept


@stored.each("vitdet_*")
def test_stored_results_of_a_backbone(path):
    """Its windows reach beyond the image, one layer sees all of it, and position embeddings are interpolated."""
    config, tensors = stored.read(path)
    del config["input"]
    model = hf.VitDetBackbone(hf.VitDetConfig(**config)).eval()
    assert [entry.original.__name__ for entry in vitkern.accelerate(model)] == ["VitDetLayer"] * 3
    stored.assert_stored(model, tensors, lambda x: model(x).feature_maps[0])


def test_attention_that_takes_its_softmax_in_float32():
    """SAM's plain attention does, in float64 too."""
    model = sam("eager")
    swapped = copy.deepcopy(model)
    assert len(vitkern.accelerate(swapped)) >= 2
    assert_same_gradients(model.double(), swapped.double(), images_for().double(), limit=1e-5)


@pytest.mark.parametrize("build", [sam_of_timm, vitdet])
def test_another_image_size_interpolates_the_positions(build):
    model = build()
    assert_unchanged(model, images_for((48, 36)))


@pytest.mark.parametrize(
    "build, reason",
    [
        (lambda: sam_of_timm(use_rel_pos=False), "attention kept: it has no decomposed relative positions"),
        (lambda: sam_of_timm(qk_norm=True), "attention kept: it normalises q and k"),
        (lambda: vitdet(use_relative_position_embeddings=False), "attention kept: it has no decomposed"),
        (lambda: sam(use_rel_pos=False), "attention kept: it has no decomposed"),
    ],
)
def test_what_stays(build, reason):
    report = assert_unchanged(build(), images_for())
    assert sum(kept.reason.startswith(reason) for kept in report.kept) == 2


def test_attention_dropout_takes_the_original_path():
    model = sam_of_timm(attn_drop_rate=0.4, drop_path_rate=0.0)
    swapped = copy.deepcopy(model)
    report = vitkern.accelerate(swapped)
    assert all("in training the original block runs" in entry.notes[0] for entry in report)
    assert_same_gradients(model.double().train(), swapped.double().train(), images_for().double())
    model.float().eval(), swapped.float().eval()
    assert_near(logits(swapped, images_for()), logits(model, images_for()), 2e-5, "eval")


def test_dropout_of_weights_in_sam():
    model = sam("eager", attention_dropout=0.4)
    swapped = copy.deepcopy(model)
    report = vitkern.accelerate(swapped)
    assert any("attention dropout is active" in note for entry in report for note in entry.notes)
    assert_same_gradients(model.train(), swapped.train(), images_for(), limit=1e-4)


@pytest.mark.parametrize("build, name", [(sam_of_timm, "attn"), (vitdet, "attention"), (sam, "attn")])
def test_hooks_that_come_later_see_what_they_always_saw(build, name):
    model = build().eval()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    shapes = {model: [], swapped: []}
    for each in shapes:
        for path, module in each.named_modules():
            if path.rsplit(".", 1)[-1] == name:
                module.qkv.register_forward_hook(lambda module, args, out, each=each: shapes[each].append(out.shape))
                module.proj.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    assert_near(logits(swapped, images_for()), logits(model, images_for()), 2e-5, "hooked")
    assert len(shapes[model]) == 2 and shapes[swapped] == shapes[model]


@pytest.mark.parametrize("build", [vitdet, sam])
def test_attention_weights_for_those_who_ask(build):
    model = build("eager").eval() if build is sam else build().eval()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    for actual, expected in zip(
        *(each.model(images_for(), output_attentions=True).attentions for each in (swapped, model)), strict=True
    ):
        assert_near(actual, expected, 2e-5, "weights")


def test_restores_and_compiles():
    model = sam_of_timm().eval()
    before = [type(module) for module in model.modules()]
    expected, expected_gradients = gradients(model, images_for())
    report = vitkern.accelerate(model)
    torch._dynamo.reset()
    actual, actual_gradients = gradients(torch.compile(model, backend="aot_eager"), images_for())
    assert_near(actual, expected, 1e-5, "logits")
    for name, gradient in expected_gradients.items():
        assert_near(actual_gradients.get(f"_orig_mod.{name}", actual_gradients.get(name)), gradient, 1e-4, name)
    report.restore()
    assert [type(module) for module in model.modules()] == before


def test_vmap_over_stacked_parameters():
    """An ensemble in one call, with the gradient of each member; SDPA does not see that its mask has one."""
    members = [randomise(vitdet(drop_path_rate=0.0), seed).double().eval() for seed in range(2)]
    images = torch.randn(2, 3, 40, 40, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    results = []
    for _ in ("original", "accelerated"):
        skeleton = copy.deepcopy(members[0])
        parameters, buffers = torch.func.stack_module_state(members)

        def call(parameters, buffers, skeleton=skeleton):
            return torch.func.functional_call(skeleton, (parameters, buffers), (images,))

        out = torch.func.vmap(call)(parameters, buffers)
        results.append((out, torch.autograd.grad(out.square().sum(), list(parameters.values()))))
        for member in members:
            vitkern.accelerate(member)
    (expected, gradients_of_original), (actual, gradients_now) = results
    assert_near(actual, expected, 1e-10, "members")
    for gradient, wanted, name in zip(gradients_now, gradients_of_original, parameters, strict=True):
        assert_near(gradient, wanted, 1e-8, name)
