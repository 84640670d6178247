"""Nadaraya-Watson kernel regression: against the formula written out, its limits, a width that is learnt; errors."""

import math

import pytest
import torch

import vitkern
from vitkern.nn import NadarayaWatson
from vitkern.ops.nadaraya_watson import nadaraya_watson
from vitkern.reference import nadaraya_watson as reference


def operands(batch=2, queries=5, keys=7, dim=3, values=4, dtype=torch.float64):
    return [torch.randn(batch, n, width, dtype=dtype) for n, width in ((queries, dim), (keys, dim), (keys, values))]


@pytest.mark.parametrize("squared", [False, True])
def test_definition(squared):
    x, keys, values = operands()
    w = 1.3**2 if squared else 1.3
    for source in (reference, vitkern):
        out = source.nadaraya_watson(x, keys, values, 1.3, squared=squared)
        for b, n in ((0, 4), (1, 0)):
            weights = [math.exp(-0.5 * w * (x[b, n] - key).square().sum().item()) for key in keys[b]]
            expected = sum(weight * value for weight, value in zip(weights, values[b], strict=True)) / sum(weights)
            torch.testing.assert_close(out[b, n], expected)


@pytest.mark.parametrize("squared", [False, True])
def test_definition_gradients(squared):
    width = torch.tensor([0.8], dtype=torch.float64)
    tensors = [t.requires_grad_() for t in (*operands(1, 3, 20, 2, 2), width)]
    for source in (reference, vitkern):
        assert torch.autograd.gradcheck(lambda *t, f=source.nadaraya_watson: f(*t, squared=squared), tensors)


def test_far_from_the_origin():
    """Distances are small beside the numbers that they are between."""
    x, keys, values = operands(1, 9, 40, 1, 1, torch.float32)
    expected = reference.nadaraya_watson(x.double(), keys.double(), values.double(), 4.0)
    far = nadaraya_watson(x.double() + 1e5, keys.double() + 1e5, values.double(), 4.0)
    torch.testing.assert_close(far, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(nadaraya_watson(x + 64, keys + 64, values, 4.0).double(), expected, rtol=0, atol=1e-4)


def test_limits():
    x, keys, values = operands()
    torch.testing.assert_close(nadaraya_watson(x, keys, values, 0.0), values.mean(1, keepdim=True).expand(-1, 5, -1))
    torch.testing.assert_close(nadaraya_watson(keys, keys, values, 1e6), values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_computes_in_float32(dtype):
    tensors = [t.to(dtype) for t in operands()]
    out = nadaraya_watson(*tensors, 2.0)
    assert out.dtype == dtype
    torch.testing.assert_close(out, nadaraya_watson(*(t.float() for t in tensors), 2.0).to(dtype), rtol=0, atol=0)
    with torch.autocast("cpu", dtype):
        assert torch.equal(nadaraya_watson(*(t.float() for t in tensors), 2.0), out)


def test_padding_and_no_keys():
    x, keys, values = operands()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0] * 7]).bool()
    out = nadaraya_watson(x, keys, values, key_padding_mask=mask)
    torch.testing.assert_close(out[0], nadaraya_watson(x[:1], keys[:1, :3], values[:1, :3])[0])
    assert not out[1].any()
    assert not nadaraya_watson(x, keys[:, :0], values[:, :0]).any()


def test_what_pads_has_no_part():
    x, keys, values = operands(dtype=torch.float32)
    mask = torch.arange(7) < torch.tensor([[3], [6]])
    expected = reference.nadaraya_watson(x.double(), keys.double(), values.double(), 2.0, key_padding_mask=mask)
    for padding in (1e6, 1e30, math.nan):
        padded = keys.masked_fill(~mask[..., None], padding).requires_grad_()
        out = nadaraya_watson(x, padded, values, 2.0, key_padding_mask=mask)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
        (gradient,) = torch.autograd.grad(out.sum(), padded)
        assert gradient.isfinite().all() and not gradient[~mask].any()


def test_a_width_is_learnt():
    """A sine with noise: the width that fits best is narrower than where it starts, and predicts better."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.rand(1, 50, 1, generator=generator).sort(1)[0] * 5
    truth = lambda x: 2 * x.sin() + x**0.8  # noqa: E731
    values = truth(keys) + 0.2 * torch.randn(1, 50, 1, generator=generator)
    module, x = NadarayaWatson(1.0), torch.linspace(0, 5, 60).view(1, 60, 1)
    others = ~torch.eye(50, dtype=torch.bool)  # each is predicted from the others
    rows = [t.expand(50, -1, -1)[others].view(50, 49, 1) for t in (keys, values)]
    before = (module(x, keys, values) - truth(x)).square().mean()
    optimizer = torch.optim.Adam(module.parameters(), 1.0)
    for _ in range(40):
        loss = (module(keys.view(50, 1, 1), *rows)[:, 0] - values[0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = (module(x, keys, values) - truth(x)).square().mean()
    assert module.w > 3 and after < 0.5 * before


def test_a_fixed_width_is_no_parameter():
    module = NadarayaWatson(2.0, learned=False)
    assert not list(module.parameters()) and list(module.state_dict()) == ["w"]


X, K, V = operands(dtype=torch.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], K, V), TypeError, "x is no tensor: got list"),
        ((X[0], K, V), ValueError, "x has the wrong number of dimensions"),
        ((X, K.double(), V), TypeError, "dtypes differ"),
        ((X, K[..., :2], V), ValueError, r"keys has the wrong shape: got \(2, 7, 2\)"),
        ((X, K, V[:, :6]), ValueError, r"values has the wrong shape: got \(2, 6, 4\)"),
        ((X, K, V, "1"), TypeError, "width is no number"),
        ((X, K, V, torch.ones(2)), ValueError, r"width has the wrong shape: got \(2,\); expected one element"),
        ((X, K, V, torch.ones(1, device="meta")), ValueError, "devices differ: got x on cpu, width on meta"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=f"^nadaraya_watson: {message}"):
        nadaraya_watson(*arguments)
