"""The gated MLP branch on the PyTorch path and its definition, against timm's and transformers' modules and float64;
the error contract. Its kernels: `python -m vitkern lab`, from vitkern/lab/specimens/layernorm_glu.py."""

import pytest
import timm.layers
import torch
from timm.layers.mlp import SwiGLU
from timm.models.vision_transformer import Block
from torch import nn

import vitkern
from vitkern.nn import DropPath, GluMlp, LayerNorm, LayerScale, RMSNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.ops.layernorm_glu import ACTIVATIONS, NORMS, layernorm_glu
from vitkern.reference.layernorm_glu import layernorm_glu as reference
from vitkern.testing import assert_close

MODULES = {
    "sigmoid": nn.Sigmoid, "identity": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU,
    "gelu_tanh": lambda: nn.GELU("tanh"),
}  # fmt: skip


def parameters(channels, hidden, dtype=torch.float64, norm="layer", packed=True):
    """The arguments of the operator by name, without x."""
    shapes = dict(fc2_weight=(channels, hidden), fc2_bias=(channels,))
    shapes |= dict(norm_weight=(channels,)) if norm != "none" else {}
    shapes |= dict(norm_bias=(channels,)) if norm == "layer" else {}
    width = 2 * hidden if packed else hidden
    shapes |= dict(fc1_weight=(width, channels), fc1_bias=(width,))
    if not packed:
        shapes |= dict(value_weight=(hidden, channels), value_bias=(hidden,))
    drawn = {name: (torch.randn(shape, dtype=torch.float64) * 0.3).to(dtype) for name, shape in shapes.items()}
    return dict.fromkeys(("norm_weight", "norm_bias")) | drawn | dict(norm=norm, eps=1e-6)


def modules(x, given, act, gate_last):
    """What a block of the field does, one module after the other."""
    y = x
    if given["norm"] == "layer":
        y = nn.functional.layer_norm(x, x.shape[-1:], given["norm_weight"], given["norm_bias"], given["eps"])
    elif given["norm"] == "rms":
        y = nn.functional.rms_norm(x, x.shape[-1:], given["norm_weight"], given["eps"])
    gate = nn.functional.linear(y, given["fc1_weight"], given["fc1_bias"])
    if "value_weight" in given:
        value = nn.functional.linear(y, given["value_weight"], given["value_bias"])
    else:
        gate, value = gate.chunk(2, -1)[:: -1 if gate_last else 1]
    return x + nn.functional.linear(MODULES[act]()(gate) * value, given["fc2_weight"], given["fc2_bias"])


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("how", ["first", "last", "two weights"])
def test_definition_and_path(act, norm, how):
    x = torch.randn(2, 3, 5, 12, dtype=torch.float64)
    given = parameters(12, 20, norm=norm, packed=how != "two weights")
    options = given | dict(act=act, gate_last=how == "last")
    wanted = modules(x, given, act, how == "last")
    torch.testing.assert_close(reference(x, **options), wanted)
    torch.testing.assert_close(layernorm_glu(x, **options), wanted)  # in place
    torch.testing.assert_close(layernorm_glu(x.requires_grad_(), **options), wanted)


@pytest.mark.parametrize("packed", [True, False])
def test_gradients(packed):
    given = parameters(4, 3, packed=packed)
    names = [name for name, value in given.items() if isinstance(value, torch.Tensor)]
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(4, dtype=torch.float64, requires_grad=True)
    leaves = [x, scale, *(given[name].requires_grad_() for name in names)]
    rows = torch.tensor([0.0, 2.0], dtype=torch.float64)
    for function in (layernorm_glu, reference):

        def run(x, scale, *values, function=function):
            return function(
                x, **given | dict(zip(names, values, strict=True)), layer_scale=scale, row_scale=rows, act="gelu"
            )

        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_without_gradients_in_chunks(dtype):
    """More rows than one chunk, and not a multiple of it."""
    x, scale = torch.randn(3, 1111, 16).to(dtype), torch.randn(16).to(dtype)
    given = parameters(16, 24, dtype)
    before = [value.clone() for value in given.values() if isinstance(value, torch.Tensor)]
    out = layernorm_glu(x, **given, gate_last=True, layer_scale=scale)
    assert out.dtype == dtype and out.is_contiguous()
    wide = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    wanted = reference(x.double(), **wide, gate_last=True, layer_scale=scale.double())
    assert_close(out, x + (modules(x, given, "silu", True) - x) * scale, wanted, name=str(dtype))
    assert all(map(torch.equal, before, [value for value in given.values() if isinstance(value, torch.Tensor)]))


def test_any_strides_missing_biases_empty():
    given, x = parameters(16, 24, torch.float32), torch.randn(16, 5, 2).permute(2, 1, 0)
    bare = given | dict.fromkeys(("norm_weight", "norm_bias", "fc1_bias", "fc2_bias"))
    for options in (given, bare):
        for y in (x, x.detach().requires_grad_()):
            out = layernorm_glu(y, **options)
            torch.testing.assert_close(out, reference(y, **options))
            assert out.is_contiguous()
    assert layernorm_glu(x[:0], **given).shape == (0, 5, 16)
    assert layernorm_glu(x[:, :0], **given, row_scale=torch.ones(2)).shape == (2, 0, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_the_stream(dtype):
    x, given = torch.randn(2, 5, 16).to(dtype), parameters(16, 24, torch.float32, packed=False)
    with torch.autocast("cpu", torch.bfloat16):
        out = layernorm_glu(x, **given)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), reference(x.float(), **given), rtol=2e-2, atol=5e-2)


def filled(module):
    for value in module.parameters():
        nn.init.normal_(value, std=0.3)
    return module.eval()


PEERS = {
    "timm GluMlp": (lambda: timm.layers.GluMlp(12, 40), {}),
    "timm GluMlp, tanh GELU": (
        lambda: timm.layers.GluMlp(12, 40, act_layer=MODULES["gelu_tanh"]),
        dict(act="gelu_tanh"),
    ),
    "timm SwiGLUPacked": (lambda: timm.layers.SwiGLUPacked(12, 40), dict(act="silu", gate_last=False)),
    "timm SwiGLU": (lambda: SwiGLU(12, 20), dict(act="silu", packed=False)),
}


@pytest.mark.parametrize("name", PEERS)
def test_module_and_its_branch(name, monkeypatch):
    """timm's weights by their names; with the norm and the residual one call of the operator."""
    make, options = PEERS[name]
    theirs, ours, x = filled(make()), GluMlp(12, 20, **options), torch.randn(2, 5, 12)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(ours(x), theirs(x))
    calls, scale = [], LayerScale(12, 0.5)
    monkeypatch.setattr(
        "vitkern.nn.layernorm_glu.layernorm_glu", lambda *a, **k: calls.append(1) or layernorm_glu(*a, **k)
    )
    for norm in (filled(LayerNorm(12)), filled(RMSNorm(12, 1e-6))):
        out = mlp_residual(x, norm, ours, DropPath(), scale)
        torch.testing.assert_close(out, x + scale(theirs(norm(x))))
    assert len(calls) == 2
    ours.fc2.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(mlp_residual(x, norm, ours, DropPath(), scale), out)
    assert len(calls) == 3  # the hook, and no operator


def test_module_of_another_kind():
    module = GluMlp(12, 20, drop=0.5)
    assert (module(torch.ones(64, 12)) == 0).float().mean() == pytest.approx(0.5, abs=0.15)
    assert GluMlp(12, 20, bias=False).fc1.bias is None
    with pytest.raises(ValueError, match=r"^GluMlp: unknown act: got 'quick_gelu'; expected one of sigmoid, identity"):
        GluMlp(12, 20, "quick_gelu")
    with pytest.raises(ValueError, match=r"^GluMlp: drop is no probability: got 1.0"):
        GluMlp(12, 20, drop=1.0)


def test_compile_and_export():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mlp, self.drop_path = LayerNorm(12), GluMlp(12, 20), DropPath()

        def forward(self, x):
            return mlp_residual(x, self.norm, self.mlp, self.drop_path)

    branch, x = Branch(), torch.randn(2, 5, 12)
    torch.testing.assert_close(torch.compile(branch, fullgraph=True, backend="aot_eager")(x), branch(x))
    torch.testing.assert_close(torch.export.export(branch, (x,)).module()(x), branch(x))


X = torch.randn(2, 3, 8)
GIVEN, PAIR = parameters(8, 6, torch.float32), parameters(8, 6, torch.float32, packed=False)


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            dict(fc1_weight=torch.ones(6, 8)),
            r"fc1_weight has the wrong shape: got \(6, 8\); expected \(12, 8\) with fc2",
        ),
        (dict(fc2_weight=torch.ones(6, 8)), r"fc2_weight has the wrong shape: got \(6, 8\); expected \(8, F\)"),
        (dict(fc1_weight=torch.ones(0, 8), fc2_weight=torch.ones(8, 0)), "there are no hidden channels"),
        (dict(fc1_bias=torch.ones(6)), r"fc1_bias has the wrong shape: got \(6,\); expected \(12,\)"),
        (dict(act="quick_gelu"), "unknown act: got 'quick_gelu'; expected one of sigmoid, identity, relu"),
        (dict(norm="batch"), "unknown norm: got 'batch'; expected one of layer, rms, none"),
        (dict(norm="rms"), "norm_bias is not used: got a tensor; expected None where norm is 'rms'"),
        (dict(norm="none"), "norm_weight is not used"),
        (dict(value_bias=torch.ones(6)), r"value_bias has no weight: got value_weight None; expected \(6, 8\)"),
        (dict(layer_scale=torch.ones(7)), "layer_scale has the wrong shape"),
        (dict(row_scale=torch.ones(3)), "row_scale has the wrong shape"),
        (
            PAIR | dict(value_weight=torch.ones(5, 8)),
            r"value_weight has the wrong shape: got \(5, 8\); expected \(6, 8\)",
        ),
        (PAIR | dict(gate_last=True), "gate_last says nothing of two weights"),
        (PAIR | dict(value_bias=None), "one of two biases is missing: got value_bias None"),
        (PAIR | dict(fc1_bias=None), "one of two biases is missing: got fc1_bias None"),
        (dict(eps=-1.0), "eps is not usable"),
    ],
)
def test_errors(changed, message):
    with pytest.raises(ValueError, match=f"^layernorm_glu: {message}"):
        layernorm_glu(X, **GIVEN | changed)


def test_type_errors():
    with pytest.raises(TypeError, match="gate_last is no flag: got str 'last'"):
        layernorm_glu(X, **GIVEN, gate_last="last")
    with pytest.raises(TypeError, match="dtypes differ"):
        layernorm_glu(X, **GIVEN | dict(fc1_weight=torch.ones(12, 8).half()))


@pytest.mark.parametrize("layer", [timm.layers.GluMlp, timm.layers.SwiGLUPacked, SwiGLU], ids=str)
def test_timm_blocks_are_fused(layer):
    block, x = filled(Block(12, 2, mlp_layer=layer, init_values=0.5)), torch.randn(2, 5, 12)
    wanted = block(x)
    report = vitkern.accelerate(block)
    assert ("layernorm_glu",) in {entry.ops for entry in report}
    torch.testing.assert_close(block(x), wanted)
    report.restore()


def test_a_norm_of_the_hidden_layer_is_left_alone():
    block, x = filled(Block(12, 2)), torch.randn(2, 5, 12)
    block.mlp = filled(SwiGLU(12, 20, norm_layer=nn.LayerNorm))
    wanted = block(x)
    report = vitkern.accelerate(block)
    assert "it holds a LayerNorm" in str(report)
    torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize("gated", [True, False])
def test_dinov2_of_transformers_is_fused(gated):
    transformers = pytest.importorskip("transformers")
    from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer

    sizes = dict(hidden_size=12, num_attention_heads=2, use_swiglu_ffn=gated, drop_path_rate=0.5)
    config = transformers.Dinov2Config(**sizes, attn_implementation="eager")
    layer, x = filled(Dinov2Layer(config)), torch.randn(4, 5, 12)
    model = nn.Sequential(layer)
    wanted = layer(x), train(layer, x)
    report = vitkern.accelerate(model)
    assert ("layernorm_glu" if gated else "layernorm_mlp",) in {entry.ops for entry in report}
    torch.testing.assert_close((layer.eval()(x), train(layer, x)), wanted)
    layer.mlp.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(layer.eval()(x), wanted[0])


def train(layer, x):
    """With the stochastic depth of one seed."""
    torch.manual_seed(1)
    return layer.train()(x)
