"""The kernels of sampled, gated attention against float64: output and every gradient."""

import pytest
import torch

from vitkern import dispatch
from vitkern.lab.proving.verify import pool_of, verify
from vitkern.lab.specimens.sparse_attention import problem
from vitkern.ops.sparse_attention import sparse_attention

pytestmark = pytest.mark.interpreter
CPU = torch.device("cpu")
HALF = (torch.float16, torch.bfloat16)
PROBLEMS = {
    "one token": problem("", 2, 1, 1, 1, 16, gated=True),
    "prefix of queries": problem("", 2, 2, 5, 12, 32),
    "sampled": problem("", 2, 2, 20, 20, 32, sampled=5),
    "gates, padding, an empty sequence": problem("", 2, 2, 50, 50, 32, gated=True, padded=True),
    "sampled, gates": problem("", 2, 1, 70, 64, 20, sampled=65, gated=True, padded=True),
    "steep gates": problem("", 1, 2, 33, 64, 24, gated=True, strength=1e3),
}
LARGE = {
    "many keys": problem("", 1, 1, 40, 200, 32, gated=True, padded=True),
    "wide heads": problem("", 1, 2, 33, 128, 64, sampled=17),
}
CASES = [(name, dtype) for name in PROBLEMS for dtype in (torch.float32, *HALF)]
CASES += [(name, dtype) for name in LARGE for dtype in HALF]


@pytest.mark.parametrize("name, dtype", CASES)
def test_against_float64(name, dtype):
    with dispatch.use_backend("interpreter"):
        results = verify((PROBLEMS | LARGE)[name], dtype, CPU)
    assert not [r.name for r in results if not r.comparison.passed]
    if results[0].elements > 1000 and dtype != torch.float32:
        assert not pool_of(results).failures(1.1)


def test_two_runs_are_equal():
    torch.manual_seed(3)
    q, k, v = (torch.randn(2, 2, n, 32, requires_grad=True) for n in (20, 33, 33))
    g, h = torch.rand(2, 20, requires_grad=True), torch.rand(2, 33, requires_grad=True)
    runs = []
    for _ in range(2):
        out = sparse_attention(q, k, v, query_gate=g, key_gate=h)
        runs.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v, g, h))))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_strided_operands_and_rows_that_were_not_sampled():
    """Operands as projections leave them; rows of q outside the index get a gradient of zero."""
    packed = torch.randn(2, 20, 3, 2, 32, requires_grad=True)
    index = torch.stack([torch.randperm(20)[:6] for _ in range(2)])
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    out = sparse_attention(q, k, v, index=index)
    (gradient,) = torch.autograd.grad(out.sum(), packed)
    with dispatch.use_backend("torch"):
        expected = sparse_attention(q, k, v, index=index)
    (wanted,) = torch.autograd.grad(expected.sum(), packed)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradient, wanted)
    chosen = torch.zeros(2, 20, dtype=torch.bool).scatter(1, index, True)
    assert (gradient[:, :, 0][~chosen] == 0).all()


def test_what_does_not_fit_a_tile_runs_in_pytorch():
    q = torch.randn(1, 1, 4, 32)
    k = torch.randn(1, 1, 300, 32)
    with dispatch.use_backend("interpreter"), pytest.raises(NotImplementedError, match="300 keys of head dim 32"):
        sparse_attention(q, k, k)
    assert sparse_attention(q, k, k).shape == q.shape
