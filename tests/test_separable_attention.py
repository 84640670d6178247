"""Separable attention on the PyTorch path and its definition, against timm's, cvnets' and a formula written pixel by
pixel; the error contract. Its kernels: `python -m vitkern lab`, from vitkern/lab/specimens/separable_attention.py."""

import math

import pytest
import stored
import torch
from timm.models.mobilevit import LinearSelfAttention

import vitkern
from vitkern import dispatch
from vitkern.lab.specimens import separable_attention as specimen
from vitkern.nn import SeparableSelfAttention
from vitkern.ops.separable_attention import separable_attention
from vitkern.reference.separable_attention import folded, unfolded
from vitkern.reference.separable_attention import separable_attention as reference
from vitkern.testing import assert_close

FUNCTIONS = {"reference": reference, "op": separable_attention}
FORMATS = (torch.contiguous_format, torch.channels_last)


def image(batch, channels, height, width, dtype=torch.float64, **options):
    return torch.randn(batch, channels, height, width, dtype=dtype, **options)


def pixel_by_pixel(qkv, value, patch_h, patch_w):
    """Of one image, in plain numbers."""
    channels = value.shape[1]
    q, k, v = (part[0].tolist() for part in (qkv[:, :1], qkv[:, 1 : 1 + channels], value))
    out = torch.empty(value.shape, dtype=torch.float64)
    for y in range(value.shape[2]):
        for x in range(value.shape[3]):
            rows, columns = range(y % patch_h, qkv.shape[2], patch_h), range(x % patch_w, qkv.shape[3], patch_w)
            places = [(row, column) for row in rows for column in columns]
            weights = [math.exp(q[0][row][column]) for row, column in places]
            for c in range(channels):
                keys = [k[c][row][column] for row, column in places]
                context = math.fsum(w * key for w, key in zip(weights, keys, strict=True)) / math.fsum(weights)
                out[0, c, y, x] = max(v[c][y][x], 0.0) * context
    return out


@pytest.mark.parametrize("patch", [(2, 2), (3, 1), (1, 5), (6, 10)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_definition(name, patch):
    qkv = image(1, 5, 6, 10)
    expected = pixel_by_pixel(qkv, qkv[:, 3:], *patch)
    torch.testing.assert_close(FUNCTIONS[name](qkv, patch_size=patch), expected)
    qk, value = image(1, 4, 2 * patch[0], patch[1]), image(1, 3, 6, 10)
    torch.testing.assert_close(FUNCTIONS[name](qk, value, patch_size=patch), pixel_by_pixel(qk, value, *patch))


@pytest.mark.parametrize("shapes", [((1, 5, 4, 6),), ((2, 5, 2, 3),), ((1, 3, 4, 2), (1, 2, 2, 6))], ids=str)
def test_definition_gradients(shapes):
    images = [image(*shape, requires_grad=True) for shape in shapes]
    patch = (2, 1)
    for function in FUNCTIONS.values():
        assert torch.autograd.gradcheck(lambda *x, f=function: f(*x, patch_size=patch), images)


@pytest.mark.parametrize("memory", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_against_reference(dtype, memory):
    sizes = (1, 2, 2, (2, 2)), (33, 8, 6, (2, 2)), (16, 4, 50, (4, 1)), (3, 0, 4, (2, 2))
    for channels, height, width, patch in sizes:
        qkv = image(2, 1 + 2 * channels, height, width, dtype).contiguous(memory_format=memory).requires_grad_()
        out = separable_attention(qkv, patch_size=patch)
        assert out.dtype == dtype and (out.is_contiguous(memory_format=memory) or height == 0)
        rounding = None if dtype == torch.float32 else dtype
        ideal = reference(qkv, patch_size=patch, low_precision=rounding)
        # PyTorch rounds products and the context too.
        assert_close(out, ideal, reference(qkv.double(), patch_size=patch), margin=1.0 if rounding is None else 4.0)
        (gradient,) = torch.autograd.grad(out.sum(), qkv)
        assert gradient.shape == qkv.shape and gradient.dtype == dtype


def test_an_image_and_its_unfolded_patches_give_the_same():
    qkv = image(2, 9, 6, 8)
    patches = separable_attention(unfolded(qkv, (2, 2)), patch_size=(4, 1))
    torch.testing.assert_close(separable_attention(qkv), folded(patches, (2, 2), 6, 8))


def test_values_of_the_same_image_may_be_given_apart():
    qkv = image(2, 9, 6, 8)
    torch.testing.assert_close(separable_attention(qkv[:, :5], qkv[:, 5:]), separable_attention(qkv))


def test_one_patch_weighs_nothing():
    qkv = image(2, 5, 3, 3)
    torch.testing.assert_close(separable_attention(qkv, patch_size=(3, 3)), qkv[:, 3:].relu() * qkv[:, 1:3])


def test_any_strides():
    qkv = image(2, 9, 6, 8)
    for other in (qkv.mT.contiguous().mT, image(2, 9, 12, 16)[:, :, ::2, ::2], qkv[:1].expand(2, -1, -1, -1)):
        other = other if other.stride(0) == 0 else other.copy_(qkv)
        torch.testing.assert_close(separable_attention(other), separable_attention(other.contiguous()))


def test_no_keys_give_nothing():
    assert (separable_attention(image(2, 4, 0, 2), image(2, 3, 4, 2)) == 0).all()


def test_autocast():
    qkv = image(2, 9, 4, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert separable_attention(qkv).dtype == torch.bfloat16
        assert separable_attention(qkv[:, :5], qkv[:, 5:].bfloat16()).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_compile_and_export_on_images():
    module, x = SeparableSelfAttention(3, patch_size=2), image(2, 3, 4, 6, torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for found in (compiled(x), torch.export.export(module, (x,)).module()(x), torch.jit.trace(module, x)(x)):
        torch.testing.assert_close(found, module(x))


def test_dropout_follows_the_seed_and_keeps_the_mean():
    keys = torch.ones(1, 9, 60, 60, dtype=torch.float64)

    def run():
        torch.manual_seed(3)
        return separable_attention(keys, patch_size=(1, 1), dropout_p=0.25)

    out = run()
    assert torch.equal(out, run())
    assert 0 < abs(out.mean().item() - 1) < 0.05
    with dispatch.use_backend("triton"), pytest.raises(NotImplementedError, match="does not drop weights"):
        separable_attention(keys.float(), dropout_p=0.1)


@stored.each("mobilevitv3_v2_linear_*")
def test_module_against_stored_results(path):
    config, tensors = stored.read(path)
    inputs = ("x", "x_prev") if "input_prev" in config else ("x",)
    stored.assert_stored(SeparableSelfAttention(config["embed_dim"]), tensors, inputs=inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_module_as_timm(bias):
    theirs = LinearSelfAttention(16, bias=bias).double()
    ours = SeparableSelfAttention(16, bias=bias).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = image(2, 16, 4, 15, requires_grad=True)
    found = [(y, *torch.autograd.grad(y.sin().sum(), (x, *m.parameters()))) for m in (ours, theirs) for y in (m(x),)]
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)
    on_images = SeparableSelfAttention(16, bias=bias, patch_size=2).double()
    on_images.load_state_dict(theirs.state_dict(), strict=True)
    pixels = image(2, 16, 6, 10)
    torch.testing.assert_close(on_images(pixels), folded(theirs(unfolded(pixels, (2, 2))), (2, 2), 6, 10))
    torch.testing.assert_close(on_images(pixels, pixels), on_images(pixels))


def test_module_drops_in_training_alone():
    module, x = SeparableSelfAttention(8, attn_drop=0.5), image(1, 8, 4, 16, torch.float32)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x)) and repr(module).startswith(
        "SeparableSelfAttention(\n  8, patch_size=None"
    )
    with pytest.raises(ValueError, match="pixels of a patch differ: got x"):
        module(x, x[:, :, :2])
    assert vitkern.separable_attention is separable_attention


@pytest.mark.parametrize("options", [dict(), dict(unfolded=True), dict(cross=True)], ids=str)
def test_what_the_benchmarks_compare_with_computes_the_same(options):
    layer = specimen.Separable("", 6, 8, **options)
    tensors = {name: x.float() for name, x in layer.problem(2).inputs(torch.Generator().manual_seed(0)).items()}
    eager = layer.eager(layer.problem(2).options)
    torch.testing.assert_close(eager(**tensors), reference(**tensors, **layer.problem(2).options))


X = torch.zeros(2, 7, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0],), {}, TypeError, "qkv is no tensor: got list"),
        ((X.int(),), {}, TypeError, "qkv has an unsupported dtype: got torch.int32"),
        ((X[0],), {}, ValueError, "qkv has the wrong number of dimensions"),
        ((X[:, :6],), {}, ValueError, r"qkv has the wrong shape: got \(2, 6, 4, 6\); expected \(B, 1 \+ 2 C"),
        ((X[:, :1],), {}, ValueError, "qkv has the wrong shape"),
        ((X, X), {}, ValueError, r"value has the wrong shape: got \(2, 7, 4, 6\); expected \(B, C, H, W\) for qkv"),
        ((X, X[:1, :6]), {}, ValueError, "value has the wrong shape"),
        ((X[:, :1], X[:, :0]), {}, ValueError, "no channels"),
        ((X, X[:, :6].half()), {}, TypeError, "dtypes differ: got qkv torch.float32, value torch.float16"),
        ((X, X[:, :6].to("meta")), {}, ValueError, "devices differ"),
        ((X, "v"), {}, TypeError, "value is no tensor"),
        ((X.to_sparse(),), {}, TypeError, "qkv is not a dense tensor"),
        ((X,), dict(patch_size=2), TypeError, "patch_size is no pair of integers: got 2"),
        ((X,), dict(patch_size=(0, 2)), ValueError, r"patch_size is empty: got \(0, 2\)"),
        ((X,), dict(patch_size=(3, 2)), ValueError, "patches do not divide the image: got qkv"),
        ((X, X[:, :6, :, :5]), {}, ValueError, "patches do not divide the image: got value"),
        ((X,), dict(dropout_p=1.0), ValueError, "dropout_p is no probability"),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=f"^separable_attention: {message}"):
        separable_attention(*arguments, **options)
