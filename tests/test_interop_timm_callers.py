"""timm's modules that call scaled_dot_product_attention or multiply out their scores, swapped, where no kernel runs:
what they called, and whatever somebody put in its place. With kernels: tests/interpreter/test_timm_callers.py."""

import copy
import pickle

import pytest
import timm.layers.attention
import torch
from small_callers import CALLERS, TOKENS
from small_products import PRODUCTS
from swapping import randomise
from timm.layers.attention2d import MultiQueryAttention2d
from timm.layers.attention_pool import AttentionPoolLatent
from torch.nn import functional as F

import vitkern

MODULES = CALLERS | PRODUCTS


def swapped(name):
    """(module, the same one swapped, their arguments)"""
    module, shape, arguments = MODULES[name]
    module = randomise(copy.deepcopy(module))
    module.eval()
    other = copy.deepcopy(module)
    vitkern.accelerate(other)
    return module, other, (torch.randn(shape), *arguments)


@pytest.mark.parametrize("mode", [True, False])
def test_without_kernels_nothing_changes(mode):
    for name in MODULES:
        module, other, (x, *arguments) = swapped(name)
        found = []
        for each in (module, other):
            each.train(mode), torch.manual_seed(0)
            for part in each.modules():
                if isinstance(part, torch.nn.Dropout) and not part.inplace:  # which PyTorch cannot differentiate there
                    part.p = 0.3
            leaf = x.clone().requires_grad_()
            out = each(leaf, *arguments)
            out = out[0] if isinstance(out, tuple) else out
            found.append((out, *torch.autograd.grad(out.sin().sum(), [leaf, *each.parameters()], allow_unused=True)))
        for expected, actual in zip(*found, strict=True):
            assert expected is actual is None or torch.equal(actual, expected), name
        assert list(other.state_dict()) == list(module.state_dict())


@pytest.mark.parametrize("name", ["rope", "beit", "tnt"])
def test_it_is_pickled_and_known_as_swapped(name):
    module, other, (x, *arguments) = swapped(name)
    report = vitkern.accelerate(other)
    assert [entry.reason for entry in report.kept] == ["already swapped"]
    assert "the original runs where no kernel does" in str(vitkern.accelerate(module))
    again = pickle.loads(pickle.dumps(other))
    assert type(again) is type(other) and type(other).__name__ == type(MODULES[name][0]).__name__
    assert torch.equal(again(x, *arguments), module(x, *arguments))


@pytest.mark.parametrize("name", ["eva", "coatnet", "latent"])
def test_it_compiles_as_one_graph(name):
    module, other, arguments = swapped(name)
    compiled = torch.compile(other, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), module(*arguments))
    torch.compiler.reset()


def test_weights_that_it_computes_itself_are_left_alone():
    """Set so before, it is not swapped; set so later, it computes them, and hooks see them."""
    module, other, arguments = swapped("eva")
    expected, seen = module(*arguments), []
    module.fused_attn = other.fused_attn = False
    assert not list(vitkern.accelerate(module))
    other.attn_drop.register_forward_hook(lambda *call: seen.append(call[2].shape))
    with torch.no_grad():
        torch.testing.assert_close(other(*arguments), expected)
    assert seen == [(1, 2, 17, 17)]
    by_sums = MultiQueryAttention2d(32, num_heads=4)
    by_sums.einsum = True
    report = vitkern.accelerate(by_sums)
    assert not list(report) and "compute its attention weights itself" in str(report)


@pytest.mark.parametrize(
    "place, name", [(F, "scaled_dot_product_attention"), (timm.layers.attention, "apply_rot_embed_cat")]
)
def test_a_patched_function_is_called(place, name, monkeypatch):
    _, other, arguments = swapped("rope")
    original, seen = getattr(place, name), []
    monkeypatch.setattr(place, name, lambda *a, **k: (seen.append(name), original(*a, **k))[1])
    other(*arguments)
    assert seen


def test_a_subclass_is_kept():
    class Own(AttentionPoolLatent):
        pass

    report = vitkern.accelerate(Own(32, num_heads=2))
    assert not list(report) and "a subclass of" in report.kept[0].reason
    assert Own(32, num_heads=2)(torch.zeros(TOKENS)).shape == (1, 32)


@pytest.mark.parametrize("name, watched", [("tnt", "attn_drop"), ("gcvit", "rel_pos")])
def test_what_is_read_and_watched_is_called(name, watched):
    """Hooked before, the module is not swapped; hooked afterwards, the original runs."""
    module, other, arguments = swapped(name)
    expected, seen = module(*arguments), []
    for each in (module, other):
        getattr(each, watched).register_forward_hook(lambda *call: seen.append(call))
    assert not list(vitkern.accelerate(module))
    with vitkern.use_backend("torch"), vitkern.dispatch.any_device():
        torch.testing.assert_close(other(*arguments), expected)
    assert len(seen) == 1
