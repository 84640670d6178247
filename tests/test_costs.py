"""What an example costs, against the papers, timm's own operators, and the formulas of Swin (arXiv 2103.14030)."""

import pytest
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

import vitkern.models as models
from vitkern.commands.models import run as run_command
from vitkern.models import count_costs
from vitkern.nn import Attention, WindowAttention


def costs(name, **overrides):
    with torch.device("meta"):
        return count_costs(models.create_model(name, **overrides))


@pytest.mark.walk(3)
@pytest.mark.parametrize(
    "name, gmacs",
    [
        ("vit_base_patch16_224", 17.6),
        ("swin_tiny_patch4_window7_224", 4.5),
        ("nat_mini", 2.7),
        ("vil_tiny_window7_224", 1.43),
    ],
)
def test_multiply_adds_are_those_of_the_papers(name, gmacs):
    assert costs(name).macs / 1e9 == pytest.approx(gmacs, rel=0.02)


def test_a_detector_costs_what_its_paper_says_at_the_mean_size():
    """173 (arXiv 2010.04159, table 1), as DETR counts: the mean over images of COCO (arXiv 2005.12872)."""
    with torch.device("meta"):
        found = count_costs(models.create_model("deformable_detr"), torch.zeros(1, 3, 800, 1130))
    assert found.macs / 1e9 == pytest.approx(173, rel=0.005)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "swinv2_tiny_window8_256"])
def test_multiply_adds_are_those_of_timm(name):
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    with torch.device("meta"):
        theirs = timm.create_model(name).eval()
        image = torch.zeros(1, *timm.get_pretrained_cfg(name).input_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        theirs(image)
    assert costs(name).macs == counter.get_total_flops() // 2


def test_omega_of_global_and_of_windowed_attention():
    """Equations 1 and 2: 4 h w C^2 + 2 (h w)^2 C, and 4 h w C^2 + 2 M^2 h w C."""
    side, channels, window = 56, 96, 7
    with torch.device("meta"):
        everywhere, windowed = Attention(channels, 3), WindowAttention(channels, 3, (window, window), (0, 0))
        x = torch.zeros(1, side, side, channels)
    assert count_costs(everywhere, x.flatten(1, 2)).macs == 4 * side**2 * channels**2 + 2 * side**4 * channels
    assert count_costs(everywhere, x.flatten(1, 2)).macs == 2_003_828_736
    assert count_costs(windowed, x).macs == 145_108_992


def test_operators_are_counted_by_name():
    found = costs("swin_tiny_patch4_window7_224")
    assert found.kernels == {"layernorm": 17, "layernorm_mlp": 12, "projected_window_attention": 12}
    hooked = nn.Sequential(nn.LayerNorm(8))
    with torch.device("meta"):
        assert count_costs(hooked.to("meta"), torch.zeros(1, 8)).kernels == {}


def test_activations_are_those_of_layers():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(2), nn.Linear(36, 5, bias=False))
        found = count_costs(model, torch.zeros(1, 3, 6, 6))
    assert found.activations == 4 * 36 + 4 * 5 and found.macs == 36 * 4 * 27 + 4 * 36 * 5


@pytest.mark.parametrize("name, overrides", [("nat_mini", dict(depths=(1, 1, 1, 1))), ("cait_s24_224", dict(depth=1))])
def test_a_model_keeps_its_mode_its_hooks_and_what_is_trained(name, overrides):
    with torch.device("meta"):
        model = models.create_model(name, **overrides).train()
    model.norm.requires_grad_(False)
    assert count_costs(model).macs > 0
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert {key for key, p in model.named_parameters() if not p.requires_grad} == {"norm.weight", "norm.bias"}


def test_the_command_describes_one_model(capsys):
    import argparse

    assert run_command(argparse.Namespace(pattern="*", describe="vit_base_patch16_224")) == 0
    said = capsys.readouterr().out
    for part in ("86,567,656", "GMACs       17.56", "activations 16.49 M", "attention_qkvpacked x 12", "3 x 224 x 224"):
        assert part in said


def _sequence_macs(tokens, channels, depth):
    """Four projections, an MLP four times as wide, q k^T and what it weighs."""
    return depth * (12 * tokens * channels**2 + 2 * tokens**2 * channels)


@pytest.mark.parametrize(
    "name, macs, tokens",
    [
        ("bert_base", _sequence_macs(512, 768, 12) + 768**2, "512"),
        ("igpt_small", _sequence_macs(1024, 512, 24) + 1024 * 512**2, "1024"),
        (
            "transformer_base",
            2 * _sequence_macs(1024, 512, 6) + 6 * (4 * 1024 * 512**2 + 2 * 1024**2 * 512) + 1024 * 512 * 37000,
            "1024 and 1024",
        ),
    ],
)
def test_the_command_describes_the_longest_sequence(capsys, name, macs, tokens):
    import argparse

    assert run_command(argparse.Namespace(pattern="*", describe=name)) == 0
    assert f"GMACs       {macs / 1e9:.2f} for {tokens} tokens\n" in capsys.readouterr().out
