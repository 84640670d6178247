"""Local attention in PyTorch against its definition in float64, properties of the definition, and what is refused."""

import pytest
import reach
import torch

from vitkern.lab.proving.verify import PYTORCH_MARGIN, verify
from vitkern.lab.specimens import gathered
from vitkern.lab.specimens.local_attention import problem as local_problem
from vitkern.ops.local_attention import local_attention
from vitkern.ops.local_attention.localities import TILE
from vitkern.reference.attention import attention as dense_reference
from vitkern.reference.local_attention import intervals
from vitkern.reference.local_attention import local_attention as reference

CPU = torch.device("cpu")
PROBLEMS = (
    *(problem for problem in gathered("check") if problem.op == "local_attention"),
    local_problem("14x13, 7x7 around each", (14, 13), (1, 1), (3, 3), "clamp", table=True, lse=True),
    local_problem("12x8, blocks of 4, halo 1", (12, 8), (4, 4), (1, 1), rel=True, table=True, batch=2),
    local_problem("7x8, a chunk and one more", (7, 8), (3, 3), (3, 3), "exclude", neighbor=(1, -1)),
    local_problem("6x5, exact chunks of 2", (6, 5), (1, 1), (2, 2), "exclude", table=True, scale=0.4),
    local_problem("3x2, one cyclic chunk of 3", (3, 2), (3, 3), (3, 3), "wrap", table=True),
    local_problem("70x3, windows of 32", (70, 3), (32, 2), padding=True, rel=True),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_in_pytorch(problem, dtype):
    for result in verify(problem, dtype, CPU, margin=PYTORCH_MARGIN):
        assert result.comparison.passed, result


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_in_float64(problem):
    generator = torch.Generator().manual_seed(0)
    tensors = problem.inputs(generator)
    found = []
    for function in (reference, local_attention):
        leaves = {name: value.clone().requires_grad_() for name, value in tensors.items()}
        outputs = function(**leaves, **problem.options)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = [torch.linspace(-1, 1, out.numel()).double().view(out.shape) for out in outputs]
        found.append((*outputs, *torch.autograd.grad(outputs, list(leaves.values()), weights)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lse", [False, True], ids=["", "lse"])
@pytest.mark.parametrize("halo", [(0, 0), (1, 1)], ids=str)
def test_a_row_that_a_table_forbids_throughout_is_zero(halo, lse):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 4, 6, 3 * 16, generator=generator, dtype=torch.float64)
    table = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)
    table[1] = -torch.inf
    options = dict(num_heads=2, block=(2, 2), halo=halo, border="exclude", return_lse=lse)
    found = []
    for function in (reference, local_attention):
        leaves = qkv.clone().requires_grad_(), table.clone().requires_grad_()
        outputs = function(leaves[0], table=leaves[1], **options)
        out = outputs[0] if lse else outputs
        found.append((*(outputs if lse else (out,)), *torch.autograd.grad(out.square().sum(), leaves)))
    assert not found[1][0][..., 8:].any() and found[1][0][..., :8].all()
    for one, other in zip(*found, strict=True):
        assert not one.isnan().any()
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("near", reach.NEAR.values(), ids=reach.NEAR)
def test_how_far_a_nan_spreads(near):
    own, seen, read = reach.reached(TILE, near)
    assert not (seen & ~read).any() and (near["block"] != (1, 1) or read.sum() > seen.sum()) and not read.all()
    for part, expected in enumerate(reach.spread(own, read, read)):
        assert torch.equal(reach.spoiled(local_attention, part, near), expected), "qkv"[part]


def image(height=6, width=5, channels=16):
    return torch.randn(2, height, width, 3 * channels, dtype=torch.float64)


def dense(qkv, heads=2):
    batch, height, width, packed = qkv.shape
    q, k, v = qkv.view(batch, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return dense_reference(q, k, v).transpose(1, 2).reshape(batch, height, width, packed // 3)


@pytest.mark.parametrize(
    "options",
    [
        dict(block=(6, 5)),
        dict(block=(1, 1), halo=(9, 9), border="exclude"),
        dict(block=(7, 5), halo=(7, 0), border="exclude"),
        dict(block=(1, 1), halo=(2, 2), border="clamp"),
    ],
    ids=str,
)
def test_an_interval_that_holds_the_image_is_dense_attention(options):
    qkv = image(5 if options.get("border") == "clamp" else 6)
    torch.testing.assert_close(reference(qkv, num_heads=2, **options), dense(qkv))


def test_blocks_are_images_of_their_own():
    qkv = image(6, 4)
    blocks = qkv.view(2, 2, 3, 2, 2, -1).transpose(2, 3).reshape(8, 3, 2, -1)
    expected = dense(blocks).view(2, 2, 2, 3, 2, -1).transpose(2, 3).reshape(2, 6, 4, -1)
    torch.testing.assert_close(reference(qkv, num_heads=2, block=(3, 2)), expected)


def test_a_dilation_is_images_of_every_so_many_tokens():
    qkv = image(6, 9)
    parts = qkv.view(2, 3, 2, 3, 3, -1).permute(0, 2, 4, 1, 3, 5).reshape(12, 3, 3, -1)
    options = dict(num_heads=2, block=(1, 1), halo=(1, 1), border="clamp")
    expected = reference(parts, **options).view(2, 2, 3, 3, 3, -1).permute(0, 3, 1, 4, 2, 5).reshape(2, 6, 9, -1)
    torch.testing.assert_close(reference(qkv, **options, dilation=(2, 3)), expected)


def test_intervals_by_hand():
    clamped = intervals(5, 1, 1, "clamp", 1)
    assert clamped.position.tolist() == [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4]]
    assert clamped.offset.tolist() == [[0, 1, 2], [-1, 0, 1], [-1, 0, 1], [-1, 0, 1], [-2, -1, 0]]
    halo = intervals(4, 2, 1, "keep", 1)
    assert halo.position.tolist() == [[-1, 0, 1, 2]] * 2 + [[1, 2, 3, -1]] * 2 and halo.seen.all()
    cyclic = intervals(3, 2, 2, "wrap", 1)
    assert cyclic.position[0].tolist() == [2, -1, 0, 1, 2, -1]
    assert cyclic.seen[0].tolist() == [True, False, True, True, True, False]
    assert intervals(6, 1, 1, "exclude", 2).position[3].tolist() == [1, 3, 5]


def test_zeros_outside_stay_in_the_softmax():
    """One token, seen with its eight neighbours, which are zero: its weight is e^s / (e^s + 8)."""
    qkv = image(1, 1)
    q, k, v = qkv.view(2, 3, 2, 8).unbind(1)
    weight = ((q * k).sum(-1) * 8**-0.5).exp()
    expected = (weight / (weight + 8))[..., None] * v
    torch.testing.assert_close(reference(qkv, num_heads=2, block=(1, 1), halo=(1, 1)), expected.reshape(2, 1, 1, 16))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(block=(2, 2), halo=(3, 1)), "the halo is larger than the block"),
        (dict(block=(2, 2), border="clamp"), "moves the window of a single query"),
        (dict(block=(1, 1), halo=(3, 3), border="clamp"), "smaller than the window times the dilation"),
        (dict(block=(2, 2), border="mirror"), "unknown border"),
        (dict(block=(2, 2), border="wrap", dilation=(2, 2)), "only whole blocks wrap"),
        (dict(block=(2, 2), halo=(1, 1), neighbor=(0, 1)), "neighbor names no block"),
        (dict(block=(2, 2), halo=(2, 2), neighbor=(0, 2)), "neighbor names no block"),
        (dict(block=(0, 2)), "sizes are not usable"),
        (dict(block=(2, 2), table=torch.zeros(2, 2, 3)), "table has the wrong shape"),
        (dict(block=(2, 2), rel_h=torch.zeros(2, 6, 5, 2, 2)), "one of rel_h and rel_w is missing"),
        (dict(block=(2, 2), halo=(1, 1), padding=torch.zeros(48)), "padding is not used"),
        (dict(block=(2, 2), num_heads=5), "does not split"),
        (dict(block=(2, 2), scale=0.0), "scale is not usable"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=f"local_attention: .*{message}"):
        local_attention(image().float(), **dict(num_heads=2) | options)
    with pytest.raises(TypeError, match="block is no pair"):
        local_attention(image(), num_heads=2, block=2)


def test_autocast_and_non_contiguous_input():
    qkv = torch.randn(2, 48, 6, 5).permute(0, 2, 3, 1)
    options = dict(num_heads=2, block=(1, 1), halo=(1, 1), border="clamp")
    torch.testing.assert_close(local_attention(qkv, **options), local_attention(qkv.contiguous(), **options))
    with torch.autocast("cpu", torch.bfloat16):
        assert local_attention(qkv, **options).dtype == torch.bfloat16


def test_graphs_attend_in_four_dimensions():
    """As the kernels of PyTorch and of ONNX want them, where tiles have masks of their own."""

    class Near(torch.nn.Module):
        def forward(self, qkv):
            return local_attention(qkv, num_heads=2, block=(4, 4), halo=(1, 1), border="exclude")

    graph = torch.export.export(Near(), (torch.randn(2, 8, 8, 24),)).graph
    target = torch.ops.aten.scaled_dot_product_attention.default
    operands = [arg for node in graph.nodes if node.target is target for arg in node.args[:4]]
    assert len(operands) == 4 and all(arg.meta["val"].dim() == 4 for arg in operands)
