"""Differential attention against timm's, with each of its options; the error contract. Its kernels are those of
attention."""

import pytest
import torch
from timm.layers import DiffAttention

from vitkern.nn import DifferentialAttention

OPTIONS = {
    "plain": {},
    "biases and norms": dict(qkv_bias=True, qk_norm=True, scale_norm=True, proj_bias=False, depth=3),
    "two numbers": dict(dual_lambda=True, depth=1),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_as_timm(name):
    theirs, ours = DiffAttention(24, 3, **OPTIONS[name]), DifferentialAttention(24, 3, **OPTIONS[name])
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs, ours, mask = theirs.double(), ours.double(), torch.rand(2, 1, 11, 11) < 0.7
    mask |= torch.eye(11, dtype=torch.bool)
    past = torch.ones(11, 11, dtype=torch.bool).tril()
    causal = dict(is_causal=True), dict(mask=past)
    for theirs_terms, terms in (({}, {}), (dict(attn_mask=mask), dict(mask=mask)), causal):
        x = torch.randn(2, 11, 24, dtype=torch.float64, requires_grad=True)
        grad, found = torch.randn_like(x), []
        for module, options in ((theirs, theirs_terms), (ours, terms)):
            out = module(x, **options)
            parameters = [parameter for _, parameter in sorted(module.named_parameters())]
            found.append([out, *torch.autograd.grad(out, [x, *parameters], grad)])
        torch.testing.assert_close(found[1], found[0])


def test_initial_lambda():
    """That of the paper's equation 3 and, of two numbers, exactly lambda_init."""
    for depth, expected in ((0, 0.2), (4, 0.8 - 0.6 * torch.exp(torch.tensor(-1.2)).item())):
        module = DifferentialAttention(16, 2, depth=depth, dual_lambda=True)
        assert module._lambda().item() == pytest.approx(expected) == pytest.approx(module.lambda_init)


def test_dropout():
    module, x = DifferentialAttention(16, 2, attn_drop=0.5), torch.randn(2, 7, 16)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


def test_bad_input():
    with pytest.raises(ValueError, match=r"^DifferentialAttention: channels do not split into heads"):
        DifferentialAttention(10, 4)
    with pytest.raises(ValueError, match=r"a head does not split in two: got dim=12, num_heads=4"):
        DifferentialAttention(12, 4)
