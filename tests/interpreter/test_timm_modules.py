"""Swapped modules of timm on the kernels, in the interpreter, against the unswapped ones: windows and grids, channels,
reduced keys, separable attention."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from timm.models.convit import GPSA
from timm.models.davit import ChannelAttention, ChannelAttentionV2, SpatialBlock
from timm.models.maxxvit import MaxxVitTransformerCfg, PartitionAttentionCl
from timm.models.mobilevit import LinearSelfAttention
from timm.models.pvt_v2 import Attention
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn
from timm.models.xcit import XCA
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from swapping import assert_near, randomise

import vitkern

pytestmark = pytest.mark.interpreter


def maxvit(partition, **changes):
    config = MaxxVitTransformerCfg(dim_head=16, window_size=(2, 3), grid_size=(2, 3), **changes)
    return PartitionAttentionCl(32, partition, config)


MODULES = {
    "twins, padded": (LocallyGroupedAttn(32, num_heads=2, ws=3), (1, 20, 32), ((4, 5),)),
    "davit, padded": (SpatialBlock(32, num_heads=2, window_size=3, mlp_ratio=2.0), (1, 32, 4, 5), ()),
    "maxvit, window": (maxvit("block"), (1, 4, 6, 32), ()),
    "maxvit, grid, qkv first": (maxvit("grid", head_first=False), (1, 4, 6, 32), ()),
    "maxvit, grid, tables of TensorFlow": (maxvit("grid", rel_pos_type="bias_tf"), (1, 4, 6, 32), ()),
    "maxvit, window, tables of TensorFlow": (maxvit("block", rel_pos_type="bias_tf"), (1, 4, 6, 32), ()),
    "maxvit, grid, positions from an MLP": (maxvit("grid", rel_pos_type="mlp"), (1, 4, 6, 32), ()),
    "maxvit, grid, no positions": (maxvit("grid", rel_pos_type=""), (1, 4, 6, 32), ()),
    "convit": (GPSA(32, num_heads=4), (1, 16, 32), ()),
    "davit, channels": (ChannelAttention(32, num_heads=2), (1, 20, 32), ()),
    "davit, channels, scaled by tokens": (ChannelAttentionV2(32, num_heads=2), (1, 20, 32), ()),
    "xcit": (XCA(32, num_heads=2), (1, 20, 32), ()),
    "pvt": (Attention(32, num_heads=2, sr_ratio=2), (1, 24, 32), ((4, 6),)),
    "pvt, linear": (Attention(32, num_heads=2, linear_attn=True), (1, 64, 32), ((8, 8),)),
    "twins, reduced": (GlobalSubSampleAttn(32, num_heads=2, sr_ratio=2), (1, 24, 32), ((4, 6),)),
    "mobilevit": (LinearSelfAttention(16), (1, 16, 4, 6), ()),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_swapped_module_runs_on_kernels(name):
    module, shape, arguments = MODULES[name]
    module = randomise(copy.deepcopy(module)).eval()
    swapped = copy.deepcopy(module)
    report = vitkern.accelerate(swapped)
    assert "attention" in next(iter(report)).ops[0]
    x, results = torch.randn(shape), []
    for each, backend in ((module, "torch"), (swapped, "interpreter")):  # an op that could not run would raise
        leaf = x.clone().requires_grad_()
        with vitkern.use_backend(backend):
            out = each(leaf, *arguments)
            names, parameters = zip(*each.named_parameters(), strict=True)
            found = torch.autograd.grad(out.sin().sum(), [leaf, *parameters])
        results.append(dict(zip(("out", "x", *names), (out, *found), strict=True)))
    largest = max(t.abs().max().item() for t in results[0].values())
    for key, expected in results[0].items():
        assert (results[1][key] - expected).abs().max().item() <= 1e-5 * largest, key
    assert_near(results[1]["out"], results[0]["out"], 1e-4, "out")


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2.0


@pytest.mark.parametrize("name", ["twins, padded", "davit, padded", "maxvit, window", "maxvit, grid, qkv first"])
def test_an_adapted_projection_is_called(name):
    module, shape, arguments = MODULES[name]
    module = copy.deepcopy(module).eval()
    for part in list(module.modules()):
        if isinstance(getattr(part, "qkv", None), nn.Linear):
            part.qkv.__class__ = Doubled
    swapped, x = copy.deepcopy(module), torch.randn(shape)
    vitkern.accelerate(swapped)
    with torch.no_grad():
        expected = module(x, *arguments)
        with vitkern.use_backend("interpreter"):
            assert_near(swapped(x, *arguments), expected, 2e-5, "out")
