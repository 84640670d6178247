"""transformers' models before and after `vitkern.accelerate`, and ``attn_implementation="vitkern"`` by itself."""

import copy
import types

import pytest
import torch
import transformers as hf
from swapping import assert_near, assert_same_gradients, assert_unchanged, gradients, logits, randomise
from torch import nn

import vitkern
from vitkern.interop.apart import why_not
from vitkern.interop.transformers import attention_forward, register
from vitkern.interop.transformers_exchange import SeenConfig

hf.logging.set_verbosity_error()
VIT = dict(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    image_size=32,
    patch_size=8,
    num_labels=5,
)
SWIN = dict(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, image_size=64, patch_size=4, num_labels=5)


def vit(**changes):
    return randomise(hf.ViTForImageClassification(hf.ViTConfig(**{**VIT, **changes})))


def deit(**changes):
    return randomise(hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**{**VIT, **changes})))


def swin(**changes):
    return randomise(hf.SwinForImageClassification(hf.SwinConfig(**{**SWIN, **changes})))


def swin_v2(**changes):
    return randomise(hf.Swinv2ForImageClassification(hf.Swinv2Config(**{**SWIN, **changes})))


def clip():
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    text, vision = dict(sizes, vocab_size=50), dict(sizes, image_size=32, patch_size=8)
    return randomise(hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)))


def pictures(height=32, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


VARIANTS = {
    "vit": (vit, {}, (32, 32)),
    "vit, no qkv bias": (vit, dict(qkv_bias=False), (32, 32)),
    "vit, tanh GELU": (vit, dict(hidden_act="gelu_pytorch_tanh"), (32, 32)),
    "vit, new GELU": (vit, dict(hidden_act="gelu_new"), (32, 32)),
    "vit, quick GELU": (vit, dict(hidden_act="quick_gelu"), (32, 32)),
    "deit": (deit, {}, (32, 32)),
    "swin": (swin, dict(drop_path_rate=0.0), (64, 64)),
    "swin, the window does not divide the image": (swin, dict(drop_path_rate=0.0), (40, 56)),
    "swin, stochastic depth": (swin, dict(drop_path_rate=0.5), (40, 56)),
    "swin, no qkv bias": (swin, dict(qkv_bias=False), (40, 56)),
    "swin v2": (swin_v2, dict(drop_path_rate=0.0), (64, 64)),
    "swin v2, the window does not divide the image": (swin_v2, dict(drop_path_rate=0.0), (40, 56)),
    "swin v2, stochastic depth": (swin_v2, dict(drop_path_rate=0.5), (40, 56)),
    "swin v2, pretrained window": (swin_v2, dict(pretrained_window_sizes=[6, 6, 6, 6]), (64, 64)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_stay(variant):
    build, changes, size = VARIANTS[variant]
    report = assert_unchanged(build(**changes), pictures(*size))
    layers = 4 if "swin" in variant else 2
    assert len([entry for entry in report if "Layer" in entry.original.__name__]) == layers
    assert not report.kept


def test_swin_v2_masks_twice():
    """Scores reach +-100, so that a mask of -100 leaks in another way than the -200 that transformers ends up with."""
    model = swin_v2(window_size=2, drop_path_rate=0.0)
    with torch.no_grad():
        for layer in model.modules():
            if type(layer).__name__ == "Swinv2SelfAttention":
                layer.logit_scale.fill_(5.0)  # clamped to ln 100
                layer.query.weight.copy_(-layer.key.weight)  # a token is least like itself
                layer.query.bias.zero_()
    assert_unchanged(model, pictures(40, 56))


def test_swin_keeps_its_state_over_sizes():
    """transformers shrinks shift and window for good once an image is that small; so does the swapped model."""
    model = swin().eval()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    for size in [(64, 64), (32, 32), (64, 64)]:  # 8 x 8 and 4 x 4 tokens: the second stage loses its shift
        assert_near(logits(swapped, pictures(*size)), logits(model, pictures(*size)), 2e-5, str(size))
    shifts = [[layer.shift_size for layer in stage.blocks] for stage in swapped.swin.encoder.layers]
    assert shifts == [[layer.shift_size for layer in stage.blocks] for stage in model.swin.encoder.layers]


@pytest.mark.parametrize("build", [vit, swin, swin_v2])
def test_attention_dropout(build):
    model = build(attention_probs_dropout_prob=0.3)
    swapped = copy.deepcopy(model)
    report = vitkern.accelerate(swapped)
    images = pictures() if build is vit else pictures(40, 56)
    assert_near(logits(swapped.eval(), images), logits(model.eval(), images), 2e-5, "eval")
    first, _ = gradients(swapped.train(), images, seed=1)
    second, _ = gradients(swapped, images, seed=2)
    assert not torch.allclose(first, second)
    if build is not vit:
        assert any("attention dropout" in note for entry in report for note in entry.notes)
    if build is swin_v2:  # its attention has no interface, so the original runs with the same random numbers
        model.double().train(), swapped.double().train()
        assert_same_gradients(model, swapped, images.double())


@pytest.mark.parametrize("build", [vit, swin, swin_v2])
def test_hidden_dropout_keeps_the_original_mlp_in_training(build):
    model = build(hidden_dropout_prob=0.3)
    swapped = copy.deepcopy(model)
    report = vitkern.accelerate(swapped)
    assert any("its dropout is active" in note for entry in report for note in entry.notes)
    images = pictures() if build is vit else pictures(64, 64)
    assert_near(logits(swapped.eval(), images), logits(model.eval(), images), 2e-5, "eval")
    if build is vit:
        model.double().train(), swapped.double().train()
        assert_same_gradients(model, swapped, images.double())


@pytest.mark.parametrize("build", [vit, swin, swin_v2])
@pytest.mark.parametrize("first", ["swap", "change"])
def test_attachments_keep_their_effect(build, first):
    model = build().eval()
    swapped = copy.deepcopy(model)
    images = pictures() if build is vit else pictures(40, 56)

    def attach(each):
        linears = [
            m
            for name, m in each.named_modules()
            if isinstance(m, nn.Linear) and any(w in name for w in ("value", "v_proj", "fc1", "dense"))
        ]
        for linear in linears[:3]:
            linear.register_forward_hook(lambda module, args, out: out * 2)

    attach(model)
    for step in (attach, vitkern.accelerate) if first == "change" else (vitkern.accelerate, attach):
        step(swapped)
    assert_near(logits(swapped, images), logits(model, images), 2e-5, "hooked")


@pytest.mark.parametrize("build", [vit, swin, swin_v2])
def test_hidden_states_are_recorded(build):
    model = build().eval()
    images = pictures() if build is vit else pictures(64, 64)
    expected = model(images, output_hidden_states=True).hidden_states
    vitkern.accelerate(model)
    actual = model(images, output_hidden_states=True).hidden_states
    assert len(actual) == len(expected) > 2
    for a, b in zip(actual, expected, strict=True):
        assert_near(a, b, 2e-5, "hidden state")


@pytest.mark.parametrize("build", [vit, swin, swin_v2])
def test_attention_weights_on_request(build):
    model = build()
    if build is not swin_v2:
        model.set_attn_implementation("eager")
    images = pictures() if build is vit else pictures(64, 64)
    expected = model.eval()(images, output_attentions=True)
    vitkern.accelerate(model)
    actual = model(images, output_attentions=True)
    assert len(actual.attentions) == len(expected.attentions) == 2
    for a, b in zip(actual.attentions, expected.attentions, strict=True):
        assert_near(a, b, 2e-5, "weights")
    assert_near(actual.logits, expected.logits, 2e-5, "logits")


def test_a_config_that_asks_for_weights_keeps_the_attention_function():
    model = vit(attn_implementation="eager")
    model.config.output_attentions = True
    report = vitkern.accelerate(model)
    assert model.config._attn_implementation == "eager"
    assert [kept.reason for kept in report.kept] == ["config.output_attentions asks for the weights"] * 2


@pytest.mark.parametrize("build", [vit, swin, clip])
def test_restore_puts_the_attention_function_back(build):
    model = build()
    before = model.config._attn_implementation
    classes = [type(m) for m in model.modules()]
    report = vitkern.accelerate(model)
    assert any(isinstance(getattr(m, "config", None), SeenConfig) for m in model.modules()) == (build is not swin)
    assert model.config._attn_implementation == before != "vitkern"
    report.restore()
    assert not any(isinstance(getattr(m, "config", None), SeenConfig) for m in model.modules())
    assert [type(m) for m in model.modules()] == classes


def test_composite_models_and_a_part_of_a_larger_module():
    model = clip().eval()
    ids = torch.randint(0, 49, (2, 9))
    keep = torch.ones(2, 9, dtype=torch.long)
    keep[0, 6:] = 0
    call = dict(input_ids=ids, attention_mask=keep, pixel_values=pictures())
    expected = model(**call)
    outer = nn.ModuleDict({"clip": model})
    with vitkern.accelerate(outer) as report:
        layers = [f"clip.{tower}_model.encoder.layers.{i}" for tower in ("text", "vision") for i in range(2)]
        parts = ("", "layernorm_mlp"), (".self_attn", "attention")
        swapped = [(entry.name, *entry.ops) for entry in report]
        assert swapped == [(layer + part, op) for layer in layers for part, op in parts]
        actual = model(**call)
        assert_near(actual.text_embeds, expected.text_embeds, 2e-5, "text, causal and padded")
        assert_near(actual.image_embeds, expected.image_embeds, 2e-5, "vision")


def test_padding_masks_reach_a_bidirectional_text_tower():
    config = hf.SiglipTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50
    )
    model = randomise(hf.SiglipTextModel(config)).eval()
    ids, keep = torch.randint(0, 49, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    keep[0, 5:] = 0
    expected = model(input_ids=ids, attention_mask=keep).last_hidden_state
    model.set_attn_implementation("vitkern")
    actual = model(input_ids=ids, attention_mask=keep).last_hidden_state
    assert_near(actual[0, :5], expected[0, :5], 2e-5, "padded")
    assert not torch.allclose(actual[0, :5], model(input_ids=ids).last_hidden_state[0, :5], atol=1e-3)


def test_by_name_when_the_model_is_built():
    register()
    model = vit(attn_implementation="vitkern").eval()
    other = vit(attn_implementation="eager").eval()
    other.load_state_dict(model.state_dict())
    assert_near(logits(model, pictures()), logits(other, pictures()), 2e-5, "by name")
    report = vitkern.accelerate(model)
    assert {kept.reason for kept in report.kept} == {'already swapped, by attn_implementation="vitkern"'}
    assert "attention is computed by 2 modules: 2 on vitkern's PyTorch path" in str(report)


def test_a_relative_bias_has_its_gradient():
    config = hf.BeitConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        use_relative_position_bias=True,
    )
    model = randomise(hf.BeitForImageClassification(config)).double().eval()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    assert_same_gradients(model, swapped, pictures().double())


def qkv(heads=4, key_heads=4, tokens=6, keys=6):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, tokens, 8), (2, key_heads, keys, 8), (2, key_heads, keys, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.double) for shape in shapes]


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        "causal by the module",
        "causal by default",
        "not causal",
        "mask",
        "bias",
        "bias and mask",
        "grouped",
        "decoding",
        "prefill",
    ],
)
def test_attention_function_against_sdpa(case, weights):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    module = types.SimpleNamespace(num_key_value_groups=2 if case == "grouped" else 1)
    if case != "causal by default":
        module.is_causal = case in ("causal by the module", "grouped", "decoding", "prefill")
    q, k, v = qkv(
        key_heads=2 if case == "grouped" else 4,
        tokens=1 if case == "decoding" else 6,
        keys=9 if case == "prefill" else 6,
    )
    mask = torch.rand(2, 1, 6, 6) > 0.3 if "mask" in case else None
    if mask is not None:
        mask |= torch.eye(6, dtype=torch.bool)
    arguments = dict(
        scaling=0.3, dropout=0.0, position_bias=torch.randn(1, 4, 6, 6, dtype=torch.double) if "bias" in case else None
    )
    expected, _ = sdpa_attention_forward(module, q, k, v, mask, **arguments)
    actual, p = attention_forward(module, q, k, v, mask, output_attentions=weights, **arguments)
    assert actual.is_contiguous()
    assert_near(actual, expected, 1e-10, case)
    assert (p is not None) == weights
    if weights:
        assert torch.allclose(p.sum(-1), torch.ones_like(p.sum(-1)))


def test_a_query_without_keys_has_weights_and_a_result_of_zero():
    """As a padded token to the left of a sliding window."""
    module, (q, k, v) = types.SimpleNamespace(num_key_value_groups=1, is_causal=False), qkv()
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    mask[..., 2, :] = False
    for weights in (False, True):
        out, p = attention_forward(module, q, k, v, mask, output_attentions=weights)
        assert out[:, 2].eq(0).all() and out.isfinite().all() and out[:, 1].ne(0).all()
    assert p[:, :, 2].eq(0).all() and torch.allclose(p[:, :, 1].sum(-1), torch.ones(2, 4, dtype=p.dtype))


@pytest.mark.parametrize("name", ["cu_seq_lens_q", "cache", "something_new"])
def test_arguments_that_change_the_result_are_refused(name):
    with pytest.raises(NotImplementedError, match=name):
        attention_forward(nn.Identity(), *qkv(), None, **{name: 30})
    attention_forward(nn.Identity(), *qkv(), None, **{name: None}, output_hidden_states=True, use_cache=False)


@pytest.mark.parametrize("build", [vit, swin])
def test_compiles_as_one_graph(build):
    model = build(num_hidden_layers=1).eval() if build is vit else build(depths=[2], num_heads=[2]).eval()
    vitkern.accelerate(model)
    images = pictures() if build is vit else pictures(40, 56)
    torch._dynamo.reset()
    with torch.no_grad():
        assert_near(
            torch.compile(model, backend="aot_eager", fullgraph=True)(images).logits,
            model(images).logits,
            1e-5,
            "compiled",
        )


def test_gradient_checkpointing():
    model = swin().double().train()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    getattr(swapped, "activation_checkpointing_enable", swapped.gradient_checkpointing_enable)()
    assert_same_gradients(model, swapped, pictures(40, 56).double())


def test_images_side_by_side():
    model, images = vit().eval(), torch.cat([pictures(), pictures()])
    side = vitkern.accelerate(model, images_side_by_side=True).side_by_side
    labels, threads = torch.tensor([0, 1, 2, 0]), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            whole, beside = model(pixel_values=images), model(pixel_values=images)
            losses = [model(pixel_values=images, labels=labels).loss for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    assert side.shared == 1 and type(beside) is type(whole) and list(beside) == list(whole)
    assert_near(beside.logits, whole.logits, 1e-5, "shared out")
    assert torch.equal(*losses) and "first dimension is not that of the images" in str(side)


def test_what_compares_images_with_texts_is_not_shared_out():
    model = clip()
    side = vitkern.accelerate(model, images_side_by_side=True).side_by_side
    assert side.where == "" or isinstance(model.get_submodule(side.where), hf.PreTrainedModel)
    assert "compares each image with each text" in why_not(model)
