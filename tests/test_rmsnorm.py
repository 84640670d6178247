"""RMSNorm on the PyTorch path and its definition, against PyTorch's own and a formula written row by row; the error
contract. Its kernels: `python -m vitkern lab`, from vitkern/lab/specimens/rmsnorm.py."""

import math

import pytest
import torch
import torch.nn.functional as F

import vitkern
from vitkern.lab.specimens import rmsnorm as specimen
from vitkern.nn import RMSNorm
from vitkern.ops.layernorm import MAX_CHANNELS
from vitkern.ops.rmsnorm import rmsnorm
from vitkern.reference import rmsnorm as reference
from vitkern.testing import assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def row_by_row(x, weight, eps):
    rows = []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        size = math.sqrt(math.fsum(v * v for v in row) / len(row) + eps)
        rows.append([v / size * w for v, w in zip(row, weight.tolist(), strict=True)])
    return torch.tensor(rows, dtype=torch.float64).view(x.shape)


def scale(channels, dtype=torch.float32):
    return (1 + 0.2 * torch.randn(channels)).to(dtype)


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 1e-12])
def test_definition(eps):
    x, weight = 3 + torch.randn(2, 3, 20, dtype=torch.float64) * 1e-2, scale(20, torch.float64)
    for function in (reference.rmsnorm, rmsnorm):
        torch.testing.assert_close(function(x, weight, eps), row_by_row(x, weight, eps))


def test_definition_gradients():
    x, residual = (torch.randn(3, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = scale(6, torch.float64).requires_grad_()
    for function in (reference.rmsnorm, rmsnorm):
        assert torch.autograd.gradcheck(lambda *a, f=function: f(*a[:2], 1e-5, a[2]), (x, weight, residual))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_dtype", ["same", "float32"])
def test_against_reference(dtype, weight_dtype):
    for shape in ((1, 32), (49, 96), (2, 197, 100), (0, 32), (3, MAX_CHANNELS + 1)):
        x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
        weight = scale(shape[-1], dtype if weight_dtype == "same" else torch.float32)
        y, total = rmsnorm(x, weight, 1e-6, residual)
        assert (y.dtype, total.dtype) == (dtype, dtype)
        # PyTorch rounds the sum before it divides it, so that is the input here.
        rounding = None if dtype == torch.float32 else dtype
        ideal = reference.rmsnorm(total, weight, 1e-6, low_precision=rounding)
        assert_close(y, ideal, reference.rmsnorm(total.double(), weight, 1e-6))
        torch.testing.assert_close(total, x + residual, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("eps", [None, 1e-5])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_as_pytorch(dtype, eps):
    """Dtypes and bits: the weight before the one rounding, and what ``eps=None`` stands for, which shows in small x."""
    for size in (1.0, 1e-4):
        x = (torch.randn(7, 96) * size).to(dtype)
        for weight in (None, scale(96, dtype), scale(96, torch.float64 if dtype == torch.float64 else torch.float32)):
            expected = F.rms_norm(x, (96,), weight, eps)
            torch.testing.assert_close(rmsnorm(x, weight, eps), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_timm_and_transformers(dtype):
    """timm's in float32. Llama's rounds before the weight too: the last bits of a half precision differ, no more."""
    layers = pytest.importorskip("timm.layers")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama").LlamaRMSNorm(48)
    x, weight = torch.randn(5, 48).to(dtype), scale(48, dtype)
    llama = llama.to(dtype)
    with torch.no_grad():
        llama.weight.copy_(weight)
    ours, eps = rmsnorm(x, weight, 1e-6), torch.finfo(dtype).eps
    torch.testing.assert_close(ours, llama(x).detach(), rtol=2 * eps, atol=0)
    if dtype == torch.float32:
        torch.testing.assert_close(ours, layers.fast_norm.rms_norm(x, (48,), weight, 1e-6), rtol=2 * eps, atol=0)
    else:
        assert not torch.equal(ours, llama(x))


def test_any_strides():
    x, weight = torch.randn(5, 64, 3).transpose(1, 2), torch.randn(128)[::2]
    torch.testing.assert_close(rmsnorm(x, weight, 1e-6), rmsnorm(x.contiguous(), weight.contiguous(), 1e-6))


def test_autocast_dtypes():
    x, weight = torch.randn(3, 32), scale(32)
    plain = rmsnorm(x, weight, 1e-6, x)
    with torch.autocast("cpu", torch.bfloat16):
        y, total = rmsnorm(x, weight, 1e-6, x)
        assert rmsnorm(x.double(), weight.double(), 1e-6).dtype == torch.float64
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, plain[0].bfloat16()) and torch.equal(total, plain[1])  # read as float32, rounded once


def test_compile_and_export():
    x, weight = torch.randn(3, 32), scale(32)
    compiled = torch.compile(lambda x: rmsnorm(x, weight, None, x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), rmsnorm(x, weight, None, x))
    module = RMSNorm(32)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


@pytest.mark.parametrize("options", [dict(), dict(eps=1e-5), dict(elementwise_affine=False)], ids=str)
def test_module(options):
    module, stock = RMSNorm(48, **options), torch.nn.RMSNorm(48, **options)
    if stock.weight is not None:
        torch.nn.init.normal_(stock.weight)
    module.load_state_dict(stock.state_dict(), strict=True)
    assert module.state_dict().keys() == stock.state_dict().keys()
    x = torch.randn(2, 7, 48)
    torch.testing.assert_close(module(x), stock(x))
    assert f"48, eps={options.get('eps')}, elementwise_affine={'elementwise_affine' not in options}" in repr(module)
    assert vitkern.rmsnorm is rmsnorm


@pytest.mark.parametrize("residual", [False, True])
def test_what_the_benchmarks_compare_with_computes_the_same(residual):
    problem = specimen.RMSNorm("", 5, 64, residual=residual).problem(2)
    tensors = {name: x.float() for name, x in problem.inputs(torch.Generator().manual_seed(0)).items()}
    eager = specimen.RMSNorm("", 5, 64).eager(problem.options)
    torch.testing.assert_close(eager(**tensors), problem.reference(**tensors, **problem.options))


X, W = torch.zeros(2, 8), torch.ones(8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], W), TypeError, "x is no tensor: got list"),
        ((X.int(), W), TypeError, "x has an unsupported dtype: got torch.int32"),
        ((X, torch.ones(7)), ValueError, r"weight has the wrong shape: got \(7,\)"),
        ((X.half(), W.bfloat16()), TypeError, "dtypes differ: got x torch.float16, weight torch.bfloat16"),
        ((X, W.double()), TypeError, "dtypes differ"),
        ((X, W, -1e-6), ValueError, "eps is not usable: got -1e-06"),
        ((X, W, float("nan")), ValueError, "eps is not usable"),
        ((X, W, "1e-6"), TypeError, "eps is no number"),
        ((X, W, None, torch.zeros(2, 7)), ValueError, "residual has the wrong shape"),
        ((X, W, None, X.to("meta")), ValueError, "devices differ: got x on cpu, residual on meta"),
        ((X, W.to("meta")), ValueError, "devices differ: got x on cpu, weight on meta"),
        ((torch.zeros(2, 0), None), ValueError, "x has no channels"),
        ((torch.tensor(1.0), None), ValueError, "x has no channels"),
        ((X.to_sparse(), W), TypeError, "x is not a dense tensor"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=f"^rmsnorm: {message}"):
        rmsnorm(*arguments)
