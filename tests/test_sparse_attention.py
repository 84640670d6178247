"""Sampled, gated attention in PyTorch: the definition, its properties and its errors."""

import math

import pytest
import torch

from vitkern import dispatch
from vitkern.ops.attention import attention
from vitkern.ops.sparse_attention import sparse_attention
from vitkern.reference.sparse_attention import sparse_attention as reference


def operands(batch=2, heads=2, queries=9, keys=12, dim=8, dtype=torch.float64):
    return [torch.randn(batch, heads, n, dim, dtype=dtype) for n in (queries, keys, keys)]


def gates(batch, queries, keys, dtype=torch.float64):
    return torch.rand(batch, queries, dtype=dtype), torch.rand(batch, keys, dtype=dtype)


def masked_softmax(q, k, v, g, h, strength):
    """The formula of the paper, without the shift."""
    mask = (g[:, None, :, None] * h[:, None, None, :] - 1) * strength
    return ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 + mask).softmax(-1) @ v


@pytest.mark.parametrize("strength", [0.0, 3.0, 1e3])
def test_gates_are_the_rank_one_mask(strength):
    tensors = [*operands(), *gates(2, 9, 12)]
    results = []
    for function in (
        masked_softmax,
        lambda q, k, v, g, h, s: sparse_attention(q, k, v, query_gate=g, key_gate=h, strength=s),
    ):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = function(*leaves, strength)
        results.append((out, *torch.autograd.grad(out.sin().sum(), leaves, materialize_grads=True)))
    for plain, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, plain, rtol=1e-9, atol=1e-9 * max(1.0, strength))


def test_gates_of_one_change_nothing():
    q, k, v = operands()
    ones = torch.ones(2, 9, dtype=q.dtype), torch.ones(2, 12, dtype=q.dtype)
    torch.testing.assert_close(sparse_attention(q, k, v, query_gate=ones[0], key_gate=ones[1]), attention(q, k, v))


def test_an_unsampled_query_still_sees_scores_in_half_precision():
    """With the official 1e8 added to the scores as they are, float32 has no digit left for them."""
    q, k, v = operands(dtype=torch.float32)
    g, h = torch.zeros(2, 9), torch.ones(2, 12)
    out = sparse_attention(q.half(), k.half(), v.half(), query_gate=g, key_gate=h)
    assert out.isfinite().all()
    torch.testing.assert_close(out.float(), attention(q, k, v), rtol=2e-3, atol=2e-3)


def test_closed_keys_are_forbidden_to_open_queries():
    q, k, v = operands()
    h = (torch.arange(12) < 5).double().expand(2, 12)
    out = sparse_attention(q, k, v, query_gate=torch.ones(2, 9, dtype=q.dtype), key_gate=h)
    torch.testing.assert_close(out, attention(q, k[:, :, :5], v[:, :, :5]))


def test_index_gathers_queries_and_scatters_their_gradient():
    q, k, v = operands()
    q.requires_grad_()
    index = torch.stack([torch.randperm(9)[:4] for _ in range(2)])
    out = sparse_attention(q, k, v, index=index)
    everything = attention(q, k, v)
    expected = everything.gather(2, index[:, None, :, None].expand(-1, 2, -1, 8))
    torch.testing.assert_close(out, expected)
    for a, b in zip(torch.autograd.grad(out.sum(), q), torch.autograd.grad(expected.sum(), q), strict=True):
        torch.testing.assert_close(a, b)


def test_a_query_that_is_listed_again_gives_its_row_again_and_gets_the_sum():
    q, k, v = (t.requires_grad_() for t in operands())
    index = torch.tensor([[3, 3, 5, 3], [0, 8, 0, 0]])
    grad = torch.randn(2, 2, 4, 8, dtype=q.dtype)
    out = sparse_attention(q, k, v, index=index)
    assert torch.equal(out[0, :, 0], out[0, :, 3]) and torch.equal(out[1, :, 0], out[1, :, 2])
    dq = torch.autograd.grad(out, q, grad)[0]
    rows = [
        torch.autograd.grad(sparse_attention(q, k, v, index=index[:, i : i + 1]), q, grad[:, :, i : i + 1])[0]
        for i in range(4)
    ]
    torch.testing.assert_close(dq, sum(rows))


def test_padded_keys_and_empty_rows():
    q, k, v = (t.requires_grad_() for t in operands())
    keep = torch.arange(12)[None, :] < torch.tensor([[7], [0]])
    g, h = (t.requires_grad_() for t in gates(2, 9, 12))
    out = sparse_attention(q, k, v, key_padding_mask=keep, query_gate=g, key_gate=h)
    assert (out[1] == 0).all()
    torch.testing.assert_close(out[:1], masked_softmax(q[:1], k[:1, :, :7], v[:1, :, :7], g[:1], h[:1, :7], 1e8))
    for gradient in torch.autograd.grad(out.sum(), (q, k, v, g, h)):
        assert gradient.isfinite().all() and (gradient[1] == 0).all()


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4)])
def test_empty_tensors(shape):
    q = torch.randn(shape)
    k = torch.randn(shape[0], shape[1], 5, shape[3])
    assert sparse_attention(q, k, k).shape == shape


def test_no_keys():
    q = torch.randn(2, 2, 3, 8)
    k = torch.randn(2, 2, 0, 8)
    assert (sparse_attention(q, k, k, query_gate=torch.ones(2, 3), key_gate=torch.ones(2, 0)) == 0).all()


def test_output_is_laid_out_for_the_projection():
    out = sparse_attention(*operands())
    assert out.transpose(1, 2).is_contiguous()


def test_autocast():
    tensors = operands(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert sparse_attention(*tensors).dtype == torch.bfloat16


def test_low_precision_reference_rounds():
    tensors = operands(dtype=torch.float32)
    exact, low = reference(*tensors), reference(*tensors, low_precision=torch.bfloat16)
    assert 1e-4 < (exact - low).abs().max() < 5e-2


@pytest.mark.parametrize("gated", [False, True])
def test_dropout_follows_the_seed_and_keeps_the_mean(gated):
    q, k, _ = operands(queries=60, keys=40)
    v = torch.ones(2, 2, 40, 8, dtype=q.dtype)
    g, h = gates(2, 60, 40) if gated else (None, None)

    def run():
        torch.manual_seed(3)
        return sparse_attention(q, k, v, query_gate=g, key_gate=h, strength=1.0, dropout_p=0.25)

    out = run()
    assert torch.equal(out, run()) and out.dtype == q.dtype
    assert abs(out.mean().item() - 1) < 0.03 and out.std() > 0.05
    torch.testing.assert_close(out, out[..., :1].expand_as(out))  # weights are dropped, not channels


def test_dropout_needs_pytorch():
    q, k, v = operands(dtype=torch.float32)
    with dispatch.use_backend("triton"), pytest.raises(NotImplementedError, match="does not drop attention weights"):
        sparse_attention(q, k, v, dropout_p=0.1)


BAD = {
    "k's shape": (dict(k=torch.zeros(2, 2, 12, 9)), "k has the wrong shape"),
    "v's shape": (dict(v=torch.zeros(2, 2, 11, 8)), "v has the wrong shape"),
    "dtype": (dict(k=torch.zeros(2, 2, 12, 8).half()), "dtypes differ"),
    "index dtype": (dict(index=torch.zeros(2, 3)), "index is no int64 tensor"),
    "index range": (dict(index=torch.full((2, 3), 9)), "index is out of range: got 9 .. 9; expected 0 .. 8"),
    "index shape": (dict(index=torch.zeros(3, 3, dtype=torch.int64)), "index has the wrong shape"),
    "padding dtype": (dict(key_padding_mask=torch.ones(2, 12)), "key_padding_mask is not a bool tensor"),
    "padding shape": (dict(key_padding_mask=torch.ones(2, 9, dtype=torch.bool)), "key_padding_mask has the wrong"),
    "one gate": (dict(query_gate=torch.ones(2, 9)), "one gate alone: got only query_gate"),
    "gate shape": (dict(query_gate=torch.ones(2, 8), key_gate=torch.ones(2, 12)), "query_gate has the wrong shape"),
    "strength": (dict(strength=-1.0), "strength is not usable"),
    "infinite strength": (dict(strength=math.inf), "strength is not usable"),
    "dropout": (dict(dropout_p=1.0), "dropout_p is no probability"),
    "scale": (dict(scale=0.0), "scale is not usable"),
    "no tensor": (dict(q=[1.0]), "q is no tensor"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changes, message = BAD[name]
    q, k, v = operands(dtype=torch.float32)
    with pytest.raises((ValueError, TypeError), match=f"sparse_attention: {message}"):
        sparse_attention(**(dict(q=q, k=k, v=v) | changes))
