"""Attention between channels on the PyTorch path, and its definition: against timm's DaViT and XCiT, stored results of
the official code, sums written out by hand; the error contract. Its kernels: `python -m vitkern lab`, from
vitkern/lab/specimens/channel_attention.py, and stored results in `tests/interpreter/test_stored.py`."""

import math

import pytest
import stored
import torch
from timm.models import davit, xcit

import vitkern
from vitkern.lab.specimens import channel_attention as specimen
from vitkern.lab.specimens._channel_attention import UnitChannels
from vitkern.nn import ChannelAttention, CrossCovarianceAttention
from vitkern.ops.channel_attention import MAX_HEAD_DIM, channel_attention, cross_covariance_attention
from vitkern.reference import channel_attention as reference
from vitkern.testing import assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def by_hand(left, right, carried, factor):
    """(N, D) each -> (N, D), sum by sum."""
    tokens, dim = left.shape
    out = torch.zeros(tokens, dim, dtype=torch.float64)
    for i in range(dim):
        logits = [factor * sum(left[n, i].item() * right[n, j].item() for n in range(tokens)) for j in range(dim)]
        weights = [math.exp(logit) for logit in logits]
        for n in range(tokens):
            out[n, i] = sum(w * carried[n, j].item() for j, w in enumerate(weights)) / sum(weights)
    return out


def test_definition():
    qkv = torch.randn(2, 4, 3, 2, 3, dtype=torch.float64)
    temperature = torch.tensor([0.7, 1.9], dtype=torch.float64)
    for source in (reference, vitkern):
        found = {value: source.channel_attention(qkv, value=value, scale=0.3) for value in "qv"}
        unit = source.cross_covariance_attention(qkv, temperature)
        for image, head in ((0, 1), (1, 0)):
            q, k, v = qkv[image, :, :, head].unbind(1)
            torch.testing.assert_close(found["q"][image, :, head], by_hand(k, v, q, 0.3))
            torch.testing.assert_close(found["v"][image, :, head], by_hand(q, k, v, 0.3))
            q, k = (x / x.square().sum(0).sqrt() for x in (q, k))
            torch.testing.assert_close(unit[image, :, head], by_hand(q, k, v, temperature[head].item()))


def test_definition_gradients():
    qkv = torch.randn(1, 4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    temperature = torch.tensor([0.7, 1.9], dtype=torch.float64, requires_grad=True)
    for source in (reference, vitkern):
        assert torch.autograd.gradcheck(lambda x, f=source.channel_attention: f(x), (qkv,))
        assert torch.autograd.gradcheck(source.cross_covariance_attention, (qkv, temperature))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_reference(dtype):
    rounding = None if dtype == torch.float32 else dtype
    for batch, tokens, heads, dim in ((2, 49, 3, 32), (1, 7, 1, 1), (2, 65, 2, MAX_HEAD_DIM + 8)):
        qkv, temperature = torch.randn(batch, tokens, 3, heads, dim).to(dtype), 1 + torch.rand(heads)
        for name, arguments in (("channel_attention", (qkv,)), ("cross_covariance_attention", (qkv, temperature))):
            out, formula = getattr(vitkern, name)(*arguments), getattr(reference, name)
            assert out.dtype == dtype and out.is_contiguous()
            ideal = formula(*(x.float() for x in arguments), low_precision=rounding)
            # PyTorch rounds the D x D product too, where one kernel does not.
            assert_close(out, ideal, formula(*(x.double() for x in arguments)), margin=1 if rounding is None else 12)


def test_sums_beyond_the_range_of_float16():
    qkv = torch.full((1, 400, 3, 1, 8), 16.0, dtype=torch.float16)
    temperature = torch.ones(1)
    assert torch.equal(channel_attention(qkv), qkv[:, :, 0])
    assert torch.equal(cross_covariance_attention(qkv, temperature), qkv[:, :, 2])


@pytest.mark.parametrize("shape", [(0, 5, 3, 2, 4), (2, 0, 3, 2, 4), (2, 5, 3, 0, 4)], ids=str)
def test_nothing_to_compute(shape):
    qkv = torch.randn(shape, requires_grad=True)
    temperature = torch.ones(shape[3], requires_grad=True)
    for out in (channel_attention(qkv), cross_covariance_attention(qkv, temperature)):
        assert out.shape == (*shape[:2], *shape[3:])
        out.sum().backward()
    assert torch.equal(temperature.grad, torch.zeros(shape[3]))


def test_a_channel_of_zeros():
    """It has no direction: its cosines are 0, as F.normalize has it, and nothing is NaN."""
    qkv = torch.randn(1, 9, 3, 1, 4)
    qkv[:, :, 0, :, 2] = 0.0
    out = cross_covariance_attention(qkv.requires_grad_(), torch.ones(1))
    torch.testing.assert_close(out[0, :, 0, 2], qkv[0, :, 2, 0].mean(-1))
    (gradient,) = torch.autograd.grad(out.sum(), qkv)
    assert torch.isfinite(gradient).all()


def test_any_strides():
    qkv = torch.randn(2, 3, 8, 5, 6).permute(0, 3, 1, 4, 2)[..., ::2]  # (2, 5, 3, 6, 4)
    for run in (channel_attention, lambda x: cross_covariance_attention(x, torch.ones(6))):
        torch.testing.assert_close(run(qkv), run(qkv.contiguous()))


def test_autocast_dtypes():
    qkv, temperature = torch.randn(2, 9, 3, 2, 8), torch.ones(2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert channel_attention(qkv).dtype == torch.bfloat16
        out = cross_covariance_attention(qkv, temperature)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.sum(), temperature)[0].dtype == torch.float32


MODULES = {
    "DaViT": (lambda: davit.ChannelAttention(24, 3, qkv_bias=True), ChannelAttention, dict(qkv_bias=True)),
    "DaViT, no bias": (lambda: davit.ChannelAttention(24, 3), ChannelAttention, {}),
    "later variants": (
        lambda: davit.ChannelAttentionV2(24, 3),
        ChannelAttention,
        dict(qkv_bias=True, value="v", dynamic_scale=True),
    ),
    "later variants, scale of the head": (
        lambda: davit.ChannelAttentionV2(24, 3, dynamic_scale=False),
        ChannelAttention,
        dict(qkv_bias=True, value="v"),
    ),
    "XCiT": (lambda: xcit.XCA(24, 3, qkv_bias=True), CrossCovarianceAttention, dict(qkv_bias=True)),
}


@pytest.mark.parametrize("name", MODULES)
def test_as_timm(name):
    build, kind, options = MODULES[name]
    theirs, ours = build().double(), kind(24, 3, **options).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for tokens in (1, 35):
        x = torch.randn(2, tokens, 24, dtype=torch.float64, requires_grad=True)
        grad, found = torch.randn_like(x), []
        for module in (theirs, ours):
            out = module(x)
            found.append([out, *torch.autograd.grad(out, [x, *module.parameters()], grad)])
        torch.testing.assert_close(found[1], found[0])


@stored.each("davit_channel_attention*")
def test_stored_results(path):
    config, tensors = stored.read(path)
    later = dict(value="v", dynamic_scale=True) if config.pop("dynamic_scale", False) else {}
    del config["input"]
    stored.assert_stored(ChannelAttention(config.pop("dim"), **config, **later), tensors)


@stored.each("davit_channel_block")
def test_stored_block(path):
    config, tensors = stored.read(path)
    del config["input"]
    block = davit.ChannelBlock(**config)
    block.attn = ChannelAttention(config["dim"], config["num_heads"], qkv_bias=config["qkv_bias"])
    stored.assert_stored(block, tensors)


def test_autocast_keeps_sums_beyond_the_range_of_float16():
    qkv = 10 * torch.randn(1, 2000, 3, 2, 16)
    qkv[:, :, 1] = qkv[:, :, 0]
    for operator in (lambda x: channel_attention(x, value="v", scale=1e-4), lambda x: cross_covariance_attention(x, T)):
        with torch.autocast("cpu", torch.float16):
            found = operator(qkv)
        torch.testing.assert_close(found, operator(qkv.half()), rtol=0, atol=0)


@pytest.mark.parametrize(
    "length", [torch.export.Dim.AUTO, torch.export.Dim("n", min=2, max=999)], ids=["auto", "named"]
)
def test_an_exported_module_takes_other_lengths(length):
    """The scale by the number of tokens stays a symbol."""
    x, longer = torch.randn(2, 35, 16), torch.randn(2, 50, 16)
    module, sizes = ChannelAttention(16, 2, value="v", dynamic_scale=True), ({1: length},)
    exported = torch.export.export(module, (x,), dynamic_shapes=sizes).module()
    torch.testing.assert_close(exported(longer), module(longer))


@pytest.mark.parametrize("layer", [specimen.LAYERS[0], UnitChannels("", 1, 1, 1)], ids=lambda layer: layer.op)
def test_what_the_benchmarks_compare_with_computes_the_same(layer):
    small = type(layer)("", 33, 2, 16)
    problem = small.problem(2)
    tensors = {name: x.float() for name, x in problem.inputs(torch.Generator().manual_seed(0)).items()}
    eager = small.eager(problem.options)
    torch.testing.assert_close(eager(**tensors), problem.reference(**tensors, **problem.options))


X, T = torch.zeros(2, 5, 3, 2, 4), torch.ones(2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0],), {}, TypeError, "qkv is no tensor: got list"),
        ((X.int(),), {}, TypeError, "qkv has an unsupported dtype: got torch.int32"),
        ((X.to_sparse(),), {}, TypeError, "qkv is not a dense tensor"),
        ((X[0],), {}, ValueError, "qkv has the wrong number of dimensions"),
        ((X[:, :, :2],), {}, ValueError, r"qkv has the wrong shape: got \(2, 5, 2, 2, 4\); expected \(B, N, 3, H, D\)"),
        ((X[..., :0],), {}, ValueError, "head dim is 0"),
        ((X,), dict(value="k"), ValueError, "value is unknown: got 'k'; expected one of 'q', 'v'"),
        ((X,), dict(scale=0.0), ValueError, "scale is not usable: got 0.0"),
        ((X,), dict(scale="1"), TypeError, "scale is no number"),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=f"^channel_attention: {message}"):
        channel_attention(*arguments, **options)


@pytest.mark.parametrize(
    ("qkv", "temperature", "error", "message"),
    [
        (X[0], T, ValueError, "qkv has the wrong number of dimensions"),
        (X, 1.0, TypeError, "temperature is no tensor: got float"),
        (X, T.int(), TypeError, "temperature has an unsupported dtype"),
        (X, torch.ones(3), ValueError, r"temperature has the wrong shape: got \(3,\); expected \(H,\) or \(H, 1, 1\)"),
        (X, torch.ones(1, 2, 1), ValueError, "temperature has the wrong shape"),
        (X, T.to("meta"), ValueError, "devices differ: got qkv on cpu, temperature on meta"),
    ],
)
def test_bad_input_of_unit_channels(qkv, temperature, error, message):
    with pytest.raises(error, match=f"^cross_covariance_attention: {message}"):
        cross_covariance_attention(qkv, temperature)


@pytest.mark.parametrize("kind", [ChannelAttention, CrossCovarianceAttention])
def test_heads_that_do_not_divide(kind):
    with pytest.raises(
        ValueError, match=f"^{kind.__name__}: channels do not split into heads: got dim=10, num_heads=4"
    ):
        kind(10, 4)
