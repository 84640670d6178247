"""Derivatives other than one reverse pass, on the PyTorch path: second derivatives, forward mode, batches of gradients;
operators by finite differences, accelerated models against their originals."""

import copy

import pytest
import torch
from integration import CASES
from swapping import assert_near, randomise
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel

import vitkern
from vitkern.ops.neighborhood_attention import neighborhood_attention

LENGTH = 3  # of the cases: finite differences take two calls for each direction


@pytest.fixture(autouse=True)
def _plain_sdpa():
    """PyTorch's fused attention has neither a second derivative nor a forward mode, and says so."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def double(name):
    return CASES[name].tensors(LENGTH, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_are_those_of_finite_differences(name):
    assert gradgradcheck(CASES[name].function, double(name), fast_mode=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", CASES)
def test_forward_mode_and_batches_of_gradients(name):
    options = dict(check_forward_ad=True, check_batched_grad=True)
    assert gradcheck(CASES[name].function, double(name), fast_mode=True, **options)


@pytest.mark.parametrize(
    "options", [dict(), dict(logit_scale=True), dict(padded=True)], ids=["plain", "cosine", "padded"]
)
def test_windows_of_one_tensor(options):
    """Input-gradient penalties and Hessian-vector products of a Swin come down to this."""
    side = 3 if options.get("padded") else 4
    z = torch.randn(1, side, side, 24, dtype=torch.float64, requires_grad=True)
    more = dict(padding=torch.randn(24, dtype=torch.float64)) if options.get("padded") else {}
    more |= dict(logit_scale=torch.randn(2, dtype=torch.float64)) if options.get("logit_scale") else {}

    def function(z):
        return vitkern.window_attention(z, num_heads=2, window=(2, 2), shift=(1, 1), **more)

    assert gradgradcheck(function, z)
    rows = torch.autograd.functional.jacobian(function, z)
    torch.testing.assert_close(torch.autograd.functional.jacobian(function, z, vectorize=True), rows)
    tangent = torch.randn_like(z)
    along = torch.func.jvp(function, (z.detach(),), (tangent,))[1]
    torch.testing.assert_close(along, (rows.flatten(4) @ tangent.flatten()).view_as(along))


def test_third_derivative():
    z = torch.randn(1, 2, 2, 6, dtype=torch.float64, requires_grad=True)

    def slope(z):
        out = vitkern.window_attention(z, num_heads=1, window=(2, 2))
        return torch.autograd.grad(out.sin().sum(), z, create_graph=True)[0]

    assert gradgradcheck(slope, z)


def test_one_tensor_for_two_arguments():
    """Its second derivative is the sum over both uses, each counted once."""
    q = torch.randn(1, 1, 4, 3, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda q: vitkern.attention(q, q, q * 2), q)


def test_neighborhoods_in_forward_mode():
    qkv = torch.randn(1, 4, 5, 12, dtype=torch.float64)
    tangent = torch.randn_like(qkv)

    def function(x):
        return neighborhood_attention(x, num_heads=2, kernel=(3, 3))

    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(qkv, tangent))
        along = forward_ad.unpack_dual(dual).tangent
    rows = torch.autograd.functional.jacobian(function, qkv)
    torch.testing.assert_close(along, (rows.flatten(4) @ tangent.flatten()).view_as(along))


def timm_swin():
    timm = pytest.importorskip("timm", reason="the model is timm's")
    sizes = dict(img_size=32, patch_size=2, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=5)
    return timm.models.SwinTransformer(**sizes), torch.randn(1, 3, 32, 32)


def torchvision_swin():
    torchvision = pytest.importorskip("torchvision", reason="the model is torchvision's")
    sizes = dict(patch_size=[2, 2], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[3, 3], num_classes=5)
    return torchvision.models.SwinTransformer(**sizes), torch.randn(1, 3, 20, 20)


def transformers_swinv2():
    transformers = pytest.importorskip("transformers", reason="the model is transformers'")
    sizes = dict(image_size=32, patch_size=2, window_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 4])
    config = transformers.Swinv2Config(**sizes, num_labels=5)
    return transformers.Swinv2ForImageClassification(config), torch.randn(1, 3, 32, 32)


def curvature(model, images):
    """The gradient penalty of the images, and its gradient in every parameter: a Hessian-vector product."""
    images = images.clone().requires_grad_()
    out = model(images)
    out = getattr(out, "logits", out)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    (slope,) = torch.autograd.grad((out * weights).sum(), images, create_graph=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    second = torch.autograd.grad(slope.square().sum(), parameters, allow_unused=True)
    return slope.detach(), second


@pytest.mark.parametrize("build", [timm_swin, torchvision_swin, transformers_swinv2], ids=lambda f: f.__name__)
def test_hessian_vector_products_of_models(build):
    model, images = build()
    model, images = randomise(model).double().eval(), images.double()
    swapped = copy.deepcopy(model)
    assert vitkern.accelerate(swapped).swapped
    slope, second = curvature(model, images)
    found_slope, found = curvature(swapped, images)
    assert_near(found_slope, slope, 1e-9, "gradient of the images")
    for (name, _), one, other in zip(model.named_parameters(), found, second, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            assert_near(one, other, 1e-7, name)
