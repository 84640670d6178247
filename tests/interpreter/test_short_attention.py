"""The one-tile attention kernels in the interpreter, against a softmax in float64."""

import itertools

import pytest
import torch
import triton
import triton.language as tl

from vitkern.kernels.machine import architecture
from vitkern.kernels.tile.blocks import groups_per_program
from vitkern.kernels.tile.short_attention import fits, short_forward
from vitkern.kernels.tile.short_attention_backward import short_backward
from vitkern.reference import attention as reference
from vitkern.testing import compare

pytestmark = pytest.mark.interpreter

LENGTHS = (1, 16, 49, 50, 64, 197)
HEAD_DIMS = (8, 16, 24, 32, 40, 64)


@triton.jit
def keep(s, group, head, qi, ki, args, state):
    """Forbids where a mask (B, N, M) of int8 is 0. args (pointer, N, M)."""
    pointer, N, M = args
    inside = (qi < N) & (ki < M)
    kept = tl.load(pointer + (group * N + qi) * M + ki, mask=inside, other=1)
    return tl.where(kept != 0, s, float("-inf"))


def _tensors(batch, heads, queries, keys, head_dim, dtype, packed=False):
    generator = torch.Generator().manual_seed(queries * 1000 + keys + head_dim)
    if packed:
        return torch.randn(batch, queries, 3, heads, head_dim, generator=generator).to(dtype).permute(2, 0, 3, 1, 4)
    return [
        torch.randn(batch, n, heads, head_dim, generator=generator).to(dtype).transpose(1, 2)
        for n in (queries, keys, keys)
    ]


def _check(q, k, v, bias=None, mask=None):
    dtype, scale = q.dtype, 0.3
    batch, heads, queries, head_dim = q.shape
    keys = k.shape[2]
    grad = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    hook = {} if mask is None else dict(score=keep, score_args=(mask.to(torch.int8), queries, keys))
    out = torch.empty(batch, queries, heads, head_dim, dtype=dtype).transpose(1, 2)
    lse = torch.empty(batch, heads, queries)
    short_forward(q, k, v, out, scale=scale, lse=lse, bias=bias, **hook)
    gradients = [torch.empty_like(t) for t in (q, k, v)]
    d_bias = short_backward(grad, q, k, v, *gradients, scale=scale, bias=bias, bias_grad=bias is not None, **hook)

    def by_the_book(wide, low_precision):
        leaves = [t.to(wide).requires_grad_() for t in (q, k, v)]
        term = None if bias is None else bias.to(wide).requires_grad_()
        allowed = None if mask is None else mask[:, None]
        result, log_sum = reference.attention(
            *leaves, bias=term, mask=allowed, scale=scale, return_lse=True, low_precision=low_precision
        )
        result.backward(grad.to(wide))
        named = {"out": result, "lse": log_sum, **{f"d{n}": t.grad for n, t in zip("qkv", leaves, strict=True)}}
        return named if bias is None else {**named, "dbias": term.grad}

    actual = {"out": out, "lse": lse, **dict(zip(("dq", "dk", "dv"), gradients, strict=True))}
    if bias is not None:
        assert d_bias.shape == bias.shape and d_bias.dtype == torch.float32
        actual["dbias"] = d_bias
    exact = by_the_book(torch.float64, None)
    ideal = by_the_book(torch.float32, None if dtype == torch.float32 else dtype)
    for name, value in actual.items():
        finite = exact[name][exact[name].isfinite()]
        slack = 4e-6 * float(finite.detach().abs().max()) if finite.numel() else 0.0
        result = compare(value, ideal[name], exact[name], slack=slack)
        assert result.passed, (
            f"{name}: error {result.error:.3e}, allowed {result.allowance:.3e}, {result.positions_agree=}"
        )


# Every length and every head dim occurs, not their whole product.
@pytest.mark.parametrize(("length", "head_dim"), [*zip(LENGTHS, HEAD_DIMS, strict=True), (49, 64), (64, 8), (1, 40)])
def test_packed(length, head_dim):
    q, k, v = _tensors(
        3 if length < 100 else 1, 2 if length < 100 else 1, length, length, head_dim, torch.float32, packed=True
    )
    _check(q, k, v)


@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (33, 50), (100, 49), (20, 130)])
def test_queries_and_keys_differ(queries, keys):
    _check(*_tensors(2, 1, queries, keys, 20, torch.float32))


BIASES = [(1, 2, 49, 33), (3, 2, 49, 33), (2, 49, 33), (3, 1, 49, 33), (1, 1, 1, 33), (3, 2, 49, 1), (49, 33)]


@pytest.mark.parametrize("shape", BIASES)
def test_bias(shape):
    _check(
        *_tensors(3, 2, 49, 33, 16, torch.float32), bias=torch.randn(shape, generator=torch.Generator().manual_seed(5))
    )


@pytest.mark.parametrize("shape", [(1, 1, 70, 70), (3, 1, 70, 70)])
def test_bias_in_several_row_blocks(shape):
    _check(
        *_tensors(3, 1, 70, 70, 16, torch.float32), bias=torch.randn(shape, generator=torch.Generator().manual_seed(5))
    )


def test_strided_bias():
    bias = torch.randn(2, 49, 40, generator=torch.Generator().manual_seed(5)).transpose(1, 2)[:, :33].transpose(1, 2)
    _check(*_tensors(3, 2, 49, 33, 16, torch.float32), bias=bias)


@pytest.mark.parametrize("with_bias", [False, True])
def test_fully_masked_rows(with_bias):
    mask = torch.rand(3, 20, 18, generator=torch.Generator().manual_seed(2)) > 0.4
    mask[0, 3], mask[2] = False, False
    bias = torch.randn(1, 2, 20, 18, generator=torch.Generator().manual_seed(3)) if with_bias else None
    _check(*_tensors(3, 2, 20, 18, 16, torch.float32), bias=bias, mask=mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_half_precision(dtype, with_bias):
    q, k, v = _tensors(3, 2, 49, 49, 32, dtype, packed=True)
    _check(q, k, v, bias=torch.randn(1, 2, 49, 49).to(dtype) if with_bias else None)


def test_large_scores_do_not_overflow():
    q, k, v = _tensors(1, 1, 17, 17, 16, torch.float32)
    _check(q * 40, k * 40, v)


def test_two_runs_are_equal_bit_for_bit():
    q, k, v = _tensors(3, 2, 20, 20, 16, torch.float32)
    bias, grad, runs = torch.randn(1, 2, 20, 20), torch.randn_like(q), []
    for _ in range(2):
        gradients = [torch.empty_like(t) for t in (q, k, v)]
        runs.append([short_backward(grad, q, k, v, *gradients, scale=0.2, bias=bias, bias_grad=True), *gradients])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_gradients_into_a_packed_tensor():
    q, k, v = _tensors(2, 2, 17, 17, 16, torch.float32, packed=True)
    grad = torch.randn(2, 2, 17, 16)
    apart = [torch.empty_like(t) for t in (q, k, v)]
    short_backward(grad, q, k, v, *apart, scale=0.2)
    packed = torch.empty(2, 17, 3, 2, 16)
    short_backward(grad, q, k, v, *packed.permute(2, 0, 3, 1, 4), scale=0.2)
    assert all(torch.equal(a, b) for a, b in zip(packed.permute(2, 0, 3, 1, 4), apart, strict=True))


def test_what_fits():
    def of(queries, keys, head_dim, dtype=torch.bfloat16, **options):
        q, k, v = _tensors(1, 1, queries, keys, head_dim, dtype)
        return fits(q, k, v, **options)

    assert of(64, 64, 64) and of(64, 64, 64, terms=True) and of(256, 256, 64) and of(64, 64, 32, torch.float32)
    assert not (of(257, 16, 64) or of(16, 257, 64) or of(65, 65, 64, terms=True) or of(16, 16, 65) or of(65, 65, 32))
    assert not (of(65, 65, 32, torch.float32) or of(64, 64, 64, torch.float32))
    q, k, v = _tensors(1, 2, 8, 8, 16, torch.bfloat16)
    assert not fits(q, k[:, :1], v[:, :1]) and not fits(q[:0], k[:0], v[:0]) and not fits(q, k[:, :, :0], v[:, :, :0])
    assert not fits(q.transpose(2, 3).contiguous().transpose(2, 3), k, v)


def test_a_program_walks_groups_without_losing_any():
    for groups, others in itertools.product((0, 1, 7, 4096, 10**6), (1, 3, 100)):
        for arch in (80, 90, 100, architecture.INTERPRETER):
            assert 1 <= groups_per_program(groups, others, arch) <= 32
