"""Multi-scale deformable attention on the PyTorch path and its definition, against grid_sample, a formula written point
by point, the original's stored results and transformers' module; the error contract. Its kernels: `python -m vitkern
lab`, from vitkern/lab/specimens/deformable_attention.py."""

import math

import pytest
import stored
import torch
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrMultiscaleDeformableAttention,
    DeformableDetrPreTrainedModel,
)

import vitkern
import vitkern.ops.deformable_attention
from vitkern import dispatch
from vitkern.lab.specimens import deformable_attention as specimen
from vitkern.lab.specimens._deformable_attention import problem
from vitkern.nn import DeformableAttention
from vitkern.ops.deformable_attention import deformable_attention, sampling
from vitkern.reference.deformable_attention import deformable_attention as reference
from vitkern.testing import assert_close

FUNCTIONS = {"reference": reference, "op": deformable_attention}
NAMES = "value", "sampling_locations", "attention_weights"
SHAPES = (3, 4), (2, 2)
core = specimen.Deformable("").eager  # grid_sample, as the original does it in PyTorch


def operands(batch=2, queries=5, heads=2, dim=3, shapes=SHAPES, points=2, dtype=torch.float64, **options):
    one = problem("", batch, queries, heads, dim, shapes, points, **options)
    tensors = one.inputs(torch.Generator().manual_seed(1))
    return [tensors[name].to(dtype).requires_grad_() for name in NAMES]


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch):
    """Bags take small problems too, of wide heads."""
    monkeypatch.setattr(sampling, "MANY", 0)
    monkeypatch.setattr(sampling, "MANY_GRADED", 0)


def wide(**options):
    """Heads so wide that bags take them."""
    found = operands(**dict(dim=32, queries=20) | options)
    assert sampling._takes_bags(found[0], found[2], 0)
    return found


def point_by_point(value, shapes, locations, weights):
    """In plain numbers."""
    batch, queries, heads = weights.shape[:3]
    out = torch.zeros(batch, queries, heads, value.shape[3], dtype=torch.float64)
    for place in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist():
        image, query, head, level, _ = place
        height, width = shapes[level]
        first = sum(h * w for h, w in shapes[:level])
        u, v = locations[tuple(place)].tolist()
        x, y = u * width - 0.5, v * height - 0.5
        for j in (math.floor(y), math.floor(y) + 1):
            for i in (math.floor(x), math.floor(x) + 1):
                if 0 <= i < width and 0 <= j < height:
                    share = (1 - abs(x - i)) * (1 - abs(y - j)) * weights[tuple(place)]
                    out[image, query, head] += share * value[image, first + j * width + i, head]
    return out.flatten(2)


@pytest.mark.parametrize("shapes", [SHAPES, ((5, 1),), ((1, 1), (2, 3), (1, 4))], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_definition(name, shapes):
    value, locations, weights = (x.detach() for x in operands(shapes=shapes, around=0.5))
    torch.testing.assert_close(
        FUNCTIONS[name](value, shapes, locations, weights), point_by_point(value, shapes, locations, weights)
    )


@pytest.mark.parametrize("make", [operands, wide], ids=["narrow", "wide"])
def test_against_grid_sample(make):
    tensors = make()
    expected = core(dict(spatial_shapes=SHAPES))(*tensors)
    grad = torch.randn_like(expected)
    slopes = torch.autograd.grad(expected, tensors, grad)
    for function in FUNCTIONS.values():
        out = function(tensors[0], SHAPES, *tensors[1:])
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(torch.autograd.grad(out, tensors, grad), slopes)


@pytest.mark.parametrize("make", [operands, wide], ids=["narrow", "wide"])
def test_each_gradient_alone_and_second_derivatives(make):
    """Of those that need one; a graph of the gradients is that of the formula."""

    def derivatives(function, tensors, needed):
        leaves = [x.detach().requires_grad_(i in needed) for i, x in enumerate(tensors)]
        wanted = [leaves[i] for i in needed]
        out = function(leaves[0], SHAPES, *leaves[1:])
        first = torch.autograd.grad(out.sin().sum(), wanted, retain_graph=True)
        graph = torch.autograd.grad(out.sin().sum(), wanted, create_graph=True)
        return *first, *graph, *torch.autograd.grad(sum(x.cos().sum() for x in graph), wanted)

    tensors = make()
    for needed in ((0,), (1,), (2,), (0, 2), (0, 1, 2)):
        found = derivatives(deformable_attention, tensors, needed)
        for actual, expected in zip(found, derivatives(reference, tensors, needed), strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mixed", [False, True], ids=["one dtype", "locations wide"])
def test_against_reference(dtype, mixed):
    for make in (operands, wide):
        tensors = [x.detach().to(torch.float32 if i and mixed else dtype) for i, x in enumerate(make(dtype=dtype))]
        leaves = [x.requires_grad_() for x in tensors]
        out = deformable_attention(leaves[0], SHAPES, *leaves[1:])
        assert out.dtype == dtype and out.is_contiguous()
        ideal = reference(leaves[0], SHAPES, *leaves[1:], low_precision=dtype)
        assert_close(out, ideal, reference(leaves[0].double(), SHAPES, *leaves[1:]))
        gradients = torch.autograd.grad(out.sum(), leaves)
        assert [(g.shape, g.dtype) for g in gradients] == [(x.shape, x.dtype) for x in leaves]
        with torch.no_grad():
            assert torch.equal(deformable_attention(leaves[0], SHAPES, *leaves[1:]), out)


def test_one_point_at_the_centre_of_a_pixel_looks_it_up():
    height, width = 5, 7
    value = torch.randn(2, height * width, 3, 4, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([(x.double() + 0.5) / width, (y.double() + 0.5) / height], -1).view(1, -1, 1, 1, 1, 2)
    locations = at.expand(2, -1, 3, 1, 1, 2)
    weights = torch.ones(2, height * width, 3, 1, 1, dtype=torch.float64)
    out = deformable_attention(value, [(height, width)], locations, weights)
    torch.testing.assert_close(out, value.flatten(2))


@pytest.mark.parametrize("place", [-1.0, 2.0, 1e30, math.inf, -math.inf])
@pytest.mark.parametrize("make", [operands, wide], ids=["narrow", "wide"])
def test_points_outside_count_for_nothing(make, place):
    value, locations, weights = make()
    locations = torch.full_like(locations, place).requires_grad_()
    for function in FUNCTIONS.values():
        out = function(value, SHAPES, locations, weights)
        assert (out == 0).all()
        assert all((x == 0).all() for x in torch.autograd.grad(out.sum(), (value, locations, weights)))


@pytest.mark.parametrize("make", [operands, wide], ids=["narrow", "wide"])
def test_points_that_are_no_number(make):
    value, locations, weights = make()
    with torch.no_grad():
        locations[0, 2, 1, 0, 1, 0] = math.nan
    for function in FUNCTIONS.values():
        rows = function(value, SHAPES, locations, weights).unflatten(2, value.shape[2:])
        assert rows[0, 2, 1].isnan().all()
        assert rows.isnan().sum() == value.shape[3]
        dvalue, dweights = torch.autograd.grad(rows.sum(), (value, weights))
        assert dvalue.isfinite().all() and dweights.isnan().nonzero().tolist() == [[0, 2, 1, 0, 1]]


def test_infinite_values_stay_where_they_are():
    value, locations, weights = (x.detach() for x in wide())
    value[0, 0, 0, 0] = math.inf  # a corner, which bags have for whatever lies outside
    assert not sampling._takes_bags(value, weights, 0)
    found, expected = (function(value, SHAPES, locations, weights) for function in FUNCTIONS.values())
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("sizes", [dict(batch=0), dict(queries=0), dict(heads=0)], ids=str)
def test_nothing(sizes):
    tensors = operands(**sizes)
    out = deformable_attention(tensors[0], SHAPES, *tensors[1:])
    assert out.shape == (tensors[0].shape[0], tensors[1].shape[1], tensors[0].shape[2] * 3)
    gradients = torch.autograd.grad(out.sum(), tensors)
    assert all(g.shape == x.shape and (g == 0).all() for g, x in zip(gradients, tensors, strict=True))


def test_any_strides_and_shapes_as_a_tensor():
    tensors = [x.detach() for x in operands()]
    expected = deformable_attention(tensors[0], SHAPES, *tensors[1:])
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in tensors]
    for shapes in (list(map(list, SHAPES)), torch.tensor(SHAPES)):
        assert torch.equal(deformable_attention(strided[0], shapes, *strided[1:]), expected)


def test_the_same_bits_in_every_run():
    for make in (operands, wide):
        tensors = make(dtype=torch.float32)

        def run(tensors=tensors):
            out = deformable_attention(tensors[0], SHAPES, *tensors[1:])
            return out, *torch.autograd.grad(out.sin().sum(), tensors)

        assert all(torch.equal(*pair) for pair in zip(run(), run(), strict=True))


def test_autocast_narrows_values_alone():
    value, locations, weights = (x.detach() for x in operands(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        out = deformable_attention(value, SHAPES, locations, weights)
    assert torch.equal(out, deformable_attention(value.bfloat16(), SHAPES, locations, weights))


def test_what_is_too_large_for_a_kernel(monkeypatch):
    tensors = [x.detach().float() for x in operands(queries=1, dim=257)]
    monkeypatch.setattr(vitkern.ops.deformable_attention, "MAX_POINTS", 4)
    reasons = "heads of 257 dims are wider than 256; 4 points of a head are more than kernels count"
    with dispatch.use_backend("triton"), pytest.raises(NotImplementedError, match=reasons):
        deformable_attention(tensors[0], SHAPES, *tensors[1:])
    assert vitkern.deformable_attention(tensors[0], SHAPES, *tensors[1:]).shape == (2, 1, 2 * 257)


@stored.each("deformable_attention_core")
def test_against_stored_results(path):
    config, tensors = stored.read(path)

    def call(value, locations, weights):
        return deformable_attention(value, config["spatial_shapes"], locations, weights)

    stored.assert_stored(torch.nn.Module(), tensors, call, inputs=NAMES)


def theirs(heads=4, levels=2, points=3):
    config = DeformableDetrConfig(d_model=32, num_feature_levels=levels, disable_custom_kernels=True)
    module = DeformableDetrMultiscaleDeformableAttention(config, num_heads=heads, n_points=points)
    model = DeformableDetrPreTrainedModel.__new__(DeformableDetrPreTrainedModel)  # has nothing but its initialisation
    vars(model)["config"] = config
    model._init_weights(module)
    return module


def test_module_starts_as_theirs():
    """Projections of values are random in both."""
    one, other = DeformableAttention(32, 2, 4, 3).state_dict(), theirs().state_dict()
    assert list(one) == list(other)
    for name in one:
        if name in ("value_proj.weight", "output_proj.weight"):
            assert abs(one[name].std() / other[name].std() - 1) < 0.1
        else:
            torch.testing.assert_close(one[name], other[name])


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_module_as_theirs(coordinates, masked):
    other = theirs().double()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    module = DeformableAttention(32, 2, 4, 3).double()
    module.load_state_dict(other.state_dict(), strict=True)
    query, pixels = (torch.randn(2, n, 32, dtype=torch.float64, requires_grad=True) for n in (5, 16))
    reference_points = torch.rand(2, 5, 2, coordinates, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 16) < 0.3 if masked else None
    inputs = query, pixels, reference_points, *other.parameters()
    expected, _ = other(
        query, encoder_hidden_states=pixels, reference_points=reference_points, spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=list(SHAPES), attention_mask=None if mask is None else ~mask,
    )  # fmt: skip
    found = module(query, reference_points, pixels, SHAPES, None, mask)
    torch.testing.assert_close(found, expected)
    found = torch.autograd.grad(found.sin().sum(), (*inputs[:3], *module.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(expected.sin().sum(), inputs))
    with torch.no_grad():
        itself = module(pixels, reference_points[:1, :1].expand(2, 16, -1, -1), None, torch.tensor(SHAPES))
        again = module(pixels, reference_points[:1, :1], pixels, SHAPES)
    torch.testing.assert_close(itself, again)


def test_module_compiles_and_exports():
    module, x = DeformableAttention(8, 1, 2, 1), torch.randn(2, 12, 8)
    inputs = x, torch.rand(2, 12, 1, 2), None, SHAPES[:1]
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for found in (compiled(*inputs), torch.export.export(module, inputs).module()(*inputs)):
        torch.testing.assert_close(found, module(*inputs))


def test_module_refuses():
    with pytest.raises(ValueError, match="heads do not divide the channels: got d_model 30, n_heads 4"):
        DeformableAttention(30, 2, 4)
    module = DeformableAttention(8, 2, 2, 1)
    with pytest.raises(ValueError, match=r"neither points nor boxes: got \(1, 16, 2, 3\)"):
        module(torch.zeros(1, 16, 8), torch.zeros(1, 16, 2, 3), None, SHAPES)
    with pytest.raises(ValueError, match=r"levels differ: got reference points \(1, 16, 3, 2\) and 2 spatial shapes"):
        module(torch.zeros(1, 16, 8), torch.zeros(1, 16, 3, 2), None, SHAPES)
    with pytest.raises(ValueError, match=r"\(1, 16, 2, 4\) and 1 spatial shapes; expected L = 2 of both"):
        module(torch.zeros(1, 16, 8), torch.zeros(1, 16, 2, 4), None, SHAPES[:1])


V, L, W = torch.zeros(2, 16, 2, 4), torch.zeros(2, 5, 2, 2, 3, 2), torch.zeros(2, 5, 2, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], SHAPES, L, W), TypeError, "value is no tensor: got list"),
        ((V.int(), SHAPES, L, W), TypeError, "value has an unsupported dtype: got torch.int32"),
        ((V[0], SHAPES, L, W), ValueError, "value has the wrong number of dimensions"),
        ((V[..., :0], SHAPES, L, W), ValueError, "head dim is 0"),
        ((V, SHAPES, L.int(), W), TypeError, "sampling_locations has an unsupported dtype"),
        ((V, SHAPES, L, W.to_sparse()), TypeError, "attention_weights is not a dense tensor"),
        ((V, 3, L, W), TypeError, "spatial_shapes is no list of pairs: got 3"),
        ((V, torch.tensor(3), L, W), TypeError, r"spatial_shapes is no list of pairs: got tensor\(3\)"),
        ((V, ((3, 4), (2, 2.0)), L, W), TypeError, r"spatial_shapes\[1\] is no pair of integers: got \(2, 2.0\)"),
        ((V, (3, 4), L, W), TypeError, r"spatial_shapes\[0\] is no pair of integers: got 3"),
        ((V, (), L, W), ValueError, "a level is empty"),
        ((V, ((4, 4), (0, 2)), L, W), ValueError, r"a level is empty: got spatial_shapes \(\(4, 4\), \(0, 2\)\)"),
        ((V, ((3, 4), (2, 3)), L, W), ValueError, r"levels do not add up .* 18 pixels .* expected .* S = 18. Give"),
        ((V, ((4, 4),), L, W), ValueError, r"attention_weights has the wrong shape: .* H, L = 2, 2, 1"),
        ((V, SHAPES, L, W[:1]), ValueError, r"attention_weights has the wrong shape: got \(1, 5, 2, 2, 3\)"),
        ((V, SHAPES, L[:, :4], W), ValueError, r"sampling_locations has the wrong shape: got \(2, 4, 2, 2, 3, 2\)"),
        ((V, SHAPES, L[..., :1], W), ValueError, "sampling_locations has the wrong shape"),
        ((V, SHAPES, L[:, :, :, :, :0], W[..., :0]), ValueError, "no points"),
        ((V, SHAPES, L.to("meta"), W), ValueError, "devices differ"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=f"^deformable_attention: {message}"):
        deformable_attention(*arguments)
