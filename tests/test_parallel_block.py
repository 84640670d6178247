"""The parallel block of ViT-22B against timm's."""

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from vitkern.nn import ParallelBlock

FORMS = {
    "plain": {},
    "biases": dict(qkv_bias=True, proj_bias=False),
    "norms of q and k": dict(qk_norm=True, init_values=0.5),
    "one product out": dict(fuse_out_proj=True, mlp_ratio=2.0),
}


def pair(**options):
    theirs, ours = ParallelScalingBlock(12, 3, **options), ParallelBlock(12, 3, **options)
    for value in theirs.parameters():
        nn.init.normal_(value, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs.double(), ours.double()


@pytest.mark.parametrize("name", FORMS)
def test_is_timm_s(name):
    theirs, ours = pair(**FORMS[name])
    x, found = torch.randn(2, 7, 12, dtype=torch.float64), []
    for module in (theirs.eval(), ours.eval()):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        parameters = dict(module.named_parameters())
        gradients = torch.autograd.grad(out.square().sum(), (leaf, *parameters.values()))
        found.append({"out": out, **dict(zip(("x", *parameters), gradients, strict=True))})
    torch.testing.assert_close(*found)


def test_stochastic_depth_and_hooks():
    theirs, ours = pair(drop_path=0.5)
    x, results = torch.randn(6, 7, 12, dtype=torch.float64), []
    for module in (theirs.train(), ours.train()):
        torch.manual_seed(4)
        results.append(module(x))
    torch.testing.assert_close(*results)
    wanted, calls = ours.eval()(x), []
    ours.in_proj.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(ours(x), wanted)
    assert calls == [1]


class Wrapped(nn.Module):
    """As adapters do that keep the layer within."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def test_a_wrapped_projection_is_called():
    ours, x = pair()[1], torch.randn(2, 7, 12, dtype=torch.float64)
    wanted = ours(x)
    ours.in_proj = Wrapped(ours.in_proj)
    torch.testing.assert_close(ours(x), wanted)


def test_compile_and_errors():
    module, x = ParallelBlock(12, 3), torch.randn(2, 7, 12)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
    with pytest.raises(ValueError, match=r"^ParallelBlock: unknown act: got 'relu'; expected one of gelu, gelu_tanh"):
        ParallelBlock(12, 3, act="relu")
    with pytest.raises(ValueError, match=r"^ParallelBlock: "):
        ParallelBlock(12, 5)
