"""PVTv2's perceptron: timm's numbers, the branch that is computed in parts and in place, and when it is not."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vitkern.nn import conv_mlp
from vitkern.nn.conv_mlp import ConvMlp, conv_mlp_residual
from vitkern.nn.grid import as_image
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layers import DropPath

SIZE = (3, 5)


def parts(relu=False, drop=0.0, drop_path=0.0):
    torch.manual_seed(0)
    modules = LayerNorm(8), ConvMlp(8, 24, drop, relu=relu), DropPath(drop_path)
    return [module.double().eval() for module in modules]


def tokens(batch=5):
    return torch.randn(batch, 15, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def in_steps(x, norm, mlp, drop_path):
    return x + drop_path(mlp(norm(x), SIZE))


@pytest.fixture
def added(monkeypatch):
    """The numbers of images that were computed in place, in order."""
    found, add = [], torch.add

    def record(*args, out=None, **kwargs):
        found.append(len(out))
        return add(*args, out=out, **kwargs)

    monkeypatch.setattr(torch, "add", record)
    return found


@pytest.mark.parametrize("relu", [False, True])
def test_module_agrees_with_timm(relu):
    pvt_v2 = pytest.importorskip("timm.models.pvt_v2")
    theirs = pvt_v2.MlpWithDepthwiseConv(8, 24, extra_relu=relu).double()
    ours = parts(relu)[1]
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours(tokens(), SIZE), theirs(tokens(), SIZE))


@pytest.mark.parametrize("chunk, counts", [(2048, [5]), (30, [3, 2]), (1, [1] * 5)])
@pytest.mark.parametrize("relu", [False, True])
def test_without_gradients_it_goes_in_place(monkeypatch, added, relu, chunk, counts):
    monkeypatch.setattr(conv_mlp, "_CHUNK", chunk)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    modules, x = parts(relu), tokens()
    with torch.no_grad():
        found = conv_mlp_residual(x, *modules, SIZE)
        assert_close(found, in_steps(x, *modules))
        assert conv_mlp_residual(x[:0], *modules, SIZE).shape == (0, 15, 8)
    assert added == [*counts, 0]
    assert torch.equal(x, tokens())


def hook_on(module):
    seen = []
    module.register_forward_hook(lambda module, args, out: seen.append(out))
    return seen


@pytest.mark.parametrize("name", ["norm", "mlp", "mlp.fc1", "mlp.relu", "mlp.dwconv", "mlp.fc2", "mlp.drop", "path"])
def test_what_a_hook_holds_is_not_overwritten(added, name):
    modules = parts(drop=0.5)
    outer = nn.ModuleDict(dict(zip(("norm", "mlp", "path"), modules, strict=True)))
    with torch.no_grad():
        expected = in_steps(tokens(), *modules)
        seen = hook_on(outer.get_submodule(name))
        assert_close(conv_mlp_residual(tokens(), *modules, SIZE), expected)
        in_steps(tokens(), *modules)
    assert seen and not added
    assert all(map(torch.equal, seen[: len(seen) // 2], seen[len(seen) // 2 :]))


@pytest.mark.parametrize("kind", ["x", "norm", "mlp"])
def test_gradients_are_those_of_the_steps(added, kind):
    modules, x = parts(), tokens()
    for module in modules:
        module.requires_grad_(False)
    leaf = dict(x=x, norm=modules[0].weight, mlp=modules[1].fc1.weight)[kind].requires_grad_()
    results = conv_mlp_residual(x, *modules, SIZE), in_steps(x, *modules)
    assert_close(*(torch.autograd.grad(result.square().sum(), leaf) for result in results))
    assert not added


def test_dropped_activations_and_samples_are_drawn_as_in_steps(added):
    for rates in (dict(drop=0.5), dict(drop_path=0.5)):
        modules = [module.train() for module in parts(**rates)]
        with torch.no_grad():
            torch.manual_seed(2)
            found = conv_mlp_residual(tokens(), *modules, SIZE)
            torch.manual_seed(2)
            assert_close(found, in_steps(tokens(), *modules))
    assert not added


def test_a_norm_of_another_kind_is_called(added):
    _, mlp, path = parts()
    norm = nn.LayerNorm(8, dtype=torch.float64)
    with torch.no_grad():
        assert_close(conv_mlp_residual(tokens(), norm, mlp, path, SIZE), in_steps(tokens(), norm, mlp, path))
    assert not added


@pytest.mark.parametrize("batch", [1, 2])
def test_images_of_tokens_are_channels_last(batch):
    image = as_image("test", tokens(batch), SIZE)
    assert image.stride() == (15 * 8, 1, 5 * 8, 8)
    assert nn.Conv2d(8, 8, 3, groups=8).double()(image).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(3, 4), (5, 5)])
def test_a_size_that_does_not_fit(size):
    with torch.no_grad(), pytest.raises(ValueError, match="ConvMlp: tokens do not fill the image: got x of shape"):
        conv_mlp_residual(tokens(), *parts(), size)
