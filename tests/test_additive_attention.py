"""Additive attention on the PyTorch path, and its definition: against sums written out by hand, the module of Dive into
Deep Learning; the error contract. Its kernels: `python -m vitkern lab`, from specimens/additive_attention.py."""

import math

import pytest
import torch
from torch import nn

import vitkern
from vitkern.lab.specimens import additive_attention as specimen
from vitkern.nn import AdditiveAttention
from vitkern.ops import additive_attention as ops
from vitkern.ops.additive_attention import additive_attention
from vitkern.reference import additive_attention as reference
from vitkern.testing import assert_close


def operands(batch=2, heads=2, queries=5, keys=6, features=3, dim=4, dtype=torch.float64):
    shapes = (queries, features), (keys, features), (keys, dim)
    tensors = [torch.randn(batch, heads, *shape, dtype=dtype) for shape in shapes]
    return [*tensors, torch.randn(heads, features, dtype=dtype)]


def by_hand(q, k, v, weight, seen):
    """(N, F), (M, F), (M, D), (F,) -> (N, D), sum by sum."""
    out = torch.zeros(len(q), v.shape[1], dtype=torch.float64)
    for i, query in enumerate(q):
        scores = [
            sum(w.item() * math.tanh(a.item() + b.item()) for w, a, b in zip(weight, query, key, strict=True))
            for key in k
        ]
        weights = [math.exp(score) * bool(s) for score, s in zip(scores, seen, strict=True)]
        for w, value in zip(weights, v, strict=True):
            out[i] += w / sum(weights) * value
    return out


def test_definition():
    q, k, v, weight = operands()
    mask = torch.tensor([[1, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1]]).bool()
    for source in (reference, vitkern):
        out = source.additive_attention(q, k, v, weight, key_padding_mask=mask)
        for b, h in ((0, 1), (1, 0)):
            torch.testing.assert_close(out[b, h], by_hand(q[b, h], k[b, h], v[b, h], weight[h], mask[b]))


def test_definition_gradients():
    tensors = [t.requires_grad_() for t in operands(1, 2, 3, 3, 2, 2)]
    for source in (reference, vitkern):
        assert torch.autograd.gradcheck(source.additive_attention, tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_against_reference(dtype):
    rounding = None if dtype == torch.float32 else dtype
    for sizes in ((2, 2, 17, 33, 8, 16), (1, 1, 1, 1, 1, 1), (1, 1, 3, 5, 300, 300)):
        tensors = operands(*sizes, dtype=dtype)
        out = additive_attention(*tensors)
        assert out.dtype == dtype and out.transpose(1, 2).is_contiguous()
        ideal = reference.additive_attention(*(t.float() for t in tensors), low_precision=rounding)
        assert_close(out, ideal, reference.additive_attention(*(t.double() for t in tensors)))


def test_blocks_of_queries(monkeypatch):
    """What is computed in blocks, and computed again in the backward, is what all at once gives."""
    leaves = [t.requires_grad_() for t in operands(2, 1, 23, 7, 5, 4)]
    mask = torch.rand(2, 7) < 0.6
    found = []
    for chunk, held in ((2**18, 2**24), (300, 2**24), (300, 0)):
        monkeypatch.setattr(ops, "CHUNK", chunk)
        monkeypatch.setattr(ops, "HELD", held)
        out = additive_attention(*leaves, key_padding_mask=mask)
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_a_backward_of_much_keeps_little(monkeypatch):
    monkeypatch.setattr(ops, "CHUNK", 300)
    monkeypatch.setattr(ops, "HELD", 0)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        additive_attention(*(t.requires_grad_() for t in operands(1, 1, 40, 40, 5, 4)))
    assert max(kept) <= 40 * 5


@pytest.mark.parametrize("empty", ["batch", "heads", "queries", "keys"])
def test_nothing_to_compute(empty):
    tensors = [t.requires_grad_() for t in operands(**{empty: 0})]
    out = additive_attention(*tensors)
    assert out.shape == (*tensors[0].shape[:3], 4) and not out.any()
    assert all(g.shape == t.shape for g, t in zip(torch.autograd.grad(out.sum(), tensors), tensors, strict=True))


def test_a_row_without_keys_is_zero():
    tensors = [t.requires_grad_() for t in operands()]
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1] = True
    out = additive_attention(*tensors, key_padding_mask=mask)
    assert not out[0].any() and out[1].all()
    for gradient in torch.autograd.grad(out.sum(), tensors[:3]):
        assert not gradient[0].any() and gradient.isfinite().all()


class OfTheBook(nn.Module):
    """Dive into Deep Learning, section 11.3, with its lengths as a mask."""

    def __init__(self, query_dim, key_dim, hidden_dim):
        super().__init__()
        self.W_k = nn.Linear(key_dim, hidden_dim, bias=False)
        self.W_q = nn.Linear(query_dim, hidden_dim, bias=False)
        self.w_v = nn.Linear(hidden_dim, 1, bias=False)

    def forward(self, query, key, value, mask):
        features = torch.tanh(self.W_q(query).unsqueeze(2) + self.W_k(key).unsqueeze(1))
        scores = self.w_v(features).squeeze(-1).masked_fill(~mask[:, None], -1e6)
        return torch.bmm(scores.softmax(-1), value)


def test_as_the_book():
    theirs, ours = OfTheBook(20, 2, 8).double(), AdditiveAttention(20, 2, 8, dropout=0.1).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    inputs = [torch.randn(2, *shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 20), (10, 2), (10, 4))]
    mask = torch.arange(10) < torch.tensor([[2], [6]])
    found = []
    for module in (theirs, ours):
        out = module(*inputs, mask)
        weights = [module.W_q.weight, module.W_k.weight, module.w_v.weight]
        found.append([out, *torch.autograd.grad(out.square().sum(), [*inputs, *weights])])
    torch.testing.assert_close(found[1], found[0])


def test_dropout_of_weights():
    module = AdditiveAttention(8, 8, 6, dropout=0.5)
    x = torch.randn(2, 5, 8)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


def test_autocast_dtypes():
    tensors = operands(dtype=torch.float32)
    weight = tensors[3].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = additive_attention(*tensors)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.sum(), weight)[0].dtype == torch.float32


@pytest.mark.parametrize("layer", specimen.LAYERS[:1], ids=lambda layer: layer.op)
def test_what_the_benchmarks_compare_with_computes_the_same(layer):
    small = type(layer)("", 9, 7, 5, 4)
    problem = small.problem(2)
    tensors = problem.inputs(torch.Generator().manual_seed(0))
    tensors["key_padding_mask"][:, 0] = True  # the original means over all keys where none is left
    expected = problem.reference(**tensors, **problem.options)
    torch.testing.assert_close(small.eager(problem.options)(**tensors), expected)


Q, K, V, W = operands(2, 2, 3, 5, 4, 6, torch.float32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(q=[1.0]), TypeError, "q is no tensor: got list"),
        (dict(q=Q.int()), TypeError, "q has an unsupported dtype"),
        (dict(k=K.half()), TypeError, "dtypes differ"),
        (dict(q=Q[0]), ValueError, "q has the wrong number of dimensions"),
        (dict(k=K[..., :3]), ValueError, r"k has the wrong shape: got \(2, 2, 5, 3\); expected \(B, H, M, F\)"),
        (dict(v=V[:, :, :4]), ValueError, r"v has the wrong shape: got \(2, 2, 4, 6\)"),
        (dict(weight=W[:1]), ValueError, r"weight has the wrong shape: got \(1, 4\); expected \(H, F\)"),
        (dict(weight=W.to("meta")), ValueError, "devices differ"),
        (dict(q=Q[..., :0], k=K[..., :0], weight=W[:, :0]), ValueError, "there are no features or no channels"),
        (dict(key_padding_mask=torch.ones(2, 5)), TypeError, "key_padding_mask is not a bool tensor"),
        (dict(key_padding_mask=torch.ones(2, 4).bool()), ValueError, "key_padding_mask has the wrong shape"),
        (dict(dropout_p=1.0), ValueError, "dropout_p is no probability"),
    ],
)
def test_bad_input(changes, error, message):
    with pytest.raises(error, match=f"^additive_attention: {message}"):
        additive_attention(**dict(q=Q, k=K, v=V, weight=W) | changes)
