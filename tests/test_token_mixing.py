"""Token mixing on the PyTorch path and its definition, against timm's Mixer and float64; the error contract. Its
kernels: `python -m vitkern lab`, from vitkern/lab/specimens/token_mixing.py."""

import pytest
import torch
from timm.models.mlp_mixer import MixerBlock
from torch import nn

import vitkern
from vitkern.nn import TokenMixing
from vitkern.ops.layernorm_mlp import ACTIVATIONS
from vitkern.ops.token_mixing import token_mixing
from vitkern.reference.token_mixing import token_mixing as reference
from vitkern.testing import assert_close

FUNCTIONS = {"mixing": token_mixing, "reference": reference}
MODULES = {"gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "quick_gelu": lambda t: t * torch.sigmoid(1.702 * t)}


def parameters(tokens, channels, hidden, dtype=torch.float64):
    shapes = ((channels,), (channels,), (hidden, tokens), (hidden,), (tokens, hidden), (tokens,))
    return [(torch.randn(shape, dtype=torch.float64) * 0.3).to(dtype) for shape in shapes]


def modules(x, weights, act="gelu"):
    """What a block of the field does, transposes included."""
    y = nn.functional.layer_norm(x, x.shape[-1:], *weights[:2], 1e-6).transpose(1, 2)
    y = nn.functional.linear(MODULES[act](nn.functional.linear(y, *weights[2:4])), *weights[4:])
    return x + y.transpose(1, 2)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_definition(name, act):
    x, weights = torch.randn(3, 7, 12, dtype=torch.float64), parameters(7, 12, 5)
    wanted = modules(x, weights, act)
    torch.testing.assert_close(FUNCTIONS[name](x, *weights, eps=1e-6, act=act), wanted)  # image by image
    torch.testing.assert_close(FUNCTIONS[name](x.requires_grad_(), *weights, eps=1e-6, act=act), wanted)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_definition_gradients(name):
    leaves = [torch.randn(2, 3, 4, dtype=torch.float64), *parameters(3, 4, 5)]
    rows = torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *a: FUNCTIONS[name](*a, eps=1e-5, row_scale=rows),
        [leaf.requires_grad_() for leaf in leaves],
        fast_mode=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_image_by_image(dtype):
    x, weights = torch.randn(2, 9, 16).to(dtype), parameters(9, 16, 6, dtype)
    before = [t.clone() for t in (x, *weights)]
    out = token_mixing(x, *weights, eps=1e-6)
    assert out.dtype == dtype and out.is_contiguous()
    wanted = reference(x.double(), *(w.double() for w in weights), eps=1e-6)
    assert_close(out, modules(x, weights), wanted, name=str(dtype))
    assert all(map(torch.equal, before, (x, *weights)))


def test_any_strides_missing_biases_empty():
    weights, x = parameters(5, 16, 6, torch.float32), torch.randn(16, 5, 2).permute(2, 1, 0)
    for given in (weights, [None, None, weights[2], None, weights[4], None]):
        for y in (x, x.detach().requires_grad_()):
            out = token_mixing(y, *given, eps=1e-6)
            torch.testing.assert_close(out, reference(y, *given, eps=1e-6))
            assert out.is_contiguous()
    assert token_mixing(x[:0], *weights, eps=1e-6).shape == (0, 5, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_the_stream(dtype):
    x, weights = torch.randn(2, 5, 16).to(dtype), parameters(5, 16, 6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = token_mixing(x, *weights, eps=1e-6)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), reference(x.float(), *weights, eps=1e-6), rtol=2e-2, atol=5e-2)


def test_module_is_timm_s_half_of_a_block():
    theirs, x = MixerBlock(12, 7, (0.5, 1.0)).eval(), torch.randn(2, 7, 12)
    ours = TokenMixing(12, 7, 6).eval()
    state = {name: value for name, value in theirs.state_dict().items() if name.startswith(("norm1", "mlp_tokens"))}
    ours.load_state_dict(state, strict=True)
    wanted = x + theirs.mlp_tokens(theirs.norm1(x).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(ours(x), wanted)
    calls = []
    ours.mlp_tokens.fc1.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(ours(x), wanted)
    assert calls == [1]


def test_module_drops_whole_samples():
    module, x = TokenMixing(12, 7, 6, drop_path=0.5), torch.randn(6, 7, 12)
    torch.manual_seed(3)
    factor = module.drop_path.row_scale(x)
    torch.manual_seed(3)
    out = module(x)
    branch = module.eval()(x) - x
    torch.testing.assert_close(out, x + factor.view(-1, 1, 1) * branch)


def test_compile_and_export():
    module, x = TokenMixing(12, 7, 6), torch.randn(2, 7, 12)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


def test_half_of_a_mixer_block_is_fused_where_the_other_is_not():
    for hooked, op in (("mlp_tokens", "layernorm_mlp"), ("mlp_channels", "token_mixing")):
        block, x = MixerBlock(12, 7).eval(), torch.randn(2, 7, 12)
        wanted, calls = block(x), []
        block.get_submodule(hooked).register_forward_hook(lambda *_, calls=calls: calls.append(1))
        report = vitkern.accelerate(block)
        assert [entry.ops for entry in report] == [(op,)]
        torch.testing.assert_close(block(x), wanted)
        assert calls == [1]


X, WEIGHTS = torch.randn(2, 7, 8), parameters(7, 8, 6, torch.float32)


@pytest.mark.parametrize(
    "index, value, message",
    [
        (2, torch.ones(6, 8), r"fc1_weight has the wrong shape: got \(6, 8\); expected \(S, 7\) for x \(2, 7, 8\)"),
        (2, torch.ones(0, 7), "there are no tokens to mix"),
        (4, torch.ones(6, 7), r"fc2_weight has the wrong shape: got \(6, 7\); expected \(7, 6\)"),
        (3, torch.ones(7), r"fc1_bias has the wrong shape: got \(7,\); expected \(6,\)"),
        (0, torch.ones(7), "norm_weight has the wrong shape"),
    ],
)
def test_errors(index, value, message):
    weights = list(WEIGHTS)
    weights[index] = value
    with pytest.raises(ValueError, match=f"^token_mixing: {message}"):
        token_mixing(X, *weights, eps=1e-6)


def test_other_errors():
    with pytest.raises(ValueError, match="unknown act: got 'relu'; expected one of gelu, gelu_tanh, quick_gelu"):
        token_mixing(X, *WEIGHTS, eps=1e-6, act="relu")
    with pytest.raises(ValueError, match="row_scale has the wrong shape"):
        token_mixing(X, *WEIGHTS, eps=1e-6, row_scale=torch.ones(3))
    with pytest.raises(ValueError, match="x has the wrong number of dimensions"):
        token_mixing(X[0], *WEIGHTS, eps=1e-6)
    with pytest.raises(TypeError, match="dtypes differ"):
        token_mixing(X.half(), *WEIGHTS, eps=1e-6)
