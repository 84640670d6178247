"""What the report of `vitkern.accelerate` says of attention: every module that computes it, whatever its class is
called, and where it runs here and now."""

import pytest
import timm
import torch
import torchvision
import transformers as hf
from torch import nn
from torch.nn.modules import module as hooks

import vitkern
from vitkern import dispatch
from vitkern.interop.attends import attends
from vitkern.interop.report import KERNEL, ORIGINAL, PYTORCH, WAITING

hf.logging.set_verbosity_error()
# Of a model of timm: modules whose attention runs on vitkern here, that wait for a kernel, that stay as they were.
TIMM = {
    "vit_tiny_patch16_224": (12, 0, 0),
    "swinv2_tiny_window8_256": (12, 0, 0),
    "samvit_base_patch16_224": (12, 0, 0),
    "twins_svt_small": (0, 18, 0),
    "twins_pcpvt_small": (0, 16, 0),
    "davit_tiny": (6, 6, 0),
    "maxvit_tiny_tf_224": (0, 22, 0),
    "halonet26t": (2, 1, 0),
    "crossvit_9_240": (12, 6, 0),
    "cait_xxs24_224": (26, 0, 0),
    "xcit_nano_12_p16_224": (14, 0, 0),
    "efficientvit_b0": (0, 0, 4),
    "volo_d1_224": (0, 16, 4),
    "levit_128": (0, 14, 0),
    "shvit_s1": (0, 9, 0),
    "mobilevitv2_050": (0, 9, 0),
    "vit_pwee_patch16_reg1_gap_256": (0, 16, 0),
    "poolformer_s12": (0, 0, 0),
    "focalnet_tiny_srf": (0, 0, 0),
    "resnet18": (0, 0, 0),
}


def line(served, waiting, kept):
    parts = ((served, PYTORCH), (kept, ORIGINAL), (waiting, WAITING))
    total = served + waiting + kept
    return f"attention is computed by {total} modules: {', '.join(f'{n} {what}' for n, what in parts if n)}"


def on_meta(build):
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize("name", TIMM)
def test_attention_of_a_model_of_timm(name):
    report = vitkern.accelerate(on_meta(lambda: timm.create_model(name)))
    assert len(report.attention) == sum(TIMM[name])
    reasons = {kept.name for kept in report.kept}
    assert all(each.by is not None or each.name in reasons for each in report.attention)
    if sum(TIMM[name]):
        assert line(*TIMM[name]) in str(report).split("\n")
    else:
        assert str(report).startswith("swapped nothing") and "attention" not in str(report)


VISION = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32)
SWIN = dict(embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, image_size=32, patch_size=4)


def mask2former():
    swin = hf.SwinConfig(**SWIN | dict(depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2]))
    swin.out_features = ["stage1", "stage2", "stage3", "stage4"]
    sizes = dict(feature_size=32, mask_feature_size=32, hidden_dim=32, num_attention_heads=4, num_queries=4)
    sizes |= dict(encoder_feedforward_dim=32, dim_feedforward=32, encoder_layers=2, decoder_layers=3)
    config = hf.Mask2FormerConfig(backbone_config=swin, use_timm_backbone=False, use_pretrained_backbone=False, **sizes)
    return hf.Mask2FormerForUniversalSegmentation(config)


def zoedepth():
    layers = dict(VISION, num_hidden_layers=4)
    beit = hf.BeitConfig(**layers, patch_size=8, out_indices=[1, 2, 3, 4], reshape_hidden_states=False)
    sizes = dict(backbone_hidden_size=32, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16)
    sizes |= dict(bottleneck_features=16, num_relative_features=8, bin_embedding_dim=8, num_attractors=[1, 1, 1, 1])
    return hf.ZoeDepthForDepthEstimation(hf.ZoeDepthConfig(backbone_config=beit, **sizes))


def llava():
    text = dict(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    vision = hf.CLIPVisionConfig(**VISION, patch_size=8)
    text_config = hf.MistralConfig(**text, num_key_value_heads=2)
    return hf.LlavaForConditionalGeneration(hf.LlavaConfig(vision_config=vision, text_config=text_config))


def resnet():
    return hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1]))


HF = {
    "Mask2Former": (mask2former, (4, 0, 6)),
    "ZoeDepth": (zoedepth, (4, 0, 0)),
    "LLaVA": (llava, (5, 0, 0)),
    "Donut's Swin": (lambda: hf.DonutSwinModel(hf.DonutSwinConfig(**SWIN)), (2, 0, 0)),
    "FLAVA": (lambda: hf.FlavaImageModel(hf.FlavaImageConfig(**VISION, patch_size=8)), (2, 0, 0)),
    "ResNet": (resnet, (0, 0, 0)),
}


@pytest.mark.parametrize("name", HF)
def test_attention_of_a_model_of_transformers(name):
    build, counts = HF[name]
    report = vitkern.accelerate(build())
    assert len(report.attention) == sum(counts)
    assert (line(*counts) in str(report).split("\n")) == (sum(counts) > 0)
    assert sum(counts) > 0 or str(report).startswith("swapped nothing")


def test_attention_of_torchvisions_maxvit_is_counted_once():
    report = vitkern.accelerate(on_meta(torchvision.models.maxvit_t))
    assert len(report.attention) == len(report.kept) == 22 and not report.swapped


def test_a_glob_finds_what_is_inside_a_larger_model():
    report = vitkern.accelerate(llava(), only="model.vision_tower*")
    assert len(report) == 4 and all(entry.name.startswith("model.vision_tower.") for entry in report)
    assert [kept.reason for kept in report.kept] == ["left out by only"] * 3
    report = vitkern.accelerate(hf.ViTModel(hf.ViTConfig(**VISION, patch_size=8)), only="*layer*.0*")
    assert len(report) == 2 and all(".0" in entry.name for entry in report)


class Mixer(nn.Module):
    """Attention that is not called so."""

    def __init__(self, softmax):
        super().__init__()
        self.qkv, self.softmax = nn.Linear(8, 24), softmax

    def forward(self, x):
        return self._mixed(*self.qkv(x).chunk(3, -1))

    def _mixed(self, q, k, v):
        scores = q @ k.mT
        return (scores.softmax(-1) if self.softmax else scores) @ v


class LinearMixer(Mixer):
    def _mixed(self, q, k, v):
        return torch.bmm(q, torch.einsum("bnd,bne->bde", k, v))


class AttentionalPooling(nn.Module):
    """No attention, which its name says that it is."""

    def forward(self, x):
        return x.log_softmax(-1).sum(-1)


class Gate(nn.Module):
    def forward(self, x):
        return x.softmax(-1) * x


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(Mixer, True), (LinearMixer, True), (nn.MultiheadAttention, True), (AttentionalPooling, False), (Gate, False)],
)
def test_attention_is_known_by_what_it_calls(kind, expected):
    assert attends(kind) is expected
    assert attends(type("Heir", (kind,), {})) is expected


def test_attention_of_a_class_that_nobody_knows_is_named():
    report = vitkern.accelerate(nn.Sequential(Mixer(True), Gate()))
    assert [(kept.name, kept.kind, kept.reason) for kept in report.kept] == [("0", Mixer, "no adapter for this class")]
    assert [(each.name, each.by) for each in report.attention] == [("0", None)]


def test_where_attention_runs_follows_what_watches_the_model():
    report = vitkern.accelerate(timm.create_model("vit_tiny_patch16_224", depth=2))
    assert line(2, 0, 0) in str(report)
    handle = hooks.register_module_forward_hook(lambda *args: None)
    try:
        assert line(0, 0, 2) in str(report)
        assert "everything runs as it was just now: a hook or a mode watches all modules" in str(report)
    finally:
        handle.remove()
    assert line(2, 0, 0) in str(report)


def test_where_attention_runs_with_a_kernel():
    report = vitkern.accelerate(on_meta(lambda: timm.create_model("volo_d1_224")))
    with dispatch.any_device():
        assert f"attention is computed by 20 modules: 16 {KERNEL}, 4 {ORIGINAL}" in str(report)


def test_a_second_report_counts_what_the_first_swapped():
    model = timm.create_model("vit_tiny_patch16_224", depth=2)
    vitkern.accelerate(model)
    second = vitkern.accelerate(model)
    assert len(second) == 0 and line(2, 0, 0) in str(second)
