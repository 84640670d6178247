"""Classes of transformers that are known by their structure: copies of a class with a description, and what is called
like one and is none."""

import copy
import pickle

import pytest
import torch
import transformers as hf
from swapping import assert_near, assert_unchanged, gradients, logits, randomise
from torch import nn
from transformers.models.donut.configuration_donut_swin import DonutSwinConfig
from transformers.models.donut.modeling_donut_swin import DonutSwinModel
from transformers.models.got_ocr2.configuration_got_ocr2 import GotOcr2VisionConfig
from transformers.models.got_ocr2.modeling_got_ocr2 import GotOcr2VisionEncoder
from transformers.models.maskformer.configuration_maskformer_swin import MaskFormerSwinConfig
from transformers.models.maskformer.modeling_maskformer_swin import MaskFormerSwinModel
from transformers.models.sam_hq.modeling_sam_hq import SamHQVisionModel

import vitkern
from vitkern.interop import transformers_eager, transformers_mobilevit

hf.logging.set_verbosity_error()
VIT = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8
)
SWIN = dict(embed_dim=16, depths=[2], num_heads=[2], window_size=4, image_size=32, patch_size=4, drop_path_rate=0.3)
SAM = dict(VIT, mlp_dim=64, output_channels=8, global_attn_indexes=[0], window_size=3, use_rel_pos=True)
STAGES = dict(
    image_size=64, depths=[1, 1], hidden_sizes=[8, 16], num_attention_heads=[1, 2], sr_ratios=[2, 1], mlp_ratios=[2, 2],
    patch_sizes=[4, 2], strides=[4, 2], num_encoder_blocks=2, drop_path_rate=0.3, num_labels=5, decoder_hidden_size=8,
)  # fmt: skip


class Tower(nn.Module):
    """A model of transformers as a function of images, to the states of its last layer."""

    def __init__(self, model, **arguments):
        super().__init__()
        self.model, self.arguments = model, arguments

    def forward(self, images):
        return self.model(images, **self.arguments).last_hidden_state


def pictures(*shape):
    return torch.randn(*(shape or (2, 3, 32, 32)), generator=torch.Generator().manual_seed(1))


def deformable_detr(config=hf.DeformableDetrConfig, model=hf.DeformableDetrModel, **changes):
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage3", "stage4"]
    )
    sizes = dict(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=4, num_feature_levels=2, encoder_n_points=2, decoder_n_points=2, dropout=0.0,
    )  # fmt: skip
    return model(config(**sizes | changes))


def mobilevit(config, model, **changes):
    sizes = dict(hidden_sizes=[8, 16, 24], neck_hidden_sizes=[4, 4, 8, 8, 12, 16, 24], num_attention_heads=2)
    return model(config(**sizes, image_size=64, hidden_dropout_prob=0.0, **changes))


# Name: (what builds it, images, what it is called with)
FAMILIES = {
    "vit mae": (lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**VIT)), (2, 3, 32, 32), dict(noise=torch.rand(2, 16))),
    "vit msn": (lambda: hf.ViTMSNModel(hf.ViTMSNConfig(**VIT)), (2, 3, 32, 32), {}),
    "ijepa": (lambda: hf.IJepaModel(hf.IJepaConfig(**VIT)), (2, 3, 32, 32), {}),
    "ast": (lambda: hf.ASTModel(hf.ASTConfig(**VIT, max_length=24, num_mel_bins=16)), (2, 24, 16), {}),
    "clip": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT)), (2, 3, 32, 32), {}),
    "siglip 2": (
        lambda: hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**VIT, num_patches=16, vision_use_head=False)),
        (2, 16, 192),
        dict(pixel_attention_mask=torch.ones(2, 16), spatial_shapes=torch.tensor([[4, 4], [2, 8]])),
    ),
    "owlvit": (lambda: hf.OwlViTVisionModel(hf.OwlViTVisionConfig(**VIT)), (2, 3, 32, 32), {}),
    "yolos": (
        lambda: hf.YolosModel(hf.YolosConfig(**VIT | dict(image_size=[32, 32]), num_detection_tokens=3)),
        (2, 3, 32, 32),
        {},
    ),
    "videomae": (
        lambda: hf.VideoMAEModel(hf.VideoMAEConfig(**VIT, num_frames=2, tubelet_size=1, use_mean_pooling=False)),
        (1, 2, 3, 32, 32),
        {},
    ),
    "dinov2 with registers": (
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**VIT, mlp_ratio=2)),
        (2, 3, 32, 32),
        {},
    ),
    "sam hq": (lambda: SamHQVisionModel(hf.SamHQVisionConfig(**SAM)), (2, 3, 32, 32), {}),
    "got ocr2": (lambda: GotOcr2VisionEncoder(GotOcr2VisionConfig(**SAM)), (2, 3, 32, 32), {}),
    "swin2sr": (
        lambda: hf.Swin2SRModel(hf.Swin2SRConfig(**SWIN | dict(patch_size=1, image_size=16), upscale=2)),
        (1, 3, 16, 12),
        {},
    ),
    "donut": (lambda: DonutSwinModel(DonutSwinConfig(**SWIN)), (2, 3, 32, 40), {}),
    "maskformer swin": (lambda: MaskFormerSwinModel(MaskFormerSwinConfig(**SWIN)), (2, 3, 28, 40), {}),
    "maskformer swin, an image smaller than a window": (
        lambda: MaskFormerSwinModel(MaskFormerSwinConfig(**SWIN)),
        (2, 3, 12, 24),
        {},
    ),
    "beit": (
        lambda: hf.BeitModel(hf.BeitConfig(**VIT, use_relative_position_bias=True, drop_path_rate=0.3)),
        (2, 3, 32, 32),
        {},
    ),
    "data2vec": (
        lambda: hf.Data2VecVisionModel(
            hf.Data2VecVisionConfig(**VIT, use_relative_position_bias=True, use_shared_relative_position_bias=True)
        ),
        (2, 3, 32, 32),
        {},
    ),
    "data2vec, eager": (
        lambda: hf.Data2VecVisionModel(
            hf.Data2VecVisionConfig(**VIT, use_relative_position_bias=True, attn_implementation="eager")
        ),
        (2, 3, 32, 32),
        {},
    ),
    "flava": (lambda: hf.FlavaImageModel(hf.FlavaImageConfig(**VIT)), (2, 3, 32, 32), {}),
    "mobilevit": (lambda: mobilevit(hf.MobileViTConfig, hf.MobileViTModel), (1, 3, 64, 64), {}),
    "mobilevit v2": (
        lambda: hf.MobileViTV2Model(hf.MobileViTV2Config(image_size=64, width_multiplier=0.25)),
        (1, 3, 64, 64),
        {},
    ),
    "timesformer": (
        lambda: hf.TimesformerModel(hf.TimesformerConfig(**VIT, num_frames=2)),
        (1, 2, 3, 32, 32),
        {},
    ),
    "pvt": (
        lambda: hf.PvtModel(hf.PvtConfig(**STAGES | dict(sequence_reduction_ratios=[2, 1]))),
        (2, 3, 64, 64),
        {},
    ),
    "pvt v2": (lambda: hf.PvtV2Model(hf.PvtV2Config(**STAGES, num_hidden_layers=2)), (2, 3, 64, 64), {}),
    "pvt v2, linear": (
        lambda: hf.PvtV2Model(hf.PvtV2Config(**STAGES, linear_attention=True)),
        (2, 3, 64, 64),
        {},
    ),
    "glpn": (lambda: hf.GLPNModel(hf.GLPNConfig(**STAGES)), (2, 3, 64, 64), {}),
    "cvt": (
        lambda: hf.CvtModel(hf.CvtConfig(embed_dim=[8, 16, 16], num_heads=[1, 2, 2], depth=[1, 2, 3])),
        (2, 3, 32, 32),
        {},
    ),
    "deformable detr": (deformable_detr, (2, 3, 64, 96), {}),
}


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """As if kernels ran here: the ops themselves go to PyTorch."""
    for module in (transformers_eager, transformers_mobilevit):
        monkeypatch.setattr(module, "runs_kernel", lambda *args: True)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_gradients_stay(name):
    build, shape, arguments = FAMILIES[name]
    model = randomise(Tower(build(), **arguments))
    keys = list(model.state_dict())
    swapped = copy.deepcopy(model)
    report = vitkern.accelerate(swapped)
    assert report.attention and all(each.by is not None for each in report.attention), str(report)
    assert list(swapped.state_dict()) == keys
    report = assert_unchanged(model, pictures(*shape), 1e-4 if name == "got ocr2" else 1e-8)  # its softmax is float32
    assert not [kept for kept in report.kept if "differs" in kept.reason]
    report.restore()
    assert [type(m) for m in report.model.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(logits(report.model.eval(), pictures(*shape)), logits(model.eval(), pictures(*shape)))


# What survives


@pytest.mark.parametrize("name", ["vit msn", "sam hq", "mobilevit"])
def test_copies_of_a_swapped_model(name):
    build, shape, _ = FAMILIES[name]
    model = randomise(build()).eval()
    report = vitkern.accelerate(model)
    kinds = [type(module) for module in model.modules()]
    expected = model(pictures(*shape))[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), pickle.loads(pickle.dumps(model, 0))):
        assert [type(module) for module in other.modules()] == kinds
        assert_near(other(pictures(*shape))[0], expected, 1e-6, "copy")
    assert len(vitkern.accelerate(model)) == 0
    report.restore()
    assert not any("vitkern" in type(module).__module__ for module in model.modules())


HOOKED = ["donut", "pvt", "timesformer", "cvt", "flava", "data2vec, eager", "mobilevit", "mobilevit v2", "videomae"]


@pytest.mark.parametrize("name", HOOKED)
@pytest.mark.parametrize("part", ["ropout", "attn_drop", "value", "qkv", "dense"])
def test_hooks_keep_their_effect(name, part):
    """On what is bypassed, and on what is called."""
    build, shape, _ = FAMILIES[name]
    model = randomise(build()).eval()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    for each in (model, swapped):
        for where, module in each.named_modules():
            if where.endswith(part):
                module.register_forward_hook(lambda m, args, out: out * 1.5)
    with torch.no_grad():
        assert_near(swapped(pictures(*shape))[0], model(pictures(*shape))[0], 2e-5, part)


@pytest.mark.parametrize("name", ["donut", "pvt", "pvt v2", "timesformer", "cvt", "flava", "data2vec, eager"])
def test_dropped_weights_are_left_to_the_original(name):
    build, shape, arguments = FAMILIES[name]
    model = randomise(Tower(build(), **arguments))
    for where, module in model.named_modules():
        if isinstance(module, nn.Dropout) and ("self" in where.lower() or "attention" in where):
            module.p = 0.4
    swapped = copy.deepcopy(model)
    report = vitkern.accelerate(swapped)
    assert any("dropout is active" in note for entry in report for note in entry.notes)
    expected, _ = gradients(model.train(), pictures(*shape))
    actual, _ = gradients(swapped.train(), pictures(*shape))
    assert_near(actual, expected, 2e-5, "train")


@pytest.mark.parametrize("name", ["donut", "pvt", "timesformer", "flava", "data2vec, eager"])
def test_attention_weights_on_request(name):
    build, shape, _ = FAMILIES[name]
    model = randomise(build()).eval()
    expected = model(pictures(*shape), output_attentions=True).attentions
    vitkern.accelerate(model)
    actual = model(pictures(*shape), output_attentions=True).attentions
    assert len(expected) == len(actual) > 0
    for weights, others in zip(expected, actual, strict=True):
        assert_near(others, weights, 2e-5, "weights")


def test_the_sampling_operator_does_the_attention_of_the_module_around_it():
    model = deformable_detr()
    for times in range(2):
        report = vitkern.accelerate(model)
        assert len(report) == (3, 0)[times]
        by = {each.name: each.by for each in report.attention}
        assert by["encoder.layers.0.self_attn"] == "encoder.layers.0.self_attn"
        assert not [kept for kept in report.kept if kept.name == "encoder.layers.0.self_attn"]


@pytest.mark.parametrize(
    "name", ["data2vec", "cvt", "mobilevit", "mobilevit v2", "pvt", "pvt v2", "glpn", "timesformer"]
)
def test_where_no_kernel_runs_the_original_does(name, monkeypatch):
    build, shape, _ = FAMILIES[name]
    model = randomise(build()).eval()
    expected = model(pictures(*shape))[0]
    report = vitkern.accelerate(model, only=lambda module, name: "Attention" in type(module).__name__)
    assert report.attention and all(entry.needs_kernel for entry in report)
    monkeypatch.undo()
    assert torch.equal(model(pictures(*shape))[0], expected)
