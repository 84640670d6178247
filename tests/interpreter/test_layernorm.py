"""The LayerNorm kernels against float64: result, sum and every gradient."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vitkern.dispatch import use_backend
from vitkern.ops.layernorm import layernorm
from vitkern.reference import layernorm as reference
from vitkern.testing import Pool, assert_close

pytestmark = pytest.mark.interpreter
HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALF)


@pytest.fixture(autouse=True)
def _kernels_or_error():
    with use_backend("interpreter"):
        yield


def check(x, weight, bias, eps, residual=None, pool=None, out_dtype=None):
    """Result and gradients of one call by rule (a); every float argument is a leaf."""
    names = ["dx", "dweight", "dbias", "dresidual"]
    arguments = [x, weight, bias, residual]
    present = [i for i, t in enumerate(arguments) if t is not None]
    leaves = [t if t is None else t.detach().requires_grad_() for t in arguments]

    def run(function, inputs, **keywords):
        outputs = function(*inputs[:3], eps, inputs[3], **keywords)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    outputs = run(layernorm, leaves)
    grads = [torch.randn_like(t) for t in outputs]
    actual = [*outputs, *torch.autograd.grad(outputs, [leaves[i] for i in present], grads)]

    def other(dtype, low_precision):
        inputs = [t if t is None else t.detach().to(dtype).requires_grad_() for t in arguments]
        outputs = run(reference.layernorm, inputs, low_precision=low_precision)
        return [*outputs, *torch.autograd.grad(outputs, [inputs[i] for i in present], [g.to(dtype) for g in grads])]

    names = ["y", "sum"][: len(outputs)] + [names[i] for i in present]
    rounding = None if outputs[0].dtype == torch.float32 else outputs[0].dtype
    for name, a, i, r in zip(names, actual, other(torch.float32, rounding), other(torch.float64, None), strict=True):
        if out_dtype is not None and name == "y":
            assert a.dtype == out_dtype
        result = assert_close(a, i.to(a.dtype), r, name=name)
        if pool is not None:
            pool.add(name, a.dtype, result, r.abs().max().item())
    return outputs


def parameters(channels, dtype):
    return 1 + 0.2 * torch.randn(channels, dtype=dtype), torch.randn(channels, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_widths_and_odd_row_counts(dtype):
    pool = Pool()
    for channels, rows in ((32, 1), (96, 49), (100, 197), (192, 7), (384, 5), (768, 3), (1, 4), (2050, 2)):
        residual = torch.randn(2, rows, channels, dtype=dtype) if channels in (100, 384) else None
        check(torch.randn(2, rows, channels, dtype=dtype), *parameters(channels, dtype), 1e-6, residual, pool)
    assert not pool.failures(), pool.failures()


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 1e-12])
def test_eps_counts_in_half_precision(eps):
    x = torch.randn(5, 64).mul(2e-3).half()
    x[1] = 0.25  # no variance: only eps stands between this row and a division by zero
    (y,) = check(x, *parameters(64, torch.float16), eps)
    assert torch.isfinite(y).all()


def test_a_mean_far_above_the_spread():
    check(1000 + torch.randn(9, 96), *parameters(96, torch.float32), 1e-6)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_without_parameters_and_with_float32_ones(dtype):
    x = torch.randn(7, 48, dtype=dtype)
    weight, bias = parameters(48, torch.float32)
    check(x, None, None, 1e-5)
    check(x, weight, None, 1e-5)
    check(x, weight, bias, 1e-5, out_dtype=dtype)


def test_any_strides():
    wide = torch.randn(3, 5, 200)
    weight, bias = parameters(96, torch.float32)
    for x in (
        wide[..., 7:103],
        wide[:, 1:, :96],
        torch.randn(96, 5, 3).permute(2, 1, 0),
        torch.randn(1, 1, 96).expand(3, 5, 96),
    ):
        check(x, weight, bias, 1e-6, residual=x.transpose(0, 1).contiguous().transpose(0, 1))


def test_residual_of_another_dtype():
    x, residual = torch.randn(3, 5, 64, dtype=torch.float16), torch.randn(3, 5, 64)
    y, total = layernorm(x, *parameters(64, torch.float16), 1e-6, residual)
    assert (y.dtype, total.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(total, x + residual, rtol=0, atol=0)


@pytest.mark.parametrize("used", [0, 1])
def test_only_one_result_has_a_gradient(used):
    x, residual = torch.randn(4, 32, requires_grad=True), torch.randn(4, 32, requires_grad=True)
    weight, bias = parameters(32, torch.float32)
    got = torch.autograd.grad(layernorm(x, weight, bias, 1e-6, residual)[used].square().sum(), (x, residual))
    wanted = torch.autograd.grad(
        reference.layernorm(x, weight, bias, 1e-6, residual)[used].square().sum(), (x, residual)
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32)])
def test_empty(shape):
    x = torch.randn(shape, requires_grad=True)
    weight, bias = (t.requires_grad_() for t in parameters(32, torch.float32))
    y = layernorm(x, weight, bias, 1e-6)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert not weight.grad.any() and not bias.grad.any()


def test_nan_stays_in_its_row():
    x = torch.randn(9, 64)
    x[4, 3] = torch.nan
    y = layernorm(x, *parameters(64, torch.float32), 1e-6)
    assert torch.equal(y.isnan().any(1), torch.arange(9) == 4)


def test_autocast():
    x, (weight, bias) = torch.randn(5, 96), parameters(96, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, total = layernorm(x, weight, bias, 1e-6, x)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        check(x, weight, bias, 1e-6, out_dtype=torch.bfloat16)


def test_two_runs_are_equal():
    x, grad = torch.randn(197, 96), torch.randn(197, 96)
    weight, bias = (t.requires_grad_() for t in parameters(96, torch.float32))
    once, again = (torch.autograd.grad(layernorm(x, weight, bias, 1e-6), (weight, bias), grad) for _ in range(2))
    assert all(map(torch.equal, once, again))


@pytest.mark.parametrize("with_residual", [False, True])
def test_operator_contract(with_residual):
    x = torch.randn(3, 5, 32, requires_grad=True)
    weight, bias = (t.requires_grad_() for t in parameters(32, torch.float32))
    residual = torch.randn(3, 5, 32, requires_grad=True) if with_residual else None
    torch.library.opcheck(torch.ops.vitkern.layernorm.default, (x, weight, bias, residual, 1e-6, torch.float32))


def test_compile_checkpoint_export():
    x, residual = (torch.randn(2, 5, 32, requires_grad=True) for _ in range(2))
    weight, bias = (t.requires_grad_() for t in parameters(32, torch.float32))
    leaves = (x, weight, bias, residual)

    def f(x, weight, bias, residual):
        y, total = layernorm(x, weight, bias, 1e-6, residual)
        return y * total

    wanted = [f(*leaves), *torch.autograd.grad(f(*leaves).square().sum(), leaves)]
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for g in (compiled, lambda *a: checkpoint(f, *a, use_reentrant=False)):
        torch.testing.assert_close([g(*leaves), *torch.autograd.grad(g(*leaves).square().sum(), leaves)], wanted)

    class Module(torch.nn.Module):
        def forward(self, *arguments):
            return f(*arguments)

    program = torch.export.export(Module(), leaves)
    assert "vitkern.layernorm" in str(program.graph)
    torch.testing.assert_close(program.module()(*leaves), wanted[0])
