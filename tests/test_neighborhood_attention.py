"""Neighbourhood attention: against NATTEN's own results, against the definition, and by its properties."""

import pytest
import stored
import torch

from vitkern.nn.neighborhood_attention import NeighborhoodAttention
from vitkern.ops.attention import attention
from vitkern.ops.neighborhood_attention import neighborhood_attention
from vitkern.reference.neighborhood_attention import neighborhood_attention as reference

IMPLEMENTATIONS = {"reference": reference, "op": neighborhood_attention}


@stored.each("nat_op_*")
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_against_the_official_kernels(path, name):
    config, tensors = stored.read(path)
    leaves = {key: tensors[f"input.{key}"].clone().requires_grad_() for key in ("q", "k", "v", "rpb")}
    q = leaves["q"]
    qkv = torch.stack([leaves[key] for key in "qkv"], 0).permute(1, 3, 4, 0, 2, 5)  # (B, img_h, img_w, 3, H, D)
    out = IMPLEMENTATIONS[name](
        qkv.flatten(3), num_heads=q.shape[1], kernel=(config["kernel_size"],) * 2,
        dilation=(config["dilation"],) * 2, table=leaves["rpb"], scale=1.0,
    )  # fmt: skip
    y = out.unflatten(3, (q.shape[1], -1)).permute(0, 3, 1, 2, 4)
    stored.assert_close(y, tensors["output.y"], "y")
    gradients = torch.autograd.grad(y, list(leaves.values()), tensors["cotangent.y"])
    largest = max(gradient.abs().max().item() for gradient in gradients)
    for key, gradient in zip(leaves, gradients, strict=True):
        stored.assert_close(gradient, tensors[f"grad.input.{key}"], key, largest)


@stored.each("nat_attn_*")
def test_module_against_the_official_module(path):
    config, tensors = stored.read(path)
    module = NeighborhoodAttention(
        config["dim"], config["num_heads"], kernel_size=config["kernel_size"], dilation=config["dilation"],
        qkv_bias=config.get("qkv_bias", True), bias=config.get("bias", True), qk_scale=config.get("qk_scale"),
    )  # fmt: skip
    stored.assert_stored(module, tensors)


CASES = {
    "square": ((14, 14), (7, 7), (1, 1)),
    "odd image": ((13, 19), (3, 5), (1, 1)),
    "dilated": ((17, 15), (3, 3), (4, 5)),
    "dilated in one direction": ((9, 33), (3, 13), (2, 2)),
    "kernel as large as the image": ((5, 7), (5, 7), (1, 1)),
    "one dimension": ((1, 40), (1, 9), (1, 3)),
    "padded": ((5, 11), (7, 3), (1, 5)),
    "kernel of one": ((4, 6), (1, 1), (1, 1)),
}


def problem(name, dtype=torch.float64, heads=2, dim=8, batch=2):
    size, kernel, dilation = CASES[name]
    qkv = torch.randn(batch, *size, 3 * heads * dim, dtype=dtype)
    table = torch.randn(heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1, dtype=dtype)
    padding = torch.randn(3 * heads * dim, dtype=dtype) if name == "padded" else None
    return (qkv, table, padding), dict(num_heads=heads, kernel=kernel, dilation=dilation)


@pytest.mark.parametrize("name", CASES)
def test_against_the_definition_with_every_gradient(name):
    tensors, options = problem(name)
    results = []
    for function in (reference, neighborhood_attention):
        leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
        out = function(leaves[0], table=leaves[1], padding=leaves[2], **options)
        present = [leaf for leaf in leaves if leaf is not None]
        results.append((out, *torch.autograd.grad(out.sin().sum(), present)))
    for ideal, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, ideal, rtol=1e-9, atol=1e-10)


def test_a_kernel_as_large_as_the_image_is_full_attention():
    (qkv, _, _), options = problem("kernel as large as the image")
    q, k, v = qkv.reshape(2, 35, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
    full = attention(q, k, v).transpose(1, 2).reshape(2, 5, 7, 16)
    torch.testing.assert_close(neighborhood_attention(qkv, **options), full)


def test_a_kernel_of_one_returns_the_values():
    (qkv, _, _), options = problem("kernel of one")
    torch.testing.assert_close(neighborhood_attention(qkv, **options), qkv[..., 32:])


def test_dilated_attention_is_attention_of_each_class():
    (qkv, table, _), options = problem("dilated")
    out = neighborhood_attention(qkv, table=table, **options)
    inner = options | dict(dilation=(1, 1))
    for y in range(4):
        for x in range(5):
            torch.testing.assert_close(
                out[:, y::4, x::5], neighborhood_attention(qkv[:, y::4, x::5], table=table, **inner)
            )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    (qkv, table, _), options = problem("odd image", torch.float32)
    exact = reference(qkv.to(dtype).double(), table=table.double(), **options)
    out = neighborhood_attention(qkv.to(dtype), table=table, **options)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps * exact.abs().max().item())


def test_inputs_that_are_views_and_no_images():
    (qkv, table, _), options = problem("square")
    wide = torch.randn(2, 14, 14, 100, dtype=qkv.dtype)
    wide[..., 3:51] = qkv
    expected = neighborhood_attention(qkv, table=table, **options)
    torch.testing.assert_close(neighborhood_attention(wide[..., 3:51], table=table, **options), expected)
    assert neighborhood_attention(qkv[:0], **options).shape == (0, 14, 14, 16)


BAD = {
    "even kernel": (dict(kernel=(4, 3)), r"kernel has no centre: got \(4, 3\)"),
    "no dilation": (dict(dilation=(0, 1)), "dilation or kernel is not usable"),
    "one number": (dict(kernel=7), "kernel is no pair of integers"),
    "heads": (dict(num_heads=5), "qkv does not split"),
    "table": (dict(table=torch.zeros(2, 13, 12)), "table has the wrong shape"),
    "scale": (dict(scale=-1.0), "scale is not usable"),
    "small image": (dict(dilation=(3, 1)), r"the image is smaller than kernel \* dilation"),
    "padding": (dict(padding=torch.zeros(7)), "padding has the wrong shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changes, message = BAD[name]
    options = dict(num_heads=2, kernel=(7, 7)) | changes
    with pytest.raises((ValueError, TypeError), match=f"neighborhood_attention: {message}"):
        neighborhood_attention(torch.randn(1, 14, 14, 48), **options)
