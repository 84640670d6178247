"""Attention to spatially reduced keys: against timm's PVTv2 and Twins, stored results of PVT's and Twins' own code, the
error contract. Its kernels are those of attention."""

import pytest
import stored
import torch
from timm.models import pvt_v2, twins

from vitkern.nn import SpatialReductionAttention

MODULES = {
    "PVTv2": (lambda: pvt_v2.Attention(24, 3, sr_ratio=2), dict(sr_ratio=2)),
    "PVTv2, not reduced": (lambda: pvt_v2.Attention(24, 3), {}),
    "PVTv2-Li": (lambda: pvt_v2.Attention(24, 3, linear_attn=True, qkv_bias=False), dict(linear=True, qkv_bias=False)),
    "Twins": (lambda: twins.GlobalSubSampleAttn(24, 3, sr_ratio=3), dict(sr_ratio=3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_as_timm(name):
    build, options = MODULES[name]
    theirs, ours = build().double(), SpatialReductionAttention(24, 3, **options).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for size in ((6, 9), (11, 7)):  # the second is of no whole number of keys
        x = torch.randn(2, size[0] * size[1], 24, dtype=torch.float64, requires_grad=True)
        grad, found = torch.randn_like(x), []
        for module in (theirs, ours):
            out = module(x, list(size))
            found.append([out, *torch.autograd.grad(out, [x, *module.parameters()], grad)])
        torch.testing.assert_close(found[1], found[0])


def assert_stored(path):
    config, tensors = stored.read(path)
    size = config["H"], config["W"]
    module = SpatialReductionAttention(config["dim"], config["num_heads"], config["sr_ratio"])
    stored.assert_stored(module, tensors, lambda x: module(x, size))


@stored.each("pvt_attention*")
def test_stored_results_of_pvt(path):
    assert_stored(path)


@stored.each("twins_gsa")
def test_stored_results_of_twins(path):
    assert_stored(path)


def test_a_reduction_by_one_needs_no_image():
    module = SpatialReductionAttention(16, 2)
    x = torch.randn(1, 21, 16)  # 20 patches and a class token, as in PVT's last stage
    assert module(x, (4, 5)).shape == x.shape


def test_dropout_of_weights_and_of_the_result():
    module = SpatialReductionAttention(16, 2, 2, attn_drop=0.5, proj_drop=0.5)
    x = torch.randn(2, 24, 16)
    assert not torch.equal(module(x, (4, 6)), module(x, (4, 6)))
    assert (module(x, (4, 6)) == 0).float().mean() > 0.3
    assert torch.equal(module.eval()(x, (4, 6)), module(x, (4, 6)))


def test_bad_input():
    module = SpatialReductionAttention(16, 2, 4)
    for x, size, message in (
        (torch.randn(1, 21, 16), (4, 5), r"tokens do not fill the image: got x of shape \(1, 21, 16\), size=\(4, 5\)"),
        (torch.randn(21, 16), (3, 7), "tokens do not fill the image"),
        (torch.randn(1, 21, 16), (3, 7), r"image is smaller than one key: got size=\(3, 7\), sr_ratio=4"),
    ):
        with pytest.raises(ValueError, match=f"^SpatialReductionAttention: {message}"):
            module(x, size)
    with pytest.raises(ValueError, match=r"sr_ratio is no reduction: got 0"):
        SpatialReductionAttention(16, 2, 0)
    with pytest.raises(ValueError, match=r"^SpatialReductionAttention: channels do not split into heads"):
        SpatialReductionAttention(10, 4)
