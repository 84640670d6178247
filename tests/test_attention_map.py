"""Maps of attention and their relevance on the PyTorch path: the formula, its terms, memory, errors."""

import math

import pytest
import torch

import vitkern
from vitkern.commands.timing import peak_memory
from vitkern.ops import attention_map as ops
from vitkern.reference import attention_maps as reference

TERMS = {
    "plain": dict(),
    "scale": dict(scale=0.3),
    "causal": dict(causal=True),
    "bias": dict(bias=torch.linspace(-1, 1, 4 * 9 * 11).view(4, 9, 11)),
    "bool mask": dict(mask=torch.arange(99).view(9, 11) % 3 > 0),
    "additive mask": dict(mask=torch.linspace(-2, 2, 11)),
    "key padding": dict(key_padding_mask=torch.arange(22).view(2, 11) > 7),
}


def operands(kv_heads=2, n=9, m=11, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = (2, 4, n, 8), (2, kv_heads, m, 8), (2, kv_heads, m, 5), (2, 4, n, 5)
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("name", TERMS)
def test_the_formula(name, kv_heads, monkeypatch):
    monkeypatch.setattr(ops, "_SCORES", 2 * 4 * 11 * 2)  # two queries at a time
    q, k, v, grad = operands(kv_heads)
    calls = (vitkern.attention_map, reference.attention_map, (q, k)), (
        vitkern.attention_relevance, reference.attention_relevance, (q, k, v, grad),
    )  # fmt: skip
    for function, formula, given in calls:
        whole = formula(*given, **TERMS[name])
        for heads, expected in (("mean", whole.mean(1)), ("sum", whole.sum(1)), ([2, 1], whole[:, [2, 1]])):
            torch.testing.assert_close(function(*given, heads=heads, **TERMS[name]), expected, rtol=1e-12, atol=1e-14)


def test_relevance_is_that_of_autograd():
    q, k, v, grad = operands(4)
    weights = reference.attention_map(q, k).requires_grad_()
    (slope,) = torch.autograd.grad(weights @ v, weights, grad)
    expected = (weights * slope).clamp(min=0).mean(1)
    torch.testing.assert_close(vitkern.attention_relevance(q, k, v, grad), expected, rtol=1e-12, atol=1e-14)


def test_rows_that_see_nothing_are_zero():
    q, k, v, grad = operands(4)
    mask = torch.ones(9, 11, dtype=torch.bool)
    mask[4] = False
    for terms in (dict(mask=mask), dict(mask=torch.zeros(9, 11).masked_fill(~mask, -math.inf))):
        found = vitkern.attention_map(q, k, **terms)
        assert found[:, 4].eq(0).all() and torch.allclose(found.sum(-1), mask.any(-1).to(found))
        assert vitkern.attention_relevance(q, k, v, grad, **terms)[:, 4].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_float32(dtype):
    q, k, v, grad = operands(2, dtype=dtype)
    found = vitkern.attention_relevance(q.requires_grad_(), k, v, grad)
    expected = reference.attention_relevance(*(t.detach().double() for t in (q, k, v, grad))).mean(1)
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vitkern.attention_relevance(q, k, v, grad), found)


def test_no_map_of_each_head_is_in_memory(monkeypatch):
    monkeypatch.setattr(ops, "_SCORES", 1 << 18)
    q, k, v, grad = (torch.randn(1, 32, 700, 4) for _ in range(4))
    for call in (lambda: vitkern.attention_map(q, k), lambda: vitkern.attention_relevance(q, k, v, grad)):
        assert peak_memory(call, q.device) < 32 * 700 * 700 * 4 / 6


@pytest.mark.parametrize("n, m, heads", [(0, 11, 4), (9, 0, 4), (9, 11, 0)])
def test_nothing_to_attend_to(n, m, heads):
    q, k = torch.randn(2, heads, n, 8), torch.randn(2, heads, m, 8)
    assert vitkern.attention_map(q, k).shape == (2, n, m)
    assert vitkern.attention_map(q, k).eq(0).all() or heads


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(heads="max"), 'heads are unknown: got \'max\'; expected "mean", "sum" or numbers from 0 to 3'),
        (dict(heads=[0, 4]), r"there is no such head: got \[0, 4\] of 4"),
        (dict(v=None), "v is no tensor: got NoneType"),
        (dict(heads=0.5), "heads are no numbers: got 0.5"),
        (dict(heads=[True]), "heads are no numbers"),
        (dict(grad=torch.zeros(2, 4, 9, 8, dtype=torch.float64)), "grad has the wrong shape"),
        (dict(k=torch.zeros(2, 3, 11, 8, dtype=torch.float64)), "v has the wrong shape"),
        (dict(q=torch.zeros(2, 9, 8)), "q has the wrong number of dimensions|q"),
        (dict(lse=torch.zeros(2, 4, 8)), "lse has the wrong shape"),
        (dict(scale=0.0), "scale is not usable"),
        (dict(mask=torch.zeros(5, 5)), "mask has the wrong shape"),
    ],
)
def test_errors_name_the_remedy(changes, message):
    given = dict(zip(("q", "k", "v", "grad"), operands(), strict=True)) | changes
    with pytest.raises((ValueError, TypeError), match=f"attention_relevance: {message}"):
        vitkern.attention_relevance(**given)


def test_a_kernel_that_was_asked_for_and_cannot_run():
    q, k, _, _ = operands()
    with vitkern.use_backend("triton"), pytest.raises(NotImplementedError, match="attention_map: the kernel was asked"):
        vitkern.attention_map(q, k)


def test_in_a_graph():
    q, k, v, grad = operands(2)
    compiled = torch.compile(vitkern.attention_relevance, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v, grad), vitkern.attention_relevance(q, k, v, grad))
    mapped = torch.vmap(lambda q: vitkern.attention_map(q[None], k[:1])[0])(q)
    torch.testing.assert_close(mapped, vitkern.attention_map(q, k[:1].expand_as(k)))


@pytest.mark.parametrize("scores", [1 << 20, 100], ids=["at once", "in parts"])
def test_any_operand_may_be_mapped(scores, monkeypatch):
    monkeypatch.setattr(ops, "_SCORES", scores)
    q, k, v, grad = operands(2)
    given = dict(q=q, k=k, v=v, grad=grad, bias=torch.randn(q.shape[2], k.shape[2], dtype=q.dtype))
    given |= dict(mask=torch.rand(q.shape[2], k.shape[2]) < 0.7, key_padding_mask=torch.rand(2, k.shape[2]) < 0.7)
    for name, tensor in given.items():
        both = torch.stack([tensor, tensor.flip(-1)])
        mapped = torch.vmap(lambda t, name=name: vitkern.attention_relevance(**given | {name: t}))(both)
        torch.testing.assert_close(mapped[1], vitkern.attention_relevance(**given | {name: both[1]}))


def test_what_is_added_does_not_widen_the_result():
    q, k, _, _ = (t.float() for t in operands())
    mask = torch.randn(q.shape[2], k.shape[2], dtype=torch.float64)
    assert vitkern.attention_map(q, k, mask=mask).dtype == torch.float32
