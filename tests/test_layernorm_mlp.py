"""LayerNorm and MLP on the PyTorch path and its definition, against PyTorch's own modules and float64;
the error contract.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import Mlp
from vitkern.ops.layernorm_mlp import ACTIVATIONS, layernorm_mlp
from vitkern.reference import layernorm_mlp as reference
from vitkern.testing import assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def parameters(channels, hidden, dtype=torch.float32):
    shapes = ((channels,), (channels,), (hidden, channels), (hidden,), (channels, hidden), (channels,))
    weights = [torch.randn(shape, dtype=torch.float64) * shape[-1] ** (-0.5 * (len(shape) - 1)) for shape in shapes]
    return [w.to(dtype) for w in weights]


def modules(x, weights, eps, act, layer_scale, row_scale, post_norm):
    """What a block of the field does, one module after the other."""
    norm = nn.LayerNorm(x.shape[-1], eps=eps, dtype=x.dtype)
    fc1, fc2 = (nn.Linear(w.shape[1], w.shape[0], dtype=x.dtype) for w in (weights[2], weights[4]))
    for module, weight, bias in ((norm, *weights[:2]), (fc1, *weights[2:4]), (fc2, *weights[4:])):
        module.weight, module.bias = nn.Parameter(weight), nn.Parameter(bias)
    function = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "quick_gelu": lambda t: t * torch.sigmoid(1.702 * t)}[
        act
    ]
    y = norm(fc2(function(fc1(x)))) if post_norm else fc2(function(fc1(norm(x))))
    y = y if layer_scale is None else y * layer_scale
    return x + (y if row_scale is None else y * row_scale.view(-1, *[1] * (x.dim() - 1)))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_definition_and_path(act, post_norm, scaled, keep):
    x = torch.randn(2, 3, 5, 24, dtype=torch.float64, requires_grad=keep)
    weights = parameters(24, 40, torch.float64)
    layer_scale = torch.randn(24, dtype=torch.float64) if scaled else None
    row_scale = torch.tensor([0.0, 2.0], dtype=torch.float64) if scaled else None
    keywords = dict(eps=1e-6, act=act, layer_scale=layer_scale, row_scale=row_scale, post_norm=post_norm)
    wanted = modules(x, weights, 1e-6, act, layer_scale, row_scale, post_norm)
    torch.testing.assert_close(reference.layernorm_mlp(x, *weights, **keywords), wanted)
    torch.testing.assert_close(layernorm_mlp(x, *weights, **keywords), wanted)


def test_definition_gradients():
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    leaves = (
        x,
        *(w.requires_grad_() for w in parameters(6, 8, torch.float64)),
        torch.randn(6, dtype=torch.float64, requires_grad=True),
    )
    for act in ACTIVATIONS:
        for post_norm in (False, True):
            assert torch.autograd.gradcheck(
                lambda *a, act=act, post_norm=post_norm: layernorm_mlp(
                    *a[:7], eps=1e-5, act=act, layer_scale=a[7], post_norm=post_norm
                ),
                leaves,
            )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("post_norm", [False, True])
def test_without_gradients_in_chunks(dtype, post_norm):
    """More rows than one chunk, and not a multiple of it."""
    x, weights = torch.randn(3, 1111, 32).to(dtype), parameters(32, 64, dtype)
    layer_scale = torch.randn(32).to(dtype)
    for act in ACTIVATIONS:
        keywords = dict(eps=1e-6, act=act, layer_scale=layer_scale, post_norm=post_norm)
        out = layernorm_mlp(x, *weights, **keywords)
        assert out.dtype == dtype and out.is_contiguous()
        wide = [w.double() for w in weights]
        wanted = reference.layernorm_mlp(x.double(), *wide, **keywords)
        plain = modules(x, weights, 1e-6, act, layer_scale, None, post_norm).detach()
        assert_close(out, plain, wanted, name=act)


def test_path_leaves_its_input_alone():
    x, weights = torch.randn(2, 5, 32), parameters(32, 64)
    before = [t.clone() for t in (x, *weights)]
    layernorm_mlp(x, *weights, eps=1e-6)
    assert all(map(torch.equal, before, (x, *weights)))


def test_missing_biases_any_strides_empty():
    x, weights = torch.randn(32, 5, 2).permute(2, 1, 0), parameters(32, 64)
    bare = [None, None, weights[2], None, weights[4], None]
    for keep in (False, True):
        y = x.detach().requires_grad_(keep)
        for given in (bare, weights):
            out = layernorm_mlp(y, *given, eps=1e-6)
            torch.testing.assert_close(out, reference.layernorm_mlp(y, *given, eps=1e-6))
            assert out.is_contiguous()
    assert layernorm_mlp(torch.zeros(0, 5, 32), *weights, eps=1e-6).shape == (0, 5, 32)
    assert layernorm_mlp(torch.zeros(2, 0, 32), *weights, eps=1e-6, row_scale=torch.ones(2)).shape == (2, 0, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_the_stream(dtype):
    x, weights = torch.randn(2, 5, 32).to(dtype), parameters(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = layernorm_mlp(x, *weights, eps=1e-6)
        plain = modules(x, weights, 1e-6, "gelu", None, None, False)
    assert out.dtype == plain.dtype == dtype
    torch.testing.assert_close(out, plain, rtol=2e-2, atol=5e-2)


def test_compile_and_export():
    module, norm, x = Mlp(32, 64), LayerNorm(32), torch.randn(2, 5, 32)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp, self.norm = module, norm

        def forward(self, x):
            fc1, fc2 = self.mlp.fc1, self.mlp.fc2
            return layernorm_mlp(
                x, self.norm.weight, self.norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias, eps=1e-6
            )

    block = Block()
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x))
            torch.testing.assert_close(torch.export.export(block, (x,)).module()(x), block(x))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_module(act):
    module = Mlp(16, 32, act=act)
    assert sorted(module.state_dict()) == ["fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight"]
    x = torch.randn(3, 16)
    torch.testing.assert_close(module(x), module.fc2(reference.activation(module.fc1(x), act)))
    assert Mlp(16, 32, bias=False).fc1.bias is None


def test_module_drops_in_training_only():
    module, x = Mlp(16, 32, drop=0.5), torch.randn(64, 16)
    assert (module(x) == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert not (module.eval()(x) == 0).any()
    with pytest.raises(ValueError, match=r"^Mlp: drop is no probability: got 1.5"):
        Mlp(16, 32, drop=1.5)
    with pytest.raises(ValueError, match=r"^Mlp: unknown act: got 'relu'"):
        Mlp(16, 32, act="relu")


def test_fused_linear_and_gelu_is_the_exact_one():
    """The private function behind the fast path is the tanh form on a GPU; on a CPU it must be erf."""
    x = torch.linspace(-4, 4, 201).view(-1, 1)
    fused = torch._addmm_activation(torch.zeros(1), x, torch.ones(1, 1), use_gelu=True)
    torch.testing.assert_close(fused, F.gelu(x), rtol=0, atol=1e-6)


X, WEIGHTS = torch.zeros(2, 3, 8), parameters(8, 16)


def bad(index=None, value=None, **keywords):
    weights = list(WEIGHTS)
    if index is not None:
        weights[index] = value
    return weights, {"eps": 1e-6, **keywords}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (bad(0, torch.ones(7)), ValueError, "norm_weight has the wrong shape"),
        (bad(2, torch.zeros(16, 9)), ValueError, "fc1_weight has the wrong shape"),
        (bad(2, torch.zeros(0, 8)), ValueError, "there are no hidden channels"),
        (bad(3, torch.zeros(8)), ValueError, "fc1_bias has the wrong shape"),
        (bad(4, torch.zeros(16, 8)), ValueError, "fc2_weight has the wrong shape"),
        (bad(4, torch.zeros(8, 16, 1)), ValueError, "fc2_weight has the wrong number of dimensions"),
        (bad(5, torch.zeros(16)), ValueError, "fc2_bias has the wrong shape"),
        (bad(2, None), TypeError, "fc1_weight is no tensor"),
        (bad(2, torch.zeros(16, 8).half()), TypeError, "dtypes differ: got x torch.float32, fc1_weight torch.float16"),
        (bad(2, torch.zeros(16, 8, device="meta")), ValueError, "devices differ"),
        (bad(eps=-1.0), ValueError, "eps is not usable"),
        (bad(act="relu"), ValueError, "unknown act: got 'relu'; expected one of gelu, gelu_tanh, quick_gelu"),
        (bad(layer_scale=torch.ones(3)), ValueError, "layer_scale has the wrong shape"),
        (bad(row_scale=torch.ones(3)), ValueError, "row_scale has the wrong shape"),
        (bad(row_scale=torch.ones(2, requires_grad=True)), ValueError, "row_scale requires a gradient"),
    ],
)
def test_bad_input(changed, error, message):
    weights, keywords = changed
    with pytest.raises(error, match=f"^layernorm_mlp: {message}"):
        layernorm_mlp(X, *weights, **keywords)
