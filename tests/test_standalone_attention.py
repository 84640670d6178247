"""Stand-alone self-attention: against the definition, by hand, and by its properties. No reference code runs, so the
definition is written from the paper."""

import copy
import math
import pickle

import pytest
import torch

from vitkern.nn.standalone_attention import StandaloneAttention
from vitkern.ops.attention import attention
from vitkern.ops.standalone_attention import standalone_attention
from vitkern.reference.standalone_attention import standalone_attention as reference

CASES = {
    "square": ((9, 9), (7, 7)),
    "odd image": ((5, 11), (3, 5)),
    "kernel larger than the image": ((2, 3), (7, 5)),
    "kernel of one": ((4, 5), (1, 1)),
    "one dimension": ((1, 12), (1, 5)),
    "one pixel": ((1, 1), (3, 3)),
}


def problem(name, dtype=torch.float64, heads=2, dim=6):
    """(qkv, rel_h, rel_w) and the options."""
    size, kernel = CASES[name]
    qkv = torch.randn(2, *size, 3 * heads * dim, dtype=dtype)
    tables = [torch.randn(heads, side, dim // 2, dtype=dtype) for side in kernel]
    return (qkv, *tables), dict(num_heads=heads, kernel=kernel)


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("name", CASES)
def test_against_the_definition_with_every_gradient(name, scale):
    tensors, options = problem(name)
    results = []
    for function in (reference, standalone_attention):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = function(*leaves, scale=scale, **options)
        results.append((out, *torch.autograd.grad(out.sin().sum(), leaves)))
    for ideal, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, ideal, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("function", [reference, standalone_attention])
def test_two_pixels_by_hand(function):
    """1 x 2 pixels, one head of two channels, kernel (1, 3): the first pixel sees a zero, itself and the second."""
    qkv = torch.tensor([[[[1.0, 2.0, 0.5, -1.0, 3.0, 5.0], [2.0, -1.0, 1.0, 0.0, -1.0, 4.0]]]])
    rel_h, rel_w = torch.tensor([[[0.25]]]), torch.tensor([[[1.0], [-2.0], [0.5]]])
    out = function(qkv, rel_h, rel_w, num_heads=1, kernel=(1, 3))
    # q . (k + r): the row half meets the first channel of q, the column half the second.
    first = [math.exp(s) for s in (0.25 + 2.0, -1.5 + 0.25 - 4.0, 1.0 + 0.25 + 1.0)]
    second = [math.exp(s) for s in (2.0 + 0.5 - 1.0, 2.0 + 0.5 + 2.0, 0.5 - 0.5)]
    expected = [
        [(first[1] * 3 + first[2] * -1) / sum(first), (first[1] * 5 + first[2] * 4) / sum(first)],
        [(second[0] * 3 + second[1] * -1) / sum(second), (second[0] * 5 + second[1] * 4) / sum(second)],
    ]
    torch.testing.assert_close(out, torch.tensor([[expected]]))


def test_without_positions_the_zeros_beyond_the_image_dilute_full_attention():
    (qkv, rel_h, rel_w), options = problem("kernel larger than the image")
    out = standalone_attention(qkv, torch.zeros_like(rel_h), torch.zeros_like(rel_w), **options)
    q, k, v = qkv.reshape(2, 6, 3, 2, 6).permute(2, 0, 3, 1, 4).unbind(0)
    nothing = k.new_zeros(2, 2, 35 - 6, 6)  # the kernel of 7 x 5 holds the whole image of 2 x 3
    full = attention(q, torch.cat([k, nothing], 2), torch.cat([v, nothing], 2), scale=1.0)
    torch.testing.assert_close(out, full.transpose(1, 2).reshape(2, 2, 3, 12))


def test_a_kernel_of_one_returns_the_values():
    (qkv, rel_h, rel_w), options = problem("kernel of one")
    torch.testing.assert_close(standalone_attention(qkv, rel_h, rel_w, **options), qkv[..., 24:])


def test_it_moves_with_the_image():
    (qkv, rel_h, rel_w), options = problem("odd image")
    shifted = torch.cat([torch.zeros_like(qkv[:, :2]), qkv], 1)  # zeros are what lies beyond the image anyway
    out = standalone_attention(qkv, rel_h, rel_w, **options)
    torch.testing.assert_close(standalone_attention(shifted, rel_h, rel_w, **options)[:, 2:], out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision(dtype):
    tensors, options = problem("odd image", dtype)
    exact = reference(*(t.double() for t in tensors), **options)
    out = standalone_attention(*tensors, **options)
    assert out.dtype == dtype
    # Relative logits are rounded to the dtype, which changes a weight by their size; then the result is rounded.
    q, v = (t.double().unflatten(-1, (2, 6)) for t in tensors[0].chunk(3, -1)[::2])
    logit = sum(q.norm(dim=-1).max() * table.double().norm(dim=-1).max() for table in tensors[1:])
    limit = torch.finfo(dtype).eps * (2 + logit.item()) * v.abs().max().item()
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=limit)


def test_inputs_that_are_views_and_no_images():
    (qkv, rel_h, rel_w), options = problem("odd image")
    wide = torch.randn(2, 5, 11, 50, dtype=qkv.dtype)
    wide[..., 7:43] = qkv
    expected = standalone_attention(qkv, rel_h, rel_w, **options)
    torch.testing.assert_close(standalone_attention(wide[..., 7:43], rel_h, rel_w, **options), expected)
    assert standalone_attention(qkv[:0], rel_h, rel_w, **options).shape == (0, 5, 11, 12)


def module_and_image():
    return StandaloneAttention(10, 16, num_heads=4, kernel_size=(3, 5), qkv_bias=True), torch.randn(2, 6, 7, 10)


def test_module():
    module, x = module_and_image()
    expected = reference(module.qkv(x), module.rel_h, module.rel_w, num_heads=4, kernel=(3, 5))
    out = module(x)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), out)


def test_heads_share_nothing():
    module, x = module_and_image()
    before = module(x)
    with torch.no_grad():
        module.rel_w[2] += 1.0
    changed = (module(x) - before).abs().amax((0, 1, 2)) > 0
    assert changed.tolist() == [False] * 8 + [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(dim=12, num_heads=4), "channels do not split into heads with a row and a column half: got dim_out=12"),
        (dict(kernel_size=4), r"the kernel has no centre: got kernel_size=\(4, 4\)"),
    ],
)
def test_bad_modules(changes, message):
    with pytest.raises(ValueError, match=f"StandaloneAttention: {message}"):
        StandaloneAttention(**dict(dim=32) | changes)


BAD = {
    "even kernel": (dict(kernel=(4, 3)), r"kernel has no centre: got \(4, 3\)"),
    "one number": (dict(kernel=7), "kernel is no pair of integers"),
    "heads": (dict(num_heads=5), "qkv does not split"),
    "odd head": (dict(num_heads=4), "a head does not split into a row and a column half: got D = 3"),
    "table": (dict(kernel=(3, 7)), r"rel_w has the wrong shape: got \(2, 5, 3\)"),
    "scale": (dict(scale=-1.0), "scale is not usable"),
    "dtype": (dict(rel_h=torch.zeros(2, 3, 3)), "dtypes differ"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changes, message = BAD[name]
    (qkv, rel_h, rel_w), options = problem("odd image")
    with pytest.raises((ValueError, TypeError), match=f"standalone_attention: {message}"):
        standalone_attention(qkv, **dict(rel_h=rel_h, rel_w=rel_w) | options | changes)
