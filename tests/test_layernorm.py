"""LayerNorm on the PyTorch path and its definition, against a formula written row by row; the error contract."""

import math

import pytest
import torch
import torch.nn.functional as F

from vitkern.nn.layernorm import LayerNorm
from vitkern.ops.layernorm import MAX_CHANNELS, layernorm
from vitkern.reference import layernorm as reference
from vitkern.testing import assert_close


def row_by_row(x, weight, bias, eps):
    rows = []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        mean = math.fsum(row) / len(row)
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in row) / len(row) + eps)
        rows.append(
            [(v - mean) / deviation * w + b for v, w, b in zip(row, weight.tolist(), bias.tolist(), strict=True)]
        )
    return torch.tensor(rows, dtype=torch.float64).view(x.shape)


def parameters(channels, dtype=torch.float32):
    return (1 + 0.2 * torch.randn(channels)).to(dtype), torch.randn(channels).to(dtype)


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 1e-12])
def test_definition(eps):
    x, (weight, bias) = torch.randn(2, 3, 20, dtype=torch.float64) * 1e-2, parameters(20, torch.float64)
    wanted = row_by_row(x, weight, bias, eps)
    torch.testing.assert_close(reference.layernorm(x, weight, bias, eps), wanted)
    torch.testing.assert_close(layernorm(x, weight, bias, eps), wanted)


def test_definition_gradients():
    x, residual = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight, bias = (t.requires_grad_() for t in parameters(6, torch.float64))
    for function in (reference.layernorm, layernorm):
        assert torch.autograd.gradcheck(lambda *a, f=function: f(*a[:3], 1e-5, a[3]), (x, weight, bias, residual))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_dtype", ["same", "float32"])
def test_against_reference(dtype, weight_dtype):
    for shape in ((1, 32), (49, 96), (2, 197, 100), (0, 32), (3, MAX_CHANNELS + 1)):
        x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        weight, bias = parameters(shape[-1], dtype if weight_dtype == "same" else torch.float32)
        y, total = layernorm(x, weight, bias, 1e-6, residual)
        assert (y.dtype, total.dtype) == (dtype, dtype)
        # PyTorch rounds the sum before it normalises it, so that is the input here.
        rounding = None if dtype == torch.float32 else dtype
        ideal = reference.layernorm(total, weight, bias, 1e-6, low_precision=rounding)
        assert_close(y, ideal, reference.layernorm(total.double(), weight, bias, 1e-6))
        torch.testing.assert_close(total, x + residual, rtol=0, atol=0)


def test_without_parameters():
    x = torch.randn(4, 32)
    torch.testing.assert_close(layernorm(x, None, None, 1e-6), F.layer_norm(x, (32,), eps=1e-6))


def test_any_strides():
    x = torch.randn(5, 64, 3).transpose(1, 2)
    weight, bias = parameters(64)
    torch.testing.assert_close(layernorm(x, weight, bias, 1e-6), layernorm(x.contiguous(), weight, bias, 1e-6))


def test_autocast_dtypes():
    x, (weight, bias) = torch.randn(3, 32), parameters(32)
    with torch.autocast("cpu", torch.bfloat16):
        y, total = layernorm(x, weight, bias, 1e-6, x)
        assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
        assert layernorm(x.double(), weight.double(), bias.double(), 1e-6).dtype == torch.float64


def test_compile_and_export():
    x, (weight, bias) = torch.randn(3, 32), parameters(32)
    compiled = torch.compile(lambda x: layernorm(x, weight, bias, 1e-6, x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layernorm(x, weight, bias, 1e-6, x))
    module = LayerNorm(32)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


def test_module():
    module = LayerNorm(48, eps=1e-5)
    stock = torch.nn.LayerNorm(48, eps=1e-5)
    torch.nn.init.normal_(stock.weight)
    module.load_state_dict(stock.state_dict(), strict=True)
    x = torch.randn(2, 7, 48)
    torch.testing.assert_close(module(x), stock(x))
    assert "48, eps=1e-05" in repr(module)


X, W, B = torch.zeros(2, 8), torch.ones(8), torch.zeros(8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], W, B, 1e-6), TypeError, "x is no tensor: got list"),
        ((X.int(), W, B, 1e-6), TypeError, "x has an unsupported dtype: got torch.int32"),
        ((X, torch.ones(7), B, 1e-6), ValueError, r"weight has the wrong shape: got \(7,\)"),
        ((X, W, torch.zeros(2, 8), 1e-6), ValueError, "bias has the wrong shape"),
        ((X.half(), W.bfloat16(), B, 1e-6), TypeError, "dtypes differ: got x torch.float16, weight torch.bfloat16"),
        ((X, W.double(), B.double(), 1e-6), TypeError, "dtypes differ"),
        ((X.half(), W.half(), B, 1e-6), TypeError, "dtypes differ: got weight torch.float16, bias torch.float32"),
        ((X, W, B, -1e-6), ValueError, "eps is not usable: got -1e-06"),
        ((X, W, B, float("nan")), ValueError, "eps is not usable"),
        ((X, W, B, 1e-6, torch.zeros(2, 7)), ValueError, "residual has the wrong shape"),
        ((X, W.to("meta"), B, 1e-6), ValueError, "devices differ: got x on cpu, weight on meta"),
        ((torch.zeros(2, 0), None, None, 1e-6), ValueError, "x has no channels"),
        ((torch.tensor(1.0), None, None, 1e-6), ValueError, "x has no channels"),
        ((X.to_sparse(), W, B, 1e-6), TypeError, "x is not a dense tensor"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=f"^layernorm: {message}"):
        layernorm(*arguments)
