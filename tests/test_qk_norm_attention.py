"""Attention of normalised queries and keys on the PyTorch path, and its definition: against PyTorch's norms and SDPA,
timm's module, sums written out by hand; which modules read their norms; the error contract. Its kernels: `python -m
vitkern lab`, from vitkern/lab/specimens/qk_norm_attention.py."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from timm.layers import RmsNorm
from torch import nn

import vitkern
from vitkern.lab.specimens.qk_norm_attention import LAYERS
from vitkern.nn import Attention
from vitkern.ops.qk_norm_attention import qk_norm_attention
from vitkern.reference import qk_norm_attention as reference
from vitkern.testing import assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def operands(batch=2, tokens=5, heads=3, dim=4, dtype=torch.float64):
    """qkv, weights and biases of q and of k."""
    wide = torch.promote_types(dtype, torch.float32)
    parameters = [torch.randn(dim, dtype=wide) + one for one in (1.0, 0.0, 1.0, 0.0)]
    return [x.requires_grad_() for x in (1 + torch.randn(batch, tokens, 3, heads, dim, dtype=dtype), *parameters)]


def in_steps(qkv, q_weight, q_bias, k_weight, k_bias, eps=1e-6, norm="layernorm", scale=None):
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    dim = qkv.shape[-1:]
    if norm == "layernorm":
        q, k = F.layer_norm(q, dim, q_weight, q_bias, eps), F.layer_norm(k, dim, k_weight, k_bias, eps)
    else:
        q, k = F.rms_norm(q, dim, q_weight, eps), F.rms_norm(k, dim, k_weight, eps)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def by_hand(qkv, weights, biases, centred, scale, eps):
    """(N, 3, D) -> (N, D), sum by sum."""
    tokens, _, dim = qkv.shape
    rows = []
    for part in range(2):
        rows.append([])
        for x in qkv[:, part].tolist():
            mean = sum(x) / dim if centred else 0.0
            size = math.sqrt(math.fsum((a - mean) ** 2 for a in x) / dim + eps)
            rows[part].append([(a - mean) / size * weights[part][d] + biases[part][d] for d, a in enumerate(x)])
    out = torch.zeros(tokens, dim, dtype=torch.float64)
    for i, q in enumerate(rows[0]):
        found = [math.exp(scale * math.fsum(a * b for a, b in zip(q, k, strict=True))) for k in rows[1]]
        for j in range(tokens):
            out[i] += found[j] / sum(found) * qkv[j, 2]
    return out


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_definition(norm):
    qkv, q_weight, q_bias, k_weight, k_bias = (x.detach() for x in operands())
    if norm == "rmsnorm":
        q_bias = k_bias = None
    biases = [torch.zeros(4) if x is None else x for x in (q_bias, k_bias)]
    for source in (reference, vitkern):
        found = source.qk_norm_attention(qkv, q_weight, q_bias, k_weight, k_bias, norm=norm, scale=0.3, eps=0.02)
        for image, head in ((0, 1), (1, 2)):
            expected = by_hand(qkv[image, :, :, head], (q_weight, k_weight), biases, norm == "layernorm", 0.3, 0.02)
            torch.testing.assert_close(found[image, :, head], expected)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_against_pytorch(norm):
    tensors = operands(2, 7, 2, 6)
    given = tensors if norm == "layernorm" else [tensors[0], tensors[1], None, tensors[3], None]
    leaves = [x for x in given if x is not None]
    grad = torch.randn(2, 7, 2, 6, dtype=torch.float64)
    results = []
    for function in (in_steps, reference.qk_norm_attention, qk_norm_attention):
        out = function(*given, norm=norm, eps=1e-3, scale=0.7)
        results.append([out, *torch.autograd.grad(out, leaves, grad)])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def test_definition_gradients():
    tensors = operands(1, 3, 2, 3)
    assert torch.autograd.gradcheck(qk_norm_attention, tensors)
    assert torch.autograd.gradgradcheck(qk_norm_attention, tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_reference(dtype):
    for sizes in ((2, 49, 3, 32), (1, 7, 1, 2), (1, 33, 2, 264)):
        tensors = [x.detach() for x in operands(*sizes, dtype)]
        out = qk_norm_attention(*tensors)
        assert out.dtype == dtype and out.is_contiguous()
        ideal = reference.qk_norm_attention(
            *(x.float() for x in tensors), low_precision=None if dtype == torch.float32 else dtype
        )
        exact = reference.qk_norm_attention(*(x.double() for x in tensors))
        assert_close(out, ideal.to(dtype), exact, margin=4)


def test_no_softmax_sees_a_bias_of_the_keys():
    tensors = operands()
    out = qk_norm_attention(*tensors)
    torch.testing.assert_close(out, qk_norm_attention(*tensors[:-1]))
    gradient = torch.autograd.grad(out.square().sum(), tensors[-1])[0]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("shape", [(0, 5, 3, 2, 4), (2, 0, 3, 2, 4), (2, 5, 3, 0, 4)], ids=str)
def test_nothing_to_compute(shape):
    tensors = [torch.randn(shape, requires_grad=True), *(torch.randn(4, requires_grad=True) for _ in range(4))]
    out = qk_norm_attention(*tensors)
    assert out.shape == (*shape[:2], *shape[3:])
    for gradient in torch.autograd.grad(out.sum(), tensors):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_any_strides():
    qkv = torch.randn(2, 3, 8, 5, 6).permute(0, 3, 1, 4, 2)[..., ::2]  # (2, 5, 3, 6, 4)
    parameters = [torch.randn(8)[::2] for _ in range(4)]
    expected = qk_norm_attention(qkv.contiguous(), *(x.contiguous() for x in parameters))
    torch.testing.assert_close(qk_norm_attention(qkv, *parameters), expected)


def test_autocast_dtypes():
    tensors = operands(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = qk_norm_attention(*tensors)
    assert out.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.sum(), tensors))


def calls_of(monkeypatch, module):
    """How often its forward calls the operator."""
    calls = []
    name = f"{type(module).__module__}.qk_norm_attention"
    monkeypatch.setattr(name, lambda *a, **k: calls.append(1) or qk_norm_attention(*a, **k))
    return calls


def same_as_before(module, x, change):
    expected = module(x)
    change(module)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda m: None, 2),
        (lambda m: m.q_norm.register_forward_hook(lambda *_: None), 1),
        (lambda m: setattr(m, "k_norm", nn.LayerNorm(8, eps=1e-6)), 1),
        (lambda m: m.register_forward_hook(lambda *_: None), 2),
    ],
    ids=["plain", "hooked", "another class", "hooked itself"],
)
def test_norms_that_somebody_watches_or_replaced_are_called(change, count, monkeypatch):
    module = Attention(16, 2, qk_norm=True)
    calls = calls_of(monkeypatch, module)
    same_as_before(module, torch.randn(2, 5, 16), change)
    assert len(calls) == count


def test_norms_of_two_eps_and_dropout(monkeypatch):
    module = Attention(16, 2, qk_norm=True, attn_drop=0.5)
    calls, x = calls_of(monkeypatch, module), torch.randn(2, 5, 16)
    module(x)
    module.eval()(x)
    assert len(calls) == 1
    module.k_norm.eps = 1e-5
    module(x)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm, partial(nn.RMSNorm, eps=1e-5), RmsNorm], ids=["LayerNorm", "PyTorch", "timm"]
)
def test_accelerated_timm_modules(norm, monkeypatch):
    module = TimmAttention(16, 2, qk_norm=True, norm_layer=norm).eval()
    x = torch.randn(2, 5, 16, requires_grad=True)
    expected = module(x)
    gradient = torch.autograd.grad(expected.square().sum(), x)[0]
    vitkern.accelerate(module)
    calls = calls_of(monkeypatch, module)
    found = module(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], gradient)
    assert len(calls) == 1
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(module(x, attn_mask=mask), module(x, is_causal=True))
    module.q_norm.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(module(x), expected)
    assert len(calls) == 1


def test_what_the_benchmarks_compare_with_computes_the_same():
    small = type(LAYERS[0])("", 33, 2, 16)
    problem = small.problem(2)
    tensors = {name: x.float() for name, x in problem.inputs(torch.Generator().manual_seed(0)).items()}
    torch.testing.assert_close(small.eager(problem.options)(**tensors), problem.reference(**tensors))


X, W = torch.zeros(2, 5, 3, 2, 4), torch.ones(4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0],), {}, TypeError, "qkv is no tensor: got list"),
        ((X.int(),), {}, TypeError, "qkv has an unsupported dtype: got torch.int32"),
        ((X[0],), {}, ValueError, "qkv has the wrong number of dimensions"),
        ((X[:, :, :2],), {}, ValueError, r"qkv has the wrong shape: got \(2, 5, 2, 2, 4\)"),
        ((X[..., :0],), {}, ValueError, "head dim is 0"),
        ((X, W[:3]), {}, ValueError, r"q_weight has the wrong shape: got \(3,\); expected \(4,\)"),
        ((X, None, None, None, W[:3]), {}, ValueError, r"k_bias has the wrong shape: got \(3,\)"),
        ((X, W, W.double()), {}, TypeError, "dtypes differ"),
        ((X, W.to("meta")), {}, ValueError, "devices differ: got x on cpu, q_weight on meta"),
        ((X, W, W), dict(norm="rmsnorm"), ValueError, "RMSNorm has no bias: got a q_bias; expected None"),
        ((X,), dict(norm="batchnorm"), ValueError, "norm is unknown: got 'batchnorm'; expected one of 'layernorm'"),
        ((X,), dict(scale=0.0), ValueError, "scale is not usable: got 0.0"),
        ((X,), dict(eps=-1e-6), ValueError, "eps is not usable: got -1e-06"),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=f"^qk_norm_attention: {message}"):
        qk_norm_attention(*arguments, **options)
