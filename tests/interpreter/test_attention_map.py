"""Maps of attention and their relevance by the kernel: the formula in float64, with the terms that change weights."""

import math

import pytest
import torch

import vitkern
from vitkern.kernels.machine.choices import replaced
from vitkern.reference import attention_maps as reference

N, M = 19, 37
TERMS = {
    "plain": dict(),
    "bias": dict(bias=torch.linspace(-1, 1, 4 * N * M).view(4, N, M)),
    "masks, causal": dict(
        mask=torch.arange(N * M).view(N, M) % 3 > 0, key_padding_mask=torch.arange(2 * M).view(2, M) > 7, causal=True
    ),
}


def operands(kv_heads=2, dtype=torch.float32, n=N, m=M, dim=24):
    torch.manual_seed(0)
    shapes = (2, 4, n, dim), (2, kv_heads, m, dim), (2, kv_heads, m, 16), (2, 4, n, 16)
    return [torch.randn(shape).to(dtype) for shape in shapes]


def exact(given, terms):
    wide = {
        name: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for name, t in terms.items()
    }
    q, k, v, grad = (t.double() for t in given)
    return reference.attention_map(q, k, **wide), reference.attention_relevance(q, k, v, grad, **wide)


@pytest.fixture(autouse=True)
def forced():
    with vitkern.use_backend("interpreter"):
        yield


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("heads", ["mean", [2, 0]], ids=str)
def test_the_formula(name, heads):
    q, k, v, _ = given = operands()
    terms = TERMS[name]
    _, lse = vitkern.attention(q, k, v, **terms, return_lse=True)
    found = (
        vitkern.attention_map(q, k, heads=heads, lse=lse, **terms),
        vitkern.attention_relevance(*given, heads=heads, **terms),
    )
    for actual, whole in zip(found, exact(given, terms), strict=True):
        expected = whole.mean(1) if heads == "mean" else whole[:, heads]
        torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    given = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in operands(4, dtype)]
    found = vitkern.attention_map(*given[:2], heads="sum"), vitkern.attention_relevance(*given, heads="sum")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vitkern.attention_map(*given[:2], heads="sum"), found[0])
    for actual, whole in zip(found, exact(given, {}), strict=True):
        torch.testing.assert_close(actual.double(), whole.sum(1), rtol=1e-4, atol=1e-4)


def test_shares_of_the_heads_add_up():
    given = operands()
    whole = vitkern.attention_relevance(*given)
    with replaced({"bias_splits": lambda tiles, members, arch: 3}):
        torch.testing.assert_close(vitkern.attention_relevance(*given), whole)


def test_rows_that_see_nothing_and_tensors_of_nothing():
    q, k, v, grad = operands()
    mask = torch.ones(N, M, dtype=torch.bool)
    mask[4] = False
    assert vitkern.attention_map(q, k, mask=mask)[:, 4].eq(0).all()
    assert vitkern.attention_relevance(q, k, v, grad, mask=mask)[:, 4].eq(0).all()
    for n, m in ((0, M), (N, 0)):
        assert vitkern.attention_map(*operands(n=n, m=m)[:2]).shape == (2, n, m)
    assert vitkern.attention_map(q[:0], k[:0], heads=[1]).shape == (0, 1, N, M)


def test_logits_of_one_hundred_stay_finite():
    q, k, _, _ = operands()
    found = vitkern.attention_map(q * 100, k)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, N), rtol=1e-4, atol=1e-4)
    assert math.isfinite(found.sum().item())
