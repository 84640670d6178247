"""What of transformers' models keeps its attention function, and what happens to those that get another one: their
configurations, their masks, their weights on request."""

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from swapping import assert_near, randomise
from torch import nn
from transformers.models.sam_hq import modeling_sam_hq
from transformers.models.videoprism import configuration_videoprism, modeling_videoprism

import vitkern
from vitkern.interop import transformers as by_name
from vitkern.interop.attends import attends
from vitkern.interop.transformers import attention_forward
from vitkern.interop.transformers_exchange import SeenConfig

hf.logging.set_verbosity_error()
ROOT = Path(__file__).resolve().parent.parent
VISION = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8
)
TEXT = dict(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=4,
)


def pictures(*shape):
    return torch.randn(*(shape or (2, 3, 32, 32)), generator=torch.Generator().manual_seed(1))


def words(count=12, padded=True):
    ids = torch.randint(3, 90, (2, count), generator=torch.Generator().manual_seed(2))
    keep = torch.ones(2, count, dtype=torch.long)
    if padded:
        keep[0, :3] = 0
    return dict(input_ids=ids, attention_mask=keep)


def llava():
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.MistralConfig(**TEXT),
        image_token_index=98,
        vision_feature_layer=-1,
    )
    ids = torch.cat([torch.full((2, 16), 98), words()["input_ids"]], 1)
    return hf.LlavaForConditionalGeneration(config), dict(pixel_values=pictures(), input_ids=ids)


def gemma3():
    types = ["sliding_attention", "full_attention"]
    config = hf.Gemma3Config(
        vision_config=dict(VISION, vision_use_head=False),
        text_config=dict(TEXT, head_dim=8, layer_types=types),
        mm_tokens_per_image=16,
        image_token_index=98,
        image_token_id=98,
        boi_token_index=97,
        eoi_token_index=96,
    )
    ids = torch.cat([torch.full((2, 16), 98), words()["input_ids"]], 1)
    return hf.Gemma3ForConditionalGeneration(config), dict(pixel_values=pictures(), input_ids=ids)


def mistral():
    return hf.MistralModel(hf.MistralConfig(**TEXT)), words()


def modernbert():
    sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    config = hf.ModernBertConfig(**sizes, local_attention=4, global_attn_every_n_layers=2, pad_token_id=0)
    return hf.ModernBertModel(config), words()


def gemma2():
    return hf.Gemma2Model(hf.Gemma2Config(**TEXT, head_dim=8, attn_logit_softcapping=1.0)), words()


def videoprism():
    config = configuration_videoprism.VideoPrismVisionConfig(
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=48,
        num_spatial_layers=2,
        num_temporal_layers=1,
        num_auxiliary_layers=1,
        image_size=32,
        tubelet_size=[1, 8, 8],
        num_frames=2,
    )
    model = modeling_videoprism.VideoPrismVisionModel(config)
    return model, dict(pixel_values_videos=pictures(1, 2, 3, 32, 32))


def git():
    vision = dict(VISION)
    sizes = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    config = hf.GitConfig(vision_config=vision, **sizes)
    return hf.GitForCausalLM(config), dict(pixel_values=pictures(), **words(7, padded=False))


def bridgetower():
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    vision = dict(sizes, hidden_size=64, image_size=32, patch_size=8)
    config = hf.BridgeTowerConfig(**sizes, vision_config=vision, text_config=dict(sizes, vocab_size=99))
    return hf.BridgeTowerModel(config), dict(pixel_values=pictures(), **words(7))


def detr(config, model):
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    config = config(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        hidden_size=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_queries=6,
    )
    return model(config), dict(pixel_values=pictures(1, 3, 64, 64))


def conditional_detr():
    return detr(hf.ConditionalDetrConfig, hf.ConditionalDetrForObjectDetection)


def dab_detr():
    return detr(hf.DabDetrConfig, hf.DabDetrForObjectDetection)


def levit():
    config = hf.LevitConfig(
        image_size=64, hidden_sizes=[16, 32, 48], num_attention_heads=[1, 2, 3], depths=[1, 1, 1], key_dim=[8, 8, 8]
    )
    return hf.LevitModel(config), dict(pixel_values=pictures(2, 3, 64, 64))


def sam():
    vision = dict(VISION, mlp_dim=64, output_channels=8, global_attn_indexes=[0])
    return hf.SamVisionModel(hf.SamVisionConfig(**vision)), dict(pixel_values=pictures())


def sam_hq():
    vision = dict(VISION, mlp_dim=64, output_channels=8, global_attn_indexes=[0])
    return modeling_sam_hq.SamHQVisionModel(hf.SamHQVisionConfig(**vision)), dict(pixel_values=pictures())


def vit(**changes):
    return hf.ViTModel(hf.ViTConfig(**VISION, **changes)), dict(pixel_values=pictures())


def resnet():
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1])
    return hf.ResNetModel(config), dict(pixel_values=pictures())


def tensors(output):
    """{name: tensor} of a model's output."""
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


# Attention modules that are swapped, and all that there are.
MODELS = {
    "llava, Mistral": (llava, 4, 4),
    "gemma 3": (gemma3, 4, 4),
    "mistral": (mistral, 2, 2),
    "modernbert": (modernbert, 3, 3),
    "gemma 2": (gemma2, 0, 2),
    "videoprism": (videoprism, 0, 3),
    "git": (git, 0, 4),
    "bridgetower": (bridgetower, 0, 12),
    "conditional detr": (conditional_detr, 3, 3),
    "dab detr": (dab_detr, 0, 3),
    "levit": (levit, 0, 5),
    "sam": (sam, 2, 2),
    "resnet": (resnet, 0, 0),
}


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_what_it_gave(name, eager, monkeypatch):
    build, swapped, all_of_them = MODELS[name]
    model, arguments = build()
    randomise(model.eval())
    if eager and model._supports_sdpa:
        model.set_attn_implementation("eager")
    other = copy.deepcopy(model)
    report = vitkern.accelerate(other)
    assert len(report.attention) == all_of_them
    assert len([each for each in report.attention if each.by is not None]) == swapped
    calls = []
    counted = by_name.attention
    monkeypatch.setattr(by_name, "attention", lambda *args, **kwargs: (calls.append(1), counted(*args, **kwargs))[1])
    with torch.no_grad():
        expected, actual = tensors(model(**arguments)), tensors(other(**arguments))
    if name == "sam":  # whose layers are swapped whole
        swapped = 0
    elif build is llava and eager:  # transformers hooks the tower's attention, once it recorded hidden states
        swapped = 2
    assert len(calls) == swapped
    assert actual.keys() == expected.keys() and expected
    for key, value in expected.items():
        assert_near(actual[key], value, 5e-5, key)


@pytest.mark.parametrize("name", ["gemma 2", "videoprism", "git", "bridgetower"])
def test_models_without_sdpa_are_kept_with_the_reason(name):
    report = vitkern.accelerate(MODELS[name][0]()[0])
    reasons = {kept.reason for kept in report.kept if attends(kept.kind)}
    reasons -= {"no adapter for this class"}  # of what has no interface
    assert reasons and all("have eager attention alone" in reason for reason in reasons)
    assert not any("attention" in op for entry in report for op in entry.ops)
    assert re.search(r"attention is computed by (\d+) modules: \1 as before", str(report))


def test_a_function_that_somebody_chose_is_kept(monkeypatch):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    calls = []

    def chosen(module, query, *args, **kwargs):
        calls.append(module)
        return query.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", chosen)
    model, arguments = vit()
    report = vitkern.accelerate(model, only="*attention")
    assert {kept.reason for kept in report.kept if "ttention" in kept.kind.__name__} == {
        "somebody replaced transformers' sdpa function"
    }
    model(**arguments)
    assert len(calls) == 2


# Configurations


@pytest.mark.parametrize("build", [vit, sam, gemma3])
def test_the_configuration_stays_what_it_is(build):
    model, arguments = build()
    names = [m.config._attn_implementation for m in model.modules() if isinstance(m, hf.PreTrainedModel)]
    twin = type(model)(model.config)
    vitkern.accelerate(model)
    assert names == [m.config._attn_implementation for m in model.modules() if isinstance(m, hf.PreTrainedModel)]
    later = type(model)(model.config)
    for other in (twin, later):
        assert not any(isinstance(vars(m).get("config"), SeenConfig) for m in other.modules())
        other(**arguments)
    assert model.config.to_dict() == later.config.to_dict()


def test_a_change_of_the_attention_function_afterwards_holds():
    model, arguments = vit()
    vitkern.accelerate(model)
    attention = model.layers[0].attention if hasattr(model, "layers") else model.encoder.layer[0].attention
    assert attention.config._attn_implementation == "vitkern_exchanged"
    model.set_attn_implementation("eager")
    assert attention.config._attn_implementation == "eager"
    assert model(**arguments, output_attentions=True).attentions[0] is not None
    model.set_attn_implementation("sdpa")
    assert attention.config._attn_implementation == "vitkern_exchanged"
    attention.config.some_value = 3
    assert model.config.some_value == 3 and attention.config.hidden_size == 32


@pytest.mark.parametrize("build", [vit, mistral])
def test_asking_for_weights_afterwards_gives_them(build):
    model, arguments = build()
    randomise(model.eval()).set_attn_implementation("eager")
    other = copy.deepcopy(model)
    vitkern.accelerate(other)
    assert other(**arguments).keys() == model(**arguments).keys()
    for each in (model, other):
        each.config.output_attentions = True
    expected, actual = model(**arguments).attentions, other(**arguments).attentions
    assert expected and len(actual) == len(expected)
    for weights, others in zip(expected, actual, strict=True):
        assert_near(others, weights, 2e-5, "weights")


def test_a_hook_on_eager_attention_sees_the_weights():
    model, arguments = vit(attn_implementation="eager")
    randomise(model.eval())
    seen = {}

    def hook(key):
        return lambda module, args, out: seen.setdefault(key, []).append(out[1])

    for key in ("before", "after"):
        if key == "after":
            vitkern.accelerate(model)
        handles = [
            module.register_forward_hook(hook(key))
            for module in model.modules()
            if type(module).__name__ == "ViTAttention"
        ]
        assert len(handles) == 2
        model(**arguments)
        for handle in handles:
            handle.remove()
    for before, after in zip(seen["before"], seen["after"], strict=True):
        assert_near(after, before, 2e-5, "weights")


# Copies


@pytest.mark.parametrize("build", [vit, sam, mistral])
def test_copies_are_swapped_too(build):
    model, arguments = build()
    randomise(model.eval())
    vitkern.accelerate(model)
    expected = tensors(model(**arguments))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
        seen = [m for m in other.modules() if isinstance(vars(m).get("config"), SeenConfig)]
        assert len(seen) == len([m for m in model.modules() if isinstance(vars(m).get("config"), SeenConfig)])
        owners = {id(m.config) for m in other.modules() if isinstance(m, hf.PreTrainedModel)}
        assert all(id(vars(m.config)["source"]) in owners for m in seen)
        for key, value in tensors(other(**arguments)).items():
            assert_near(value, expected[key], 1e-6, key)


def test_pickled_models_load_in_another_process(tmp_path):
    for build in (vit, sam_hq, mistral):
        model, arguments = build()
        randomise(model.eval())
        vitkern.accelerate(model)
        torch.save(model, tmp_path / f"{build.__name__}.model")
        torch.save((arguments, model(**arguments)[0].detach()), tmp_path / f"{build.__name__}.expected")
    code = """
import torch
for name in ("vit", "sam_hq", "mistral"):
    model = torch.load(f"{name}.model", weights_only=False)
    arguments, expected = torch.load(f"{name}.expected", weights_only=False)
    assert torch.allclose(model(**arguments)[0], expected, atol=1e-4), name
    assert any(type(module).__module__.startswith("vitkern.") for module in model.modules()) or name == "mistral"
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr


# The function by name


@pytest.mark.parametrize("build", [mistral, modernbert])
def test_sliding_windows_by_name(build):
    model, arguments = build()
    randomise(model.eval())
    with torch.no_grad():
        expected = model(**arguments).last_hidden_state
        model.set_attn_implementation("vitkern")
        actual = model(**arguments).last_hidden_state
    seen = arguments["attention_mask"].bool()
    assert_near(actual[seen], expected[seen], 2e-5, "words that are no padding")


def test_eager_attention_is_causal_by_its_mask_alone():
    """As transformers computes it: a causal module called without a mask sees everything."""
    model, _ = mistral()
    layer = randomise(model.eval()).layers[0].self_attn
    model.set_attn_implementation("eager")
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(3))
    positions = model.rotary_emb(x, torch.arange(6)[None])
    expected = layer(x, positions, None)[0]
    assert len(vitkern.accelerate(model)) == 2
    assert_near(layer(x, positions, None)[0], expected, 2e-5, "without a mask")


def heads(value=8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 6, 8), (2, 2, 6, 8), (2, 2, 6, value)]
    return [torch.randn(shape, generator=generator, dtype=torch.double, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("value", [4, 8, 16])
@pytest.mark.parametrize("masked", [False, True])
def test_values_of_another_size(value, masked):
    q, k, v = heads(value)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril() if masked else None
    out, _ = attention_forward(nn.Identity(), q, k, v, mask, is_causal=False)
    keys, values = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    expected = nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask).transpose(1, 2)
    assert_near(out, expected, 1e-12, "values")
    for actual, wanted in zip(
        torch.autograd.grad(out.square().sum(), (q, k, v)),
        torch.autograd.grad(expected.square().sum(), (q, k, v)),
        strict=True,
    ):
        assert_near(actual, wanted, 1e-10, "gradient")


def test_capped_scores():
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    q, k, v = heads()
    module = nn.Identity()
    module.num_key_value_groups, module.head_dim = 2, 8
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.double).masked_fill(torch.ones(6, 6).triu(1).bool(), -1e30)
    expected, weights = eager_attention_forward(module, q, k, v, mask, scaling=0.5, softcap=0.7)
    out, nothing = attention_forward(module, q, k, v, mask, scaling=0.5, softcap=0.7)
    assert_near(out, expected, 1e-6, "capped")  # whose softmax is in float32
    assert nothing is None
    assert_near(
        attention_forward(module, q, k, v, mask, scaling=0.5, softcap=0.7, output_attentions=True)[1],
        weights,
        1e-6,
        "weights",
    )
    assert not torch.allclose(out, attention_forward(module, q, k, v, mask, scaling=0.5)[0], atol=1e-3)
