"""Attention with convolutional projections: against transformers' CvT, stored results of CvT's own code, BatchNorm in
evaluation and in training, the error contract. Its kernels are those of attention."""

import pytest
import stored
import torch
from transformers.models.cvt.modeling_cvt import CvtSelfAttention

from vitkern.nn import ConvolutionalAttention
from vitkern.nn.convolutional_attention import DepthwiseProjection
from vitkern.testing import assert_close


def build(config):
    names = dict(stride_q="stride_q", stride_kv="stride_kv", padding="padding_q", kernel_size="kernel_size")
    module = ConvolutionalAttention(
        config["dim_in"], config["num_heads"], **{ours: config[theirs] for ours, theirs in names.items()}
    )
    return module, (config["h"], config["w"])


@stored.each("cvt_attention*")
def test_stored_results(path):
    config, tensors = stored.read(path)
    module, size = build(config)
    module.train(path.stem.endswith("train"))
    stored.assert_stored(module, tensors, lambda x: module(x, size))


def randomised(module):
    for tensor in (*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())):
        torch.nn.init.uniform_(tensor, 0.2, 0.9)
    return module


def test_as_transformers():
    """They have no output projection in this module."""
    theirs = CvtSelfAttention(3, 24, 3, 1, 1, 1, 2, "dw_bn", True, 0.0, with_cls_token=True).double()
    ours = randomised(ConvolutionalAttention(24, 3).double())
    names = {
        "convolution_projection_query.convolution_projection": "conv_proj_q",
        "convolution_projection_key.convolution_projection": "conv_proj_k",
        "convolution_projection_value.convolution_projection": "conv_proj_v",
        "projection_query": "proj_q", "projection_key": "proj_k", "projection_value": "proj_v",
        ".convolution.": ".conv.", ".normalization.": ".bn.",
    }  # fmt: skip
    keys = {}
    for key in theirs.state_dict():
        keys[key] = key
        for old, new in names.items():
            keys[key] = keys[key].replace(old, new)
    theirs.load_state_dict({key: ours.state_dict()[name] for key, name in keys.items()}, strict=True)
    ours.proj = torch.nn.Identity()
    x = torch.randn(2, 1 + 35, 24, dtype=torch.float64, requires_grad=True)
    for training in (False, True):
        found = []
        for module in (theirs.train(training), ours.train(training)):
            out = module(x, 5, 7) if module is theirs else module(x, (5, 7))
            found.append([out, *torch.autograd.grad(out.square().sum(), x)])
        torch.testing.assert_close(found[1], found[0])


def test_what_is_attached_to_a_convolution_or_a_norm_is_not_folded_away():
    module = randomised(ConvolutionalAttention(16, 2)).eval()
    x, seen = torch.randn(2, 24, 16), []
    expected = module(x, (4, 6))
    module.conv_proj_k.conv.register_forward_hook(lambda *_: seen.append("conv"))
    module.conv_proj_v.bn.register_forward_hook(lambda *_: seen.append("bn"))
    torch.testing.assert_close(module(x, (4, 6)), expected)
    assert seen == ["conv", "bn"]


@pytest.mark.parametrize("options", [dict(affine=False), dict(track_running_stats=False)], ids=str)
def test_other_norms(options):
    module = randomised(ConvolutionalAttention(16, 2)).eval()
    module.conv_proj_q.bn = randomised(torch.nn.BatchNorm2d(16, **options)).eval()
    x, folded = torch.randn(2, 16, 4, 6), module.conv_proj_q
    torch.testing.assert_close(folded(x), folded.bn(folded.conv(x)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_norm_in_float32_beside_a_convolution_of_half_precision(dtype):
    folded = randomised(DepthwiseProjection(16, 3, 2, 1)).to(dtype).eval()
    folded.bn.float()
    x = torch.randn(2, 16, 4, 6, dtype=dtype)
    assert_close(folded(x), folded.bn(folded.conv(x)), folded.double()(x.double()))


@pytest.mark.parametrize("options", [dict(bias=True), dict(padding_mode="circular"), dict(dilation=2)], ids=str)
def test_other_convolutions(options):
    folded = randomised(DepthwiseProjection(16, 3, 1, 1)).eval()
    folded.conv = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16, **dict(bias=False) | options)
    x = torch.randn(2, 16, 4, 6)
    torch.testing.assert_close(folded(x), folded.bn(folded.conv(x)))


def test_bad_input():
    module = ConvolutionalAttention(16, 2)
    for tokens in (22, 19):
        message = rf"^ConvolutionalAttention: tokens do not fill the image: got x of shape \(1, {tokens}, 16\)"
        with pytest.raises(ValueError, match=message):
            module(torch.randn(1, tokens, 16), (4, 5))
    with pytest.raises(ValueError, match=r"^ConvolutionalAttention: channels do not split into heads"):
        ConvolutionalAttention(10, 4)
