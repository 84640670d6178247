"""timm's modules that call scaled_dot_product_attention or multiply out their scores, swapped and on the kernel in the
interpreter, against the unswapped ones."""

import copy
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from small_callers import CALLERS
from small_products import PRODUCTS
from swapping import assert_near, randomise

import vitkern
from vitkern.interop import sdpa_calls, timm_channels, timm_products

pytestmark = pytest.mark.interpreter


MODULES = CALLERS | PRODUCTS


def counted(function, ran):
    return lambda *args, **options: (ran.append(options), function(*args, **options))[1]


def lay_out_gradients(module):
    """Of BatchNorm as its inputs are: where they differ, PyTorch 2.15 differentiates it wrongly on a CPU."""

    def hook(norm, given, out):
        out.register_hook(torch.Tensor.contiguous)

    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.register_forward_pre_hook(lambda norm, given: given[0].contiguous())
            part.register_forward_hook(hook)


@pytest.mark.parametrize("name", MODULES)
def test_a_swapped_module_runs_on_the_kernel(name, monkeypatch):
    module, shape, arguments = MODULES[name]
    module = randomise(copy.deepcopy(module))
    module.eval()
    swapped, ran = copy.deepcopy(module), []
    report = vitkern.accelerate(swapped)
    cross = "cross_covariance_attention"
    op = cross if name == "edgenext" else "attention"
    assert [entry.ops for entry in report] == [(op,)]
    for place in (timm_channels,) if op == cross else (sdpa_calls, timm_products):
        monkeypatch.setattr(place, op, counted(getattr(place, op), ran))
    x, results = torch.randn(shape, generator=torch.Generator().manual_seed(1)), []
    lay_out_gradients(module), lay_out_gradients(swapped)
    for each, backend in ((module, "torch"), (swapped, "interpreter")):
        leaf = x.clone().requires_grad_()
        leaves = {"x": leaf, **dict(each.named_parameters())}
        leaves |= {
            f"argument {n}": a for n, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.requires_grad
        }
        with vitkern.use_backend(backend):
            out = each(leaf, *arguments)
            out = out[0] if isinstance(out, tuple) else out
            found = torch.autograd.grad(out.sin().sum(), list(leaves.values()), allow_unused=True)
        assert bool(ran) == (each is swapped)
        results.append({"out": out, **dict(zip(leaves, found, strict=True))})
    largest = max(t.abs().max().item() for t in results[0].values() if t is not None)
    for key, expected in results[0].items():
        assert (expected is None) == (results[1][key] is None), key
        if expected is not None:
            assert (results[1][key] - expected).abs().max().item() <= 1e-5 * largest, key
    assert_near(results[1]["out"], results[0]["out"], 1e-4, "out")


@pytest.mark.parametrize(
    "shapes, options",
    [
        (((2, 3, 4, 8), (2, 3, 9, 8)), dict(is_causal=True)),
        (((2, 3, 4, 8), (1, 3, 4, 8)), {}),
        (((3, 4, 8), (3, 4, 8)), dict(attn_mask=torch.ones(4, 4).tril().bool())),
        (((4, 8), (4, 8)), {}),
    ],
)
def test_what_pytorch_means_otherwise_is_pytorchs(shapes, options):
    """Causality from the first key, batches that broadcast, masks of other shapes."""
    q, k = (torch.randn(shape) for shape in shapes)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, k, **options)
    with vitkern.use_backend("interpreter"):
        torch.testing.assert_close(sdpa_calls.sdpa(q, k, k, **options), expected)


@pytest.mark.parametrize("training, probability", [(True, 0.5), (False, 0.0)])
def test_dropout_is_the_modules(training, probability, monkeypatch):
    module, shape, arguments = CALLERS["eva"]
    module, seen = copy.deepcopy(module).train(training), []
    module.attn_drop.p = 0.5
    vitkern.accelerate(module)
    kernel = sdpa_calls.attention
    monkeypatch.setattr(sdpa_calls, "attention", lambda *a, **k: (seen.append(k["dropout_p"]), kernel(*a, **k))[1])
    with vitkern.use_backend("interpreter"):
        module(torch.randn(shape), *arguments)
    assert seen == [probability]
