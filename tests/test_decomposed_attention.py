"""Decomposed relative positions: against timm's SAM and transformers' VitDet and SAM, and against the definition."""

import copy
import pickle

import pytest
import torch
import transformers as hf
from timm.models.vision_transformer_sam import Attention, window_partition, window_unpartition
from torch import nn
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionSdpaAttention
from transformers.models.vitdet.modeling_vitdet import VitDetAttention

from vitkern.nn.decomposed_attention import DecomposedAttention
from vitkern.ops.attention import attention
from vitkern.ops.decomposed_attention import decomposed_attention
from vitkern.reference.decomposed_attention import decomposed_attention as reference

hf.logging.set_verbosity_error()
DIM, HEADS = 12, 3


class InWindows(nn.Module):
    """Another library's attention on windows of an image, as its blocks call it."""

    def __init__(self, attn, window):
        super().__init__()
        self.attn, self.window = attn, window

    def forward(self, x):
        size = x.shape[1:3]
        if self.window is not None:
            x, padded = window_partition(x, self.window)
        x = self.attn(x)
        x = x[0] if isinstance(x, tuple) else x
        return x if self.window is None else window_unpartition(x, self.window, tuple(size), padded)


def of_timm(size, qkv_bias=True):
    return Attention(DIM, HEADS, qkv_bias=qkv_bias, use_rel_pos=True, input_size=size)


def of_vitdet(size, qkv_bias=True):
    config = hf.VitDetConfig(
        hidden_size=DIM, num_attention_heads=HEADS, qkv_bias=qkv_bias, use_relative_position_embeddings=True
    )
    return VitDetAttention(config, size)


def of_sam(kind):
    def build(size, qkv_bias=True):
        config = hf.SamVisionConfig(
            hidden_size=DIM, num_attention_heads=HEADS, qkv_bias=qkv_bias, image_size=size[0], patch_size=1
        )
        return kind(config, 0)

    return build


PEERS = {
    "timm": of_timm,
    "VitDet": of_vitdet,
    "SAM": of_sam(SamVisionAttention),
    "SAM, fused": of_sam(SamVisionSdpaAttention),
}
CASES = {  # tokens of the image, window
    "windows": ((8, 8), 4),
    "windows that reach beyond the image": ((10, 7), 4),
    "a window larger than the image": ((3, 5), 6),
    "the whole image": ((6, 6), None),
}


def pair_of(peer, case, qkv_bias=True):
    """(the library's module, the same of vitkern, an input), float64, all values random."""
    size, window = CASES[case]
    full = size if window is None else (window, window)
    attn = PEERS[peer](full, qkv_bias=qkv_bias).double()
    with torch.no_grad():
        for parameter in attn.parameters():  # they begin at zero, which hides mistakes
            parameter.normal_(std=0.5)
    ours = DecomposedAttention(DIM, HEADS, input_size=full, window_size=window, qkv_bias=qkv_bias).double()
    ours.load_state_dict(attn.state_dict(), strict=True)
    return InWindows(attn, window), ours, torch.randn(2, *size, DIM, dtype=torch.float64)


def assert_same(theirs, ours, x, limit=1e-10):
    results = []
    for module in (theirs, ours):
        image = x.clone().requires_grad_()
        y = module(image)
        leaves = {name.removeprefix("attn."): parameter for name, parameter in module.named_parameters()}
        found = torch.autograd.grad(y.sin().sum(), [image, *leaves.values()])
        results.append({"y": y, "x": found[0], **dict(zip(leaves, found[1:], strict=True))})
    expected, actual = results
    assert actual.keys() == expected.keys()
    largest = max(tensor.abs().max().item() for tensor in expected.values())
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=limit, atol=limit * largest, msg=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("peer", PEERS)
def test_module_against_the_libraries_with_every_gradient(peer, case):
    limit = 1e-10 if peer != "SAM" else 2e-6  # its softmax is in float32 whatever the dtype
    assert_same(*pair_of(peer, case), limit)


@pytest.mark.parametrize("case", ["windows that reach beyond the image", "the whole image"])
def test_without_a_bias_of_the_projection(case):
    assert_same(*pair_of("timm", case, qkv_bias=False))


@pytest.mark.parametrize("size", [(9, 9), (4, 11)])
@pytest.mark.parametrize("peer", ["timm", "VitDet", "SAM, fused"])
def test_an_image_of_another_size_interpolates_the_vectors(peer, size):
    theirs, ours, _ = pair_of(peer, "the whole image")
    assert_same(theirs, ours, torch.randn(2, *size, DIM, dtype=torch.float64))


def test_hooked_projections_are_called():
    theirs, ours, x = pair_of("timm", "windows that reach beyond the image")
    for module in (theirs.attn, ours):
        module.qkv.register_forward_hook(lambda module, args, out: out * 1.5)
    assert_same(theirs, ours, x)


OPERATIONS = {  # tokens of the image, window
    "windows": ((8, 12), (4, 3)),
    "padded": ((7, 10), (5, 4)),
    "larger than the image": ((3, 2), (4, 5)),
    "rows of one": ((5, 6), (1, 6)),
    "windows of one": ((3, 4), (1, 1)),
    "the image": ((5, 9), None),
}


def problem(name, dtype=torch.float64, dim=8):
    """(qkv, rel_pos_h, rel_pos_w, padding) and the options."""
    size, window = OPERATIONS[name]
    qkv, padding = torch.randn(2, *size, 6 * dim, dtype=dtype), torch.randn(6 * dim, dtype=dtype)
    tables = [torch.randn(2 * side - 1, dim, dtype=dtype) for side in window or size]
    return (qkv, *tables, padding), dict(num_heads=2, window=window)


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("name", OPERATIONS)
def test_against_the_definition_with_every_gradient(name, scale):
    tensors, options = problem(name)
    results = []
    for function in (reference, decomposed_attention):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = function(*leaves[:3], padding=leaves[3], scale=scale, **options)
        found = torch.autograd.grad(out.sin().sum(), leaves, allow_unused=True)
        results.append([out, *(torch.zeros(48).double() if grad is None else grad for grad in found)])
    for ideal, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, ideal, rtol=1e-9, atol=1e-10)


def test_without_positions_the_image_is_one_attention():
    (qkv, rel_pos_h, rel_pos_w, _), options = problem("the image")
    out = decomposed_attention(qkv, torch.zeros_like(rel_pos_h), torch.zeros_like(rel_pos_w), **options)
    q, k, v = qkv.reshape(2, 45, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
    torch.testing.assert_close(out, attention(q, k, v).transpose(1, 2).reshape(2, 5, 9, 16))


def test_a_window_of_one_returns_the_values():
    (qkv, rel_pos_h, rel_pos_w, _), options = problem("windows of one")
    torch.testing.assert_close(decomposed_attention(qkv, rel_pos_h, rel_pos_w, **options), qkv[..., 32:])


def test_offsets_run_from_the_key_to_the_query():
    """Of a column of three tokens each sees only the one above it, where the vector of offset +1 outweighs the rest."""
    qkv = torch.zeros(1, 3, 1, 6)
    qkv[..., 0] = 1.0
    qkv[0, :, 0, 4] = torch.tensor([10.0, 20.0, 30.0])
    rel_pos_h = torch.tensor([0.0, 0.0, 0.0, 100.0, 0.0])[:, None].repeat(1, 2)
    out = decomposed_attention(qkv, rel_pos_h, torch.zeros(1, 2), num_heads=1)
    torch.testing.assert_close(out[0, 1:, 0, 0], torch.tensor([10.0, 20.0]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision(dtype):
    tensors, options = problem("padded", dtype)
    exact = reference(*(t.double() for t in tensors[:3]), padding=tensors[3].double(), **options)
    out = decomposed_attention(*tensors[:3], padding=tensors[3], **options)
    assert out.dtype == dtype
    # Relative logits are rounded to the dtype, which changes a weight by their size; then the result is rounded.
    q, v = (t.double().unflatten(-1, (2, 8)) for t in tensors[0].chunk(3, -1)[::2])
    logit = sum(q.norm(dim=-1).max() * table.double().norm(dim=-1).max() for table in tensors[1:3])
    limit = torch.finfo(dtype).eps * (2 + logit.item()) * max(v.abs().max().item(), tensors[3].abs().max().item())
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=limit)


def test_autocast():
    _, module, x = pair_of("timm", "windows that reach beyond the image")
    module.float()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x.float())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(x.float()), rtol=0, atol=0.1)


def test_inputs_that_are_views_and_no_images():
    (qkv, *tables, padding), options = problem("padded")
    wide = torch.randn(2, 7, 10, 60, dtype=qkv.dtype)
    wide[..., 5:53] = qkv
    expected = decomposed_attention(qkv, *tables, padding=padding, **options)
    torch.testing.assert_close(decomposed_attention(wide[..., 5:53], *tables, padding=padding, **options), expected)
    assert decomposed_attention(qkv[:0], *tables, **options).shape == (0, 7, 10, 16)
    assert decomposed_attention(qkv[:, :0], *tables, **options | dict(window=None)).shape == (2, 0, 10, 16)


@pytest.mark.parametrize("case", ["windows", "the whole image"])
def test_copies_and_pickles_and_compiles(case):
    _, module, x = pair_of("timm", case)
    expected = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(module, backend="aot_eager")(x), expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(dim=10), "channels do not split into heads: got dim=10, num_heads=8"),
        (dict(input_size=None), "the relative positions have no size"),
        (dict(window_size=0), r"the size is not usable: got \(0, 0\)"),
    ],
)
def test_bad_modules(changes, message):
    with pytest.raises(ValueError, match=f"DecomposedAttention: {message}"):
        DecomposedAttention(**dict(dim=16, input_size=8) | changes)


BAD = {
    "window": (dict(window=(0, 3)), r"window is not usable: got \(0, 3\)"),
    "one number": (dict(window=4), "window is no pair of integers"),
    "heads": (dict(num_heads=5), "qkv does not split"),
    "vectors of another head": (dict(rel_pos_w=torch.zeros(5, 4).double()), "rel_pos_w has the wrong shape"),
    "no vectors": (dict(rel_pos_h=torch.zeros(0, 8).double()), "rel_pos_h is empty"),
    "no tensor": (dict(rel_pos_h=None), "rel_pos_h is no tensor"),
    "dtype": (dict(rel_pos_h=torch.zeros(7, 8)), "dtypes differ"),
    "scale": (dict(scale=0.0), "scale is not usable"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changes, message = BAD[name]
    (qkv, rel_pos_h, rel_pos_w, _), options = problem("windows")
    with pytest.raises((ValueError, TypeError), match=f"decomposed_attention: {message}"):
        decomposed_attention(qkv, **dict(rel_pos_h=rel_pos_h, rel_pos_w=rel_pos_w) | options | changes)
