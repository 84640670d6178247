"""ViL's attention and MaxViT's grids on the kernels, in the interpreter: results and every gradient."""

import copy

import pytest
import torch

from vitkern.dispatch import use_backend
from vitkern.nn.partition_attention import PartitionAttention
from vitkern.nn.vil_attention import ViLAttention

pytestmark = pytest.mark.interpreter

SIZE = (4, 5)
VIL = {
    "exact": dict(mode="exact"),
    "zero, two global tokens": dict(num_global=2, share_weights=False),
    "zero, own chunk": dict(neighbors="none"),
    "cyclic, filled up": dict(mode="cyclic"),
}


def same(module, *arguments):
    """``module`` on the kernels and, in float64, in PyTorch."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    results = []
    for each, dtype, backend in (
        (module, torch.float32, "interpreter"),
        (copy.deepcopy(module).double(), torch.double, "torch"),
    ):
        x = arguments[0].to(dtype).requires_grad_()
        with use_backend(backend):
            out = each(x, *arguments[1:])
            found = torch.autograd.grad(out.sin().sum(), [x, *each.parameters()])
        results.append((out, *found))
    for actual, ideal in zip(*results, strict=True):
        limit = 1e-5 * max(1.0, ideal.abs().max().item())
        torch.testing.assert_close(actual.double(), ideal, rtol=1e-4, atol=limit)


@pytest.mark.parametrize("name", VIL)
def test_vil(name):
    module = ViLAttention(32, 2, 2, **VIL[name])
    same(module, torch.randn(1, module.num_global + SIZE[0] * SIZE[1], 32), SIZE)


def test_a_random_neighbour():
    module = ViLAttention(32, 2, 2, neighbors="one")
    module.draw_neighbor = lambda: (-1, 1)
    same(module, torch.randn(1, 21, 32), SIZE)


@pytest.mark.parametrize("partition", ["window", "grid"])
def test_partitions(partition):
    same(PartitionAttention(32, 2, (2, 4), partition), torch.randn(1, 6, 8, 32))
