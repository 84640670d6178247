"""Modules with relative positions on the kernels, in the interpreter, against the same in PyTorch."""

import pytest
import torch

import vitkern
from vitkern.nn.decomposed_attention import DecomposedAttention
from vitkern.nn.halo_attention import HaloAttention
from vitkern.nn.standalone_attention import StandaloneAttention

pytestmark = pytest.mark.interpreter

MODULES = {
    "halo": (HaloAttention(16, num_heads=2, block_size=4, halo_size=1, qkv_bias=True), (1, 16, 8, 4)),
    "halo, narrow queries": (HaloAttention(16, 32, num_heads=2, block_size=4, halo_size=2, dim_head=8), (1, 16, 4, 8)),
    "halo, wide queries": (HaloAttention(16, num_heads=2, block_size=3, halo_size=1, dim_head=16), (1, 16, 3, 6)),
    "halo, a stride": (HaloAttention(16, num_heads=2, block_size=4, halo_size=1, stride=2), (1, 16, 4, 8)),
    "halo, a stride and narrow queries": (
        HaloAttention(16, 32, num_heads=2, block_size=2, halo_size=1, stride=2, dim_head=8, scale_pos_embed=True),
        (1, 16, 4, 4),
    ),
    "stand-alone": (StandaloneAttention(12, 32, num_heads=2, kernel_size=(3, 5)), (2, 5, 4, 12)),
    "decomposed, padded windows": (DecomposedAttention(32, 2, window_size=(3, 4)), (1, 5, 6, 32)),
    "decomposed, no bias": (DecomposedAttention(32, 2, window_size=3, qkv_bias=False), (1, 4, 4, 32)),
    "decomposed, the image": (DecomposedAttention(32, 2, input_size=(5, 4)), (2, 5, 4, 32)),
    "decomposed, interpolated": (DecomposedAttention(32, 2, input_size=3), (1, 5, 4, 32)),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_runs_on_kernels(name):
    module, shape = MODULES[name]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    x, results = torch.randn(shape), []
    names, parameters = zip(*module.named_parameters(), strict=True)
    for backend in ("torch", "interpreter"):  # an op that could not run would raise
        leaf = x.clone().requires_grad_()
        with vitkern.use_backend(backend):
            out = module(leaf)
            found = torch.autograd.grad(out.sin().sum(), [leaf, *parameters])
        results.append(dict(zip(("out", "x", *names), (out, *found), strict=True)))
    largest = max(t.abs().max().item() for t in results[0].values())
    for key, expected in results[0].items():
        assert (results[1][key] - expected).abs().max().item() <= 1e-5 * largest, key
