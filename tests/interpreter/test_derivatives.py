"""Derivatives of the kernels' gradients: a second reverse pass differentiates the formula in PyTorch, with numbers that
the kernels gave."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from integration import CASES, tuple_of

import vitkern

pytestmark = pytest.mark.interpreter


def curvature(function, tensors):
    """Gradients, and the gradient of what they add up to."""
    outputs = tuple_of(function(*tensors))
    first = torch.autograd.grad(sum(out.sin().sum() for out in outputs), tensors, create_graph=True)
    return first, torch.autograd.grad(sum(one.square().sum() for one in first), tensors)


@pytest.mark.parametrize("name", CASES)
def test_second_derivative(name):
    tensors = CASES[name].tensors(3)
    with vitkern.use_backend("interpreter"):
        first, second = curvature(CASES[name].function, tensors)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    with vitkern.use_backend("torch"), sdpa_kernel(SDPBackend.MATH):
        expected_first, expected = curvature(CASES[name].function, wide)
    for one, other in zip((*first, *second), (*expected_first, *expected), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * max(1.0, other.abs().max().item()))
    assert any(other.abs().max() > 1e-3 for other in expected)


@pytest.mark.parametrize("name", CASES)
def test_batch_of_gradients(name):
    tensors = CASES[name].tensors(3)
    out = tuple_of(CASES[name].function(*tensors))[0]
    with vitkern.use_backend("interpreter"):
        out = tuple_of(CASES[name].function(*tensors))[0]
        weights = torch.randn(3, *out.shape)
        batched = torch.autograd.grad(out, tensors, weights, retain_graph=True, is_grads_batched=True)
        single = [torch.autograd.grad(out, tensors, weight, retain_graph=True) for weight in weights]
    for i, many in enumerate(batched):
        for one, grads in zip(many, single, strict=True):
            torch.testing.assert_close(one, grads[i], rtol=1e-4, atol=1e-4)


def test_forward_mode_runs_in_pytorch_and_a_forced_kernel_says_so():
    x = torch.randn(2, 8)
    function = torch.nn.functional.layer_norm

    def norm(x):
        return vitkern.layernorm(x, None, None, 1e-5)

    expected = torch.func.jvp(lambda x: function(x, (8,)), (x,), (x.cos(),))[1]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x.cos())
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(norm(dual)).tangent, expected)
        with vitkern.use_backend("interpreter"), pytest.raises(NotImplementedError, match="forward-mode autograd"):
            norm(dual)
