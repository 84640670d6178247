"""HaloNet's attention: against timm's own results, against the definition, and by its properties."""

import copy
import pickle

import pytest
import stored
import torch
from timm.layers.halo_attn import HaloAttn
from torch import nn

from vitkern.nn import halo_attention as module_file
from vitkern.nn.halo_attention import HaloAttention
from vitkern.ops.attention import attention
from vitkern.ops.halo_attention import halo_attention, halo_attention_qkvpacked
from vitkern.reference.halo_attention import halo_attention as reference


def gradients(module, x, cotangent):
    """(result, gradient of the input and of every parameter by name)."""
    x = x.detach().requires_grad_()
    y = module(x)
    names, leaves = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(y, [x, *leaves], cotangent)
    return y, dict(zip(("x", *names), found, strict=True))


@stored.each("halo_attention_*")
def test_module_against_stored_results(path):
    config, tensors = stored.read(path)
    stored.assert_stored(HaloAttention(**{name: value for name, value in config.items() if name != "input"}), tensors)


VARIANTS = {
    "square": dict(),
    "rectangular": dict(size=(4, 12)),
    "one block": dict(size=(4, 4)),
    "biases": dict(qkv_bias=True),
    "scaled positions": dict(scale_pos_embed=True),
    "no halo": dict(halo_size=0),
    "halo as large as the block": dict(halo_size=4),
    "other channels": dict(dim_out=24, num_heads=3),
    "narrow queries": dict(qk_ratio=0.5, qkv_bias=True),
    "wide queries": dict(dim_head=12, scale_pos_embed=True),
    "stride": dict(stride=2, qkv_bias=True),
    "stride and narrow queries": dict(stride=2, qk_ratio=0.5, size=(8, 12), scale_pos_embed=True),
    "means": dict(stride=2, avg_down=True, dim_head=4),
    "means, since the block is odd": dict(stride=2, block_size=5, halo_size=2, size=(10, 20)),
}


def pair_of(name):
    """(timm's module, the same of vitkern, an input), float64."""
    changes = dict(VARIANTS[name])
    size = changes.pop("size", (8, 8))
    options = dict(dim=12, dim_out=16, num_heads=2, block_size=4, halo_size=1) | changes
    theirs, ours = HaloAttn(**options).double(), HaloAttention(**options).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours, torch.randn(2, 12, *size, dtype=torch.float64)


def assert_same(theirs, ours, x, limit=1e-10):
    expected = theirs(x)
    cotangent = torch.randn_like(expected)
    (y, wanted), (out, found) = gradients(theirs, x, cotangent), gradients(ours, x, cotangent)
    torch.testing.assert_close(out, y, rtol=limit, atol=limit)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=limit, atol=limit, msg=name)


@pytest.mark.parametrize("name", VARIANTS)
def test_module_against_timm_with_every_gradient(name):
    assert_same(*pair_of(name))


def test_channels_of_queries_are_rounded_as_by_timm():
    for dim_out in range(4, 132, 6):
        options = dict(dim=1, dim_out=dim_out, num_heads=2, block_size=2, halo_size=1, qk_ratio=0.7)
        assert HaloAttention(**options).dim_head_qk == HaloAttn(**options).dim_head_qk, dim_out


@pytest.mark.parametrize("name", ["narrow queries", "wide queries"])
def test_uneven_heads_filled_up_for_the_kernel(name, monkeypatch):
    monkeypatch.setattr(module_file, "why_not", lambda tensors: [])
    assert_same(*pair_of(name))


@pytest.mark.parametrize("name", ["square", "narrow queries", "stride"])
def test_hooked_projections_are_called(name):
    theirs, ours, x = pair_of(name)
    for module in (theirs, ours):
        module.kv.register_forward_hook(lambda module, args, out: out * 1.5)
    assert_same(theirs, ours, x)


def problem(stride=1, dtype=torch.float64, heads=2, dim=8, values=8, block=4, halo=2, size=(8, 12)):
    """q, k, v, height_rel, width_rel and the options."""
    q = torch.randn(2, size[0] // stride, size[1] // stride, heads, dim, dtype=dtype)
    k, v = (torch.randn(2, *size, heads, d, dtype=dtype) for d in (dim, values))
    vectors = torch.randn(2, 2 * (block + 2 * halo) - 1, dim, dtype=dtype)
    return (q, k, v, *vectors), dict(block=block, halo=halo)


def packed(q, k, v, *vectors, **options):
    """`halo_attention_qkvpacked` as `halo_attention` is called."""
    qkv = torch.stack([q, k, v], 3).flatten(3)
    return halo_attention_qkvpacked(qkv, *vectors, num_heads=q.shape[3], **options).view_as(q)


@pytest.mark.parametrize("changes", [dict(), dict(scale=0.3, rel_scale=0.7)], ids=["plain", "scaled"])
@pytest.mark.parametrize(
    "function, shape",
    [
        (packed, dict()),
        (packed, dict(size=(5, 15), block=5, halo=1)),
        (halo_attention, dict(values=6)),
        (halo_attention, dict(stride=2, dim=4)),
        (halo_attention, dict(stride=4, halo=3)),
    ],
)
def test_against_the_definition_with_every_gradient(function, shape, changes):
    tensors, options = problem(**shape)
    results = []
    for each in (reference, function):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = each(*leaves, **options, **changes)
        results.append((out, *torch.autograd.grad(out.sin().sum(), leaves)))
    for ideal, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, ideal, rtol=1e-9, atol=1e-10)


def test_without_halo_and_positions_it_is_attention_in_blocks():
    (q, k, v, *vectors), options = problem(halo=0)
    out = packed(q, k, v, *(torch.zeros_like(table) for table in vectors), **options)
    for y in range(0, 8, 4):
        for x in range(0, 12, 4):
            block = [t[:, y : y + 4, x : x + 4].flatten(1, 2).transpose(1, 2) for t in (q, k, v)]
            expected = attention(*block).transpose(1, 2).reshape(2, 4, 4, 2, 8)
            torch.testing.assert_close(out[:, y : y + 4, x : x + 4], expected)


def test_what_lies_beyond_the_image_takes_its_part_of_the_softmax():
    (q, k, v, *vectors), options = problem(size=(4, 4), halo=2)
    zeros = [torch.zeros_like(table) for table in vectors]
    out = packed(q, torch.zeros_like(k), torch.ones_like(v), *zeros, **options)
    torch.testing.assert_close(out, torch.full_like(out, 16 / 64))  # of 8 x 8 equal weights, 4 x 4 are inside


@pytest.mark.parametrize("function", [packed, halo_attention])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision(function, dtype):
    tensors, options = problem(dtype=dtype)
    exact = reference(*(t.double() for t in tensors), **options)
    out = function(*tensors, **options)
    assert out.dtype == dtype
    # Relative logits are rounded to the dtype, which changes a weight by their size; then the result is rounded.
    logit = sum(tensors[0].double().norm(dim=-1).max() * table.double().norm(dim=-1).max() for table in tensors[3:])
    limit = torch.finfo(dtype).eps * (2 + logit.item()) * tensors[2].abs().max().item()
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=limit)


def test_autocast():
    _, module, x = pair_of("stride and narrow queries")
    _, plain, _ = pair_of("square")
    for each, image in ((module, x), (plain, x[:, :, :, :8])):
        each.float()
        with torch.autocast("cpu", torch.bfloat16):
            out = each(image.float())
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), each(image.float()), rtol=0, atol=0.1)


def test_inputs_that_are_views_and_no_images():
    _, module, x = pair_of("square")
    expected = module(x)
    torch.testing.assert_close(module(x.to(memory_format=torch.channels_last)), expected)
    wide = torch.randn(2, 12, 9, 20, dtype=x.dtype)
    wide[:, :, 1:, 3:19:2] = x
    torch.testing.assert_close(module(wide[:, :, 1:, 3:19:2]), expected)
    assert module(x[:0]).shape == (0, 16, 8, 8)
    assert pair_of("stride")[1](x[:0]).shape == (0, 16, 4, 4)


@pytest.mark.parametrize("name", ["square", "stride"])
def test_copies_and_pickles(name):
    _, module, x = pair_of(name)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), module(x))


@pytest.mark.parametrize("name, whole", [("square", False), ("narrow queries", True), ("stride", True)])
def test_compiles(name, whole):
    """Where no kernel runs, packed attention builds the tiles of an image outside the graph."""
    _, module, x = pair_of(name)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=whole)
    torch.testing.assert_close(compiled(x), module(x))


BAD_MODULES = {
    "heads": (dict(dim=10, num_heads=3), "channels do not split into heads: got dim_out=10"),
    "halo": (dict(block_size=4, halo_size=5), "the halo does not fit the block: got block_size=4, halo_size=5"),
    "negative halo": (dict(halo_size=-1), "the halo does not fit the block"),
    "no block": (dict(block_size=0, halo_size=0), "the halo does not fit the block"),
    "no queries": (dict(num_heads=16, qk_ratio=0.5), "queries have no channels"),
    "stride": (dict(stride=3), "stride is not usable: got 3"),
}


@pytest.mark.parametrize("name", BAD_MODULES)
def test_bad_modules(name):
    changes, message = BAD_MODULES[name]
    with pytest.raises(ValueError, match=f"HaloAttention: {message}"):
        HaloAttention(**dict(dim=16, num_heads=2) | changes)


BAD = {
    "image": (dict(block=3, halo=1), {}, r"blocks do not divide the image: got image \(8, 12\), block 3; .* Pad"),
    "halo": (dict(halo=5), {}, "the halo "),
    "no block": (dict(block=0, halo=0), {}, "sizes are not usable|the halo does not fit"),
    "block": (dict(block=4.0), {}, "block"),
    "vectors": (dict(halo=1), {}, r"height_rel has the wrong shape: got \(15, 8\)"),
    "scale": (dict(rel_scale=-1.0), {}, "scale is not usable"),
    "dtype": ({}, {3: torch.zeros(15, 8)}, "dtypes differ"),
    "no tensor": ({}, {4: None}, "width_rel is no tensor"),
}


@pytest.mark.parametrize("function", [packed, halo_attention])
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, function):
    changes, replaced, message = BAD[name]
    tensors, options = problem()
    tensors = [replaced.get(place, t) for place, t in enumerate(tensors)]
    op = "halo_attention_qkvpacked" if function is packed else "halo_attention"
    with pytest.raises((ValueError, TypeError), match=f"^{op}: ({message})"):
        function(*tensors, **options | changes)


@pytest.mark.parametrize("place, shape, message", [
    (0, (2, 8, 6, 2, 8), "q has the wrong shape"),
    (0, (2, 3, 4, 2, 8), "q has the wrong shape"),
    (2, (2, 8, 12, 1, 8), "v has the wrong shape"),
    (1, (2, 96, 2, 8), "k has the wrong number of dimensions"),
])  # fmt: skip
def test_shapes_that_do_not_fit(place, shape, message):
    tensors, options = problem()
    tensors = [torch.zeros(shape, dtype=t.dtype) if n == place else t for n, t in enumerate(tensors)]
    with pytest.raises(ValueError, match=f"halo_attention: {message}"):
        halo_attention(*tensors, **options)


def test_an_image_that_blocks_do_not_divide_is_named_with_a_remedy():
    with pytest.raises(ValueError, match=r"got image \(8, 10\), block 8; expected multiples. Pad"):
        HaloAttention(16)(torch.randn(1, 16, 8, 10))


def test_the_initial_values_are_not_zero():
    module = HaloAttention(16)
    assert all(parameter.std() > 0 for parameter in module.parameters())
    assert isinstance(module.pool, nn.Identity)


@pytest.mark.parametrize("part", ["q", "kv"])
def test_a_bias_of_one_projection_alone_counts(part):
    module, x = HaloAttention(16, num_heads=2, block_size=4, halo_size=1), torch.randn(2, 16, 8, 8)
    projection = getattr(module, part)
    projection.bias = nn.Parameter(torch.randn(projection.out_channels))
    called = copy.deepcopy(module)
    called.q.register_forward_hook(lambda *call: None)  # then no weight is read
    torch.testing.assert_close(module(x), called(x))
