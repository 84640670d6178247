"""Gated positional attention on the PyTorch path, and its definition: against timm's ConViT, stored results of the
official code, sums written out by hand, a convolution; the error contract. Its kernels: `python -m vitkern lab`, from
vitkern/lab/specimens/gated_positional_attention.py, and stored results in `tests/interpreter/test_stored.py`."""

import math

import pytest
import stored
import torch
import torch.nn.functional as F
from timm.models.convit import GPSA

import vitkern
from vitkern.lab.specimens import gated_positional_attention as specimen
from vitkern.nn import GatedPositionalAttention
from vitkern.ops.gated_positional_attention import gated_positional_attention
from vitkern.reference import gated_positional_attention as reference
from vitkern.testing import assert_close


def operands(batch, grid, heads, dim, dtype=torch.float32):
    tokens = math.prod(grid)
    weights = torch.randn(heads, 3, dtype=dtype) - torch.tensor([0.0, 0.0, 0.5], dtype=dtype)
    qk, v = torch.randn(batch, tokens, 2, heads, dim, dtype=dtype), torch.randn(batch, tokens, heads, dim, dtype=dtype)
    return qk, v, weights, torch.randn(heads, dtype=dtype)


def softmax(logits):
    exponentials = [math.exp(logit) for logit in logits]
    return [e / sum(exponentials) for e in exponentials]


def by_hand(q, k, v, weights, gate, grid, scale):
    """(N, D) each of one head -> (N, D), sum by sum."""
    places = [(x, y) for y in range(grid[0]) for x in range(grid[1])]
    g, out = 1 / (1 + math.exp(-gate)), torch.zeros_like(v)
    for i, (x, y) in enumerate(places):
        ways = [(a - x, b - y) for a, b in places]
        of_content = softmax([scale * (q[i] @ k[j]).item() for j in range(len(places))])
        of_places = softmax([weights[0] * dx + weights[1] * dy + weights[2] * (dx**2 + dy**2) for dx, dy in ways])
        for j, (c, p) in enumerate(zip(of_content, of_places, strict=True)):
            out[i] += ((1 - g) * c + g * p) * v[j]
    return out


def test_definition():
    grid = 2, 3
    qk, v, weights, gate = operands(2, grid, 2, 4, torch.float64)
    for source in (reference, vitkern):
        found = source.gated_positional_attention(qk, v, weights, gate, grid, scale=0.7)
        for image, head in ((0, 1), (1, 0)):
            q, k = qk[image, :, :, head].unbind(1)
            expected = by_hand(q, k, v[image, :, head], weights[head].tolist(), gate[head].item(), grid, 0.7)
            torch.testing.assert_close(found[image, :, head], expected)


def test_definition_gradients():
    tensors = [x.requires_grad_() for x in operands(1, (2, 3), 2, 2, torch.float64)]
    for source in (reference, vitkern):
        assert torch.autograd.gradcheck(lambda *x, f=source.gated_positional_attention: f(*x, (2, 3)), tensors)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_against_reference(dtype):
    rounding = None if dtype == torch.float32 else dtype
    for batch, grid, heads, dim in ((2, (5, 7), 3, 32), (1, (1, 1), 1, 1), (1, (24, 3), 2, 80)):
        qk, v, weights, gate = operands(batch, grid, heads, dim)
        tensors = (qk.to(dtype), v.to(dtype), weights, gate)
        out, formula = gated_positional_attention(*tensors, grid), reference.gated_positional_attention
        assert out.dtype == dtype and out.is_contiguous()
        ideal = formula(*(x.float() for x in tensors), grid, low_precision=rounding)
        # PyTorch rounds between its operators, where one kernel does not.
        assert_close(out, ideal, formula(*(x.double() for x in tensors), grid), margin=1 if rounding is None else 4)


def test_a_shut_gate_leaves_plain_attention_and_an_open_one_positions():
    qk, v, weights, gate = operands(2, (3, 4), 2, 8)
    q, k = qk.permute(2, 0, 3, 1, 4)
    plain = vitkern.attention(q, k, v.transpose(1, 2)).transpose(1, 2)
    shut, opened = torch.full_like(gate, -math.inf), torch.full_like(gate, math.inf)
    torch.testing.assert_close(gated_positional_attention(qk, v, weights, shut, (3, 4)), plain)
    alone = gated_positional_attention(qk, v, weights, opened, (3, 4))
    torch.testing.assert_close(alone, gated_positional_attention(0 * qk, v, weights, opened, (3, 4)))


def test_with_the_local_initialisation_and_an_open_gate_it_is_a_convolution():
    """Heads of 3 x 3 pixels, each its own pixel of the kernel; at the rim they look at the nearest pixel inside."""
    grid = 5, 7
    module = GatedPositionalAttention(9 * 4, 9, locality_strength=40.0).double()
    module.local_init()
    torch.nn.init.constant_(module.gating_param, math.inf)
    x = torch.randn(2, math.prod(grid), 36, dtype=torch.float64)
    image = F.pad(x.mT.unflatten(2, grid), (1, 1, 1, 1), mode="replicate")
    kernel = module.proj.weight.new_zeros(36, 36, 3, 3)
    for head in range(9):
        own = slice(4 * head, 4 * head + 4)
        kernel[:, own, head % 3, head // 3] = module.proj.weight[:, own]
    expected = F.conv2d(image, kernel, module.proj.bias)
    torch.testing.assert_close(module(x, grid).mT.unflatten(2, grid), expected)


def timm_and_ours(heads, **options):
    theirs, ours = GPSA(heads * 8, heads, **options).double(), GatedPositionalAttention(heads * 8, heads, **options)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    ours = ours.double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    return theirs, ours


@pytest.mark.parametrize("heads, bias, side", [(4, False, 4), (9, True, 7), (3, True, 1)])
def test_as_timm(heads, bias, side):
    theirs, ours = timm_and_ours(heads, qkv_bias=bias)
    x = torch.randn(2, side * side, heads * 8, dtype=torch.float64, requires_grad=True)
    grad, found = torch.randn_like(x), []
    for module in (theirs, ours):
        out = module(x)
        found.append([out, *torch.autograd.grad(out, [x, *module.parameters()], grad)])
    torch.testing.assert_close(found[1], found[0])
    assert not found[1][[name for name, _ in ours.named_parameters()].index("pos_proj.bias") + 2].any()
    if side > 1:
        for one, other in zip(theirs.get_attention_map(x, True), ours.get_attention_map(x, True), strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(ours.get_attention_map(x), theirs.get_attention_map(x))


@pytest.mark.parametrize("heads", [1, 4, 9, 10])
def test_local_initialisation_as_timm(heads):
    theirs, ours = timm_and_ours(heads, locality_strength=0.7)
    theirs.local_init()
    ours.local_init()
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)


@stored.each("convit_gpsa_*")
def test_stored_results(path):
    config, tensors = stored.read(path)
    module = GatedPositionalAttention(config["dim"], config["num_heads"], qkv_bias=config["qkv_bias"])
    stored.assert_stored(module, tensors)
    torch.testing.assert_close(
        module.get_attention_map(tensors["input.x"], True)[1], tensors["output.attn"].mean(0), rtol=1e-5, atol=1e-6
    )


def test_dropped_weights():
    """Each weight of both kinds together: with one-hot values they are the result."""
    qk, _, weights, gate = operands(1, (3, 3), 1, 9, torch.float64)
    eye = torch.eye(9, dtype=torch.float64)[None, :, None]
    whole = gated_positional_attention(qk, eye, weights, gate)
    torch.manual_seed(0)
    dropped = gated_positional_attention(qk, eye, weights, gate, dropout_p=0.25)
    zeros = dropped == 0
    assert zeros.any() and not zeros.all()
    torch.testing.assert_close(dropped, (whole / 0.75).masked_fill(zeros, 0.0))


def test_a_module_drops_weights_in_training_alone():
    module, x = GatedPositionalAttention(16, 2, attn_drop=0.9), torch.randn(1, 4, 16)
    plain = GatedPositionalAttention(16, 2)
    plain.load_state_dict(module.state_dict())
    assert not torch.equal(module(x), plain(x))
    torch.testing.assert_close(module.eval()(x), plain(x))


@pytest.mark.parametrize("name", ["pos_proj", "attn_drop"])
def test_modules_that_somebody_watches_are_called(name):
    module, x, calls = GatedPositionalAttention(24, 3).double(), torch.randn(2, 6, 24, dtype=torch.float64), []
    expected, map_ = module(x, (2, 3)), module.get_attention_map(x, grid=(2, 3))
    getattr(module, name).register_forward_hook(lambda *call: calls.append(call[2].shape))
    torch.testing.assert_close(module(x, (2, 3)), expected)
    assert calls == [(6, 6, 3) if name == "pos_proj" else (2, 3, 6, 6)]
    torch.testing.assert_close(module.get_attention_map(x, grid=(2, 3)), map_)


def test_what_replaces_the_projection_of_positions_counts():
    module, x = GatedPositionalAttention(24, 3), torch.randn(2, 9, 24)
    expected = module(x)
    module.pos_proj = torch.nn.Sequential(module.pos_proj)  # has no weight to read
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("batch, grid, heads", [(0, (2, 2), 2), (2, (0, 3), 2), (2, (2, 2), 0)])
def test_nothing_to_compute(batch, grid, heads):
    tensors = [x.requires_grad_() for x in operands(batch, grid, heads, 4)]
    out = gated_positional_attention(*tensors, grid)
    assert out.shape == (batch, math.prod(grid), heads, 4)
    out.sum().backward()
    assert not any(x.grad.any() for x in tensors)


def test_any_strides():
    qk, v = torch.randn(2, 3, 8, 2, 12).permute(1, 4, 3, 0, 2), torch.randn(8, 3, 2, 12).permute(1, 3, 2, 0)
    weights, gate = torch.randn(3, 2).mT, torch.randn(4)[::2]
    given = gated_positional_attention(qk, v, weights, gate, (2, 6))
    contiguous = gated_positional_attention(*(x.contiguous() for x in (qk, v, weights, gate)), (2, 6))
    torch.testing.assert_close(given, contiguous)


def test_autocast_dtypes():
    qk, v, weights, gate = operands(2, (3, 3), 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = gated_positional_attention(qk, v, weights.requires_grad_(), gate)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.sum(), weights)[0].dtype == torch.float32


def test_an_exported_module_takes_other_batches():
    module = GatedPositionalAttention(16, 2)
    x, larger = torch.randn(2, 6, 16), torch.randn(3, 6, 16)
    exported = torch.export.export(
        module, (x, (2, 3)), dynamic_shapes=({0: torch.export.Dim.AUTO}, (None, None))
    ).module()
    torch.testing.assert_close(exported(larger, (2, 3)), module(larger, (2, 3)))


def test_what_the_benchmarks_compare_with_computes_the_same():
    small = specimen.Gated("", 3, 2, 8)
    problem = small.problem(2)
    tensors = {name: x.float() for name, x in problem.inputs(torch.Generator().manual_seed(0)).items()}
    torch.testing.assert_close(small.eager(problem.options)(**tensors), problem.reference(**tensors, **problem.options))


QK, V, W, G = torch.zeros(2, 6, 2, 2, 4), torch.zeros(2, 6, 2, 4), torch.zeros(2, 3), torch.zeros(2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0], V, W, G), {}, TypeError, "qk is no tensor: got list"),
        ((QK, V.int(), W, G), {}, TypeError, "v has an unsupported dtype: got torch.int32"),
        ((QK, V.to_sparse(), W, G), {}, TypeError, "v is not a dense tensor"),
        ((QK[0], V, W, G), {}, ValueError, "qk has the wrong number of dimensions"),
        ((QK.half(), V, W, G), {}, TypeError, "dtypes differ: got qk torch.float16, v torch.float32"),
        ((QK[:, :, :1], V, W, G), {}, ValueError, r"qk has the wrong shape: got \(2, 6, 1, 2, 4\)"),
        ((QK[..., :0], V[..., :0], W, G), {}, ValueError, "head dim is 0"),
        (
            (QK, V, W[:, :2], G),
            {},
            ValueError,
            r"position_weights has the wrong shape: got \(2, 2\); expected \(H, 3\)",
        ),
        ((QK, V, W.int(), G), {}, TypeError, "position_weights has an unsupported dtype"),
        ((QK, V, W, G[:1]), {}, ValueError, r"gate has the wrong shape: got \(1,\); expected \(H,\) with H = 2"),
        ((QK, V, W, G.to("meta")), {}, ValueError, "devices differ: got v on cpu, gate on meta"),
        ((QK, V, W, G), {}, ValueError, r"tokens are no square: got N = 6; .* Pass grid=\(grid_h, grid_w\)"),
        ((QK, V, W, G, (2, 4)), {}, ValueError, r"grid does not match the tokens: got \(2, 4\) for N = 6; .* class"),
        ((QK, V, W, G, (-2, -3)), {}, ValueError, "grid does not match the tokens"),
        ((QK, V, W, G, 6), {}, TypeError, "grid is no pair of integers: got 6"),
        ((QK, V, W, G, (2, 3)), dict(scale=0.0), ValueError, "scale is not usable: got 0.0"),
        ((QK, V, W, G, (2, 3)), dict(dropout_p=1.0), ValueError, "dropout_p is no probability: got 1.0"),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=f"^gated_positional_attention: {message}"):
        gated_positional_attention(*arguments, **options)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"^GatedPositionalAttention: channels do not split into heads: got dim=10"):
        GatedPositionalAttention(10, 4)
