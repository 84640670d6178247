"""The MLP kernels by every plan against float64: result and every gradient."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vitkern.dispatch import use_backend
from vitkern.kernels.layernorm_mlp import mlp_plan
from vitkern.kernels.rows import epilogues, matmul
from vitkern.ops import layernorm_mlp as ops
from vitkern.reference import layernorm_mlp as reference
from vitkern.testing import Pool, assert_close

pytestmark = pytest.mark.interpreter
NAMES = (
    "out",
    "dx",
    "dnorm_weight",
    "dnorm_bias",
    "dfc1_weight",
    "dfc1_bias",
    "dfc2_weight",
    "dfc2_bias",
    "dlayer_scale",
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _kernels_or_error():
    with use_backend("interpreter"):
        yield


def parameters(channels, hidden, dtype, layer_scale=False):
    """The norm's, fc1's and fc2's weight and bias, and layer_scale or None."""
    shapes = ((channels,), (channels,), (hidden, channels), (hidden,), (channels, hidden), (channels,))
    weights = [torch.randn(shape) * shape[-1] ** (-0.5 * (len(shape) - 1)) for shape in shapes]
    weights[0] = 1 + 0.2 * weights[0]
    return [w.to(dtype) for w in weights] + [torch.randn(channels).to(dtype) if layer_scale else None]


def check(x, weights, plan, *, act="gelu", post_norm=False, row_scale=None, eps=1e-6, pool=None):
    """One call by rule (a). "one" has no backward; the others are differentiated with respect to everything."""
    arguments = [x, *weights]
    present = [i for i, t in enumerate(arguments) if t is not None]
    names = ["out", *(NAMES[1 + i] for i in present)]
    keep = plan != "one"
    low_precision = None if weights[2].dtype == torch.float32 else weights[2].dtype

    def differentiate(out, leaves, grad):
        return [out, *torch.autograd.grad(out, [leaves[i] for i in present], grad)] if keep else [out]

    leaves = [t if t is None else t.detach().requires_grad_(keep) for t in arguments]
    out = ops.layernorm_mlp_forward(*leaves, row_scale, eps, act, post_norm, plan, keep)[0]
    grad = torch.randn_like(out)
    actual = differentiate(out, leaves, grad)

    def other(dtype, low_precision):
        leaves = [t if t is None else t.detach().to(dtype).requires_grad_(keep) for t in arguments]
        keywords = dict(eps=eps, act=act, layer_scale=leaves[7], row_scale=row_scale, post_norm=post_norm)
        out = reference.layernorm_mlp(*leaves[:7], **keywords, low_precision=low_precision)
        return differentiate(out, leaves, grad.to(dtype))

    for name, a, i, r in zip(
        names, actual, other(torch.float32, low_precision), other(torch.float64, None), strict=False
    ):
        result = assert_close(a, i.to(a.dtype), r, name=f"{name} by plan {plan}")
        if pool is not None:
            pool.add(name, a.dtype, result, r.abs().max().item())


def factors(dtype):
    """A dropped sample and a kept one."""
    return torch.tensor([0.0, 1.25], dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("plan", ["one", "two"])
def test_own_products(plan, dtype):
    pool = Pool()
    cases = [(32, 1, "gelu"), (96, 49, "gelu_tanh"), (100, 17, "gelu"), (192, 5, "quick_gelu")]
    cases += [(384, 3, "gelu")] if plan == "two" else []
    for channels, rows, act in cases:
        for post_norm in (False, True):
            plain = channels == 32
            weights = parameters(channels, 4 * channels if channels < 192 else 200, dtype, layer_scale=not plain)
            row_scale = None if plain else factors(dtype)
            check(
                torch.randn(2, rows, channels).to(dtype),
                weights,
                plan,
                act=act,
                post_norm=post_norm,
                row_scale=row_scale,
                pool=pool,
            )
    assert not pool.failures(), pool.failures()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_library_products(dtype):
    """Rule (a) only: the library rounds each product to the dtype before the hook sees it, which the ideal does not."""
    for channels, rows, act, post_norm in (
        (32, 1, "gelu_tanh", True),
        (100, 17, "gelu", False),
        (96, 9, "quick_gelu", True),
        (768, 3, "gelu", False),
    ):
        weights = parameters(channels, 4 * channels if channels < 768 else 64, dtype, layer_scale=channels != 32)
        check(
            torch.randn(2, rows, channels).to(dtype),
            weights,
            "split",
            act=act,
            post_norm=post_norm,
            row_scale=factors(dtype),
        )


@pytest.mark.parametrize("act", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_activation_everywhere(act, dtype):
    """fc1 hands on one channel as it is, from far below to far above zero; fc2 adds it to x."""
    x = torch.linspace(-12, 12, 97).to(dtype).view(-1, 1).repeat(1, 16)
    eye = torch.zeros(16, 16, dtype=dtype)
    eye[0, 0] = 1
    weights = [None, None, eye, None, eye, None, None]
    for plan in ("two", "split"):
        # A post-norm leaves fc1's argument alone; layer_scale 0 keeps the norm out of the result, so look at what is
        # kept for it.
        _, pre, _, _, branch = ops.layernorm_mlp_forward(x, *weights, None, 1e-6, act, True, plan, True)
        wanted = reference.activation(x[:, 0].double(), act)
        assert_close(
            branch[:, 0], wanted.float().to(branch.dtype), wanted, slack=2e-7 if dtype == torch.float32 else 2**-11 * 12
        )
        torch.testing.assert_close(pre[:, 0], x[:, 0], rtol=0, atol=0)


def test_float32_takes_the_more_exact_gelu():
    """erf, and not the shorter formula of half precision."""
    x = torch.linspace(-6, 6, 4096).reshape(64, 64)
    exact, errors = torch.nn.functional.gelu(x.double()), {}
    for takes_erf in (True, False):
        out = torch.empty_like(x)
        matmul.pointwise(x, epilogues.activate_and_store, (None, None, out), act="gelu", exact=takes_erf)
        errors[takes_erf] = (out.double() - exact).abs().mean()
    assert errors[True] < 0.8 * errors[False] < 1e-7


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 1e-12])
@pytest.mark.parametrize("plan", ["one", "two", "split"])
def test_eps(plan, eps):
    x = torch.randn(2, 3, 32) * 2e-3
    check(x, parameters(32, 64, torch.float32), plan, eps=eps)


@pytest.mark.parametrize("plan", ["one", "two", "split"])
def test_missing_biases_and_norm_parameters(plan):
    w = parameters(48, 80, torch.float32)
    check(torch.randn(2, 5, 48), [None, None, w[2], None, w[4], None, None], plan)
    check(torch.randn(2, 5, 48), [w[0], None, w[2], None, w[4], None, torch.randn(48)], plan, post_norm=True)


@pytest.mark.parametrize("plan", ["one", "two", "split"])
def test_float32_stream_beside_half_weights(plan):
    """What autocast makes of a float32 model: the result stays float32."""
    weights = parameters(64, 96, torch.float32)
    weights[2:6] = [w.half() for w in weights[2:6]]
    x = torch.randn(2, 5, 64)
    out = ops.layernorm_mlp_forward(x, *weights, None, 1e-6, "gelu", False, plan, False)[0]
    assert out.dtype == torch.float32
    check(x, weights, plan)
    check(x, weights, plan, post_norm=True)


@pytest.mark.parametrize("plan", ["two", "split"])
def test_any_strides(plan):
    wide = torch.randn(2, 9, 100)
    weights = parameters(64, 96, torch.float32, layer_scale=True)
    weights[2], weights[4] = weights[2].T.contiguous().T, weights[4].T.contiguous().T
    for x in (wide[..., 3:67], wide[:, 2:, :64], torch.randn(64, 9, 2).permute(2, 1, 0)):
        check(x, weights, plan, row_scale=factors(torch.float32))


def test_public_function_takes_each_plan():
    """One kernel without gradients, two with, the library above 512 channels."""
    for channels, keep, plan in ((96, False, "one"), (96, True, "two"), (512, False, "two"), (768, True, "split")):
        assert mlp_plan(channels, 4 * channels, torch.float16, 90, keep) == plan
    assert mlp_plan(96, 384, torch.float32, 90, False) == "split"
    assert mlp_plan(100, 400, torch.float16, 90, True) == "split"
    weights = parameters(32, 64, torch.float32)
    x = torch.randn(2, 3, 5, 32, requires_grad=True)
    out = ops.layernorm_mlp(x, *weights[:6], eps=1e-6)
    with torch.no_grad():
        inferred = ops.layernorm_mlp(x, *weights[:6], eps=1e-6)
    wanted = reference.layernorm_mlp(x, *weights[:6], eps=1e-6)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(inferred, wanted)
    assert out.requires_grad and not inferred.requires_grad


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("shape", [(0, 5, 32), (2, 0, 32)])
def test_empty(shape, post_norm):
    x = torch.randn(shape, requires_grad=True)
    weights = [w.requires_grad_() for w in parameters(32, 64, torch.float32, layer_scale=True)]
    out = ops.layernorm_mlp(
        x, *weights[:6], eps=1e-6, layer_scale=weights[6], row_scale=torch.ones(shape[0]), post_norm=post_norm
    )
    out.sum().backward()
    assert out.shape == x.grad.shape == shape
    assert not any(w.grad.any() for w in weights)


def test_autocast():
    weights = [w.requires_grad_() for w in parameters(64, 96, torch.float32, layer_scale=True)]
    x = torch.randn(2, 5, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.layernorm_mlp(x, *weights[:6], eps=1e-6, layer_scale=weights[6])
    grads = torch.autograd.grad(out, (x, *weights), torch.ones_like(out))
    assert {t.dtype for t in (out, *grads)} == {torch.float32}
    wanted = reference.layernorm_mlp(x, *weights[:6], eps=1e-6, layer_scale=weights[6])
    torch.testing.assert_close(out, wanted, rtol=2e-2, atol=5e-2)
    half = out.detach() - x
    assert not torch.equal(half, wanted.detach() - x), "autocast had no effect"


def test_two_runs_are_equal():
    x, grad = torch.randn(2, 49, 96), torch.randn(2, 49, 96)
    weights = [w.requires_grad_() for w in parameters(96, 96, torch.float32, layer_scale=True)]
    once, again = (
        torch.autograd.grad(ops.layernorm_mlp(x, *weights[:6], eps=1e-6, layer_scale=weights[6]), weights, grad)
        for _ in range(2)
    )
    assert all(map(torch.equal, once, again))


@pytest.mark.parametrize("post_norm", [False, True])
def test_operator_contract(post_norm):
    weights = [w.requires_grad_() for w in parameters(32, 48, torch.float32, layer_scale=True)]
    x = torch.randn(2, 3, 32, requires_grad=True)
    arguments = (x, *weights, torch.ones(2), 1e-6, "gelu", post_norm, "two", True)
    torch.library.opcheck(torch.ops.vitkern.layernorm_mlp.default, arguments)


def test_compile_checkpoint_export_flops():
    weights = [w.requires_grad_() for w in parameters(32, 64, torch.float32)[:6]]
    x = torch.randn(2, 3, 32, requires_grad=True)
    leaves = (x, *weights)

    def f(*leaves):
        return ops.layernorm_mlp(*leaves, eps=1e-6)

    wanted = [f(*leaves), *torch.autograd.grad(f(*leaves).square().sum(), leaves)]
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for g in (compiled, lambda *a: checkpoint(f, *a, use_reentrant=False)):
        torch.testing.assert_close([g(*leaves), *torch.autograd.grad(g(*leaves).square().sum(), leaves)], wanted)

    class Module(torch.nn.Module):
        def forward(self, *arguments):
            return f(*arguments)

    program = torch.export.export(Module(), leaves)
    assert "vitkern.layernorm_mlp" in str(program.graph)
    torch.testing.assert_close(program.module()(*leaves), wanted[0])
    with FlopCounterMode(display=False) as flops:
        f(*leaves).sum().backward()
    assert flops.get_total_flops() == 3 * 2 * 2 * 6 * 32 * 64
