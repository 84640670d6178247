"""Window attention's kernels in the interpreter, against the roll-pad-partition formula in float64."""

from typing import NamedTuple

import pytest
import torch

from vitkern.dispatch import use_backend
from vitkern.kernels import window_attention as launchers
from vitkern.kernels.tile.relative_table import expand_table, reduce_table
from vitkern.ops.window_attention import window_attention
from vitkern.reference import window_attention as reference
from vitkern.testing import compare

pytestmark = pytest.mark.interpreter


class Case(NamedTuple):
    image: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    batch: int = 1
    heads: int = 2
    head_dim: int = 16
    wrap: str = "image"
    mask_value: float | None = -100.0
    table: bool = True
    padding: bool = False
    cosine: bool = False
    scale: float | None = None


CASES = {
    "one window": Case((7, 7), (7, 7)),
    "7x7": Case((7, 14), (7, 7), batch=2, head_dim=32),
    "7x7, no table": Case((7, 14), (7, 7), table=False, scale=0.3),
    "7x7, shifted": Case((14, 14), (7, 7), (3, 3), heads=1),
    "7x7, one axis shifted": Case((7, 21), (7, 7), (0, 3), heads=1),
    "4x4, unequal shifts": Case((8, 12), (4, 4), (1, 3), head_dim=8),
    "8x8, -inf": Case((16, 8), (8, 8), (4, 0), mask_value=None, heads=1),
    "4x7": Case((8, 14), (4, 7), (2, 3), head_dim=24, heads=1),
    "head 40": Case((4, 8), (4, 4), (2, 2), head_dim=40, heads=1),
    "head 10": Case((4, 8), (4, 4), (2, 2), head_dim=10),
    "timm order": Case((10, 12), (7, 7), (3, 2), padding=True, heads=1),
    "torchvision order": Case((10, 12), (7, 7), (3, 2), padding=True, heads=1, wrap="padded"),
    "smaller than the window": Case((5, 6), (7, 7), (3, 3), padding=True, wrap="padded"),
    "padding vector unused": Case((8, 4), (4, 4), padding=True),
    "cosine": Case((8, 8), (8, 8), cosine=True, batch=3),
    "cosine, shifted, padded": Case(
        (9, 13), (4, 7), (2, 0), cosine=True, padding=True, wrap="padded", mask_value=None, heads=1
    ),
    "cosine, no table": Case((4, 8), (4, 4), (1, 1), cosine=True, table=False, head_dim=20),
    "11x13, cosine": Case((11, 13), (11, 13), heads=1, cosine=True),
    "streamed, shifted, padded, cosine": Case((4, 12), (5, 13), (2, 3), heads=1, padding=True, cosine=True),
}


def _inputs(case, dtype):
    generator = torch.Generator().manual_seed(len(repr(case)))
    packed = 3 * case.heads * case.head_dim
    entries = (2 * case.window[0] - 1) * (2 * case.window[1] - 1)
    shapes = dict(qkv=(case.batch, *case.image, packed))
    if case.table:
        shapes["table"] = (entries, case.heads)
    if case.padding:
        shapes["padding"] = (packed,)
    if case.cosine:
        shapes["logit_scale"] = (case.heads, 1, 1)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if case.cosine:
        tensors["logit_scale"] = tensors["logit_scale"] * 0.3 + 2.0
    out = torch.randn(*shapes["qkv"][:3], packed // 3, generator=generator)
    tensors = {name: t if name == "logit_scale" else t.to(dtype) for name, t in tensors.items()}
    return tensors, out.to(dtype)


def _run(function, case, tensors, grad, **extra):
    """The output and the gradient of every tensor."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    out = function(
        **leaves,
        num_heads=case.heads,
        window=case.window,
        shift=case.shift,
        wrap=case.wrap,
        mask_value=case.mask_value,
        scale=case.scale,
        **extra,
    )
    out.backward(grad.to(out.dtype))
    return {"out": out, **{"d" + name: leaf.grad for name, leaf in leaves.items()}}


def _check(case, dtype):
    tensors, grad = _inputs(case, dtype)
    with use_backend("interpreter"):
        actual = _run(window_attention, case, tensors, grad)
    exact = _run(reference.window_attention, case, {n: t.double() for n, t in tensors.items()}, grad.double())
    low = None if dtype == torch.float32 else dtype
    ideal = _run(
        reference.window_attention, case, {n: t.float() for n, t in tensors.items()}, grad.float(), low_precision=low
    )
    for name, value in actual.items():
        assert value.dtype == (grad.dtype if name == "out" else tensors[name[1:]].dtype), name
        # A reduction over many windows rounds in another order than the ideal's.
        slack = 1e-5 * float(exact[name].detach().abs().max())
        result = compare(value, ideal[name], exact[name], slack=slack)
        assert result.passed, f"{name}: error {result.error:.3e}, allowed {result.allowance:.3e}"


@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    _check(CASES[name], torch.float32)


@pytest.mark.parametrize("name", ["7x7, shifted", "cosine", "timm order"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    _check(CASES[name], dtype)


def _arguments(case):
    padded = [-(-size // extent) * extent for size, extent in zip(case.image, case.window, strict=True)]
    wrap = list(case.image) if case.wrap == "image" else padded
    return case.heads, list(case.window), list(case.shift), wrap, 0.25, case.mask_value


def test_two_runs_are_equal_bit_for_bit():
    case = Case((6, 5), (4, 4), (2, 1), padding=True, cosine=True, heads=1)
    tensors, grad = _inputs(case, torch.float32)
    inputs = (tensors["qkv"], tensors["table"], tensors["padding"], tensors["logit_scale"].flatten(), *_arguments(case))
    runs = []
    for _ in range(2):
        out, lse = launchers.window_attention_forward(*inputs)
        runs.append((out, *launchers.window_attention_backward(grad, out, lse, *inputs, [True] * 4)))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_a_gradient_that_is_not_needed_is_empty():
    case = Case((4, 4), (4, 4))
    tensors, grad = _inputs(case, torch.float32)
    inputs = (tensors["qkv"], tensors["table"], None, None, *_arguments(case))
    out, lse = launchers.window_attention_forward(*inputs)
    results = launchers.window_attention_backward(grad, out, lse, *inputs, [True, False, False, False])
    assert [result.numel() for result in results] == [tensors["qkv"].numel(), 0, 0, 0]
    like = launchers.window_attention_gradients(grad, out, lse, *inputs, [True, False, False, False])
    assert [(a.shape, a.dtype) for a in results] == [(b.shape, b.dtype) for b in like]


def test_strided_image_and_gradient():
    case = Case((8, 8), (4, 4), (1, 2))
    tensors, grad = _inputs(case, torch.float32)
    inputs = (tensors["table"], None, None, *_arguments(case))
    out, lse = launchers.window_attention_forward(tensors["qkv"], *inputs)
    expected = launchers.window_attention_backward(grad, out, lse, tensors["qkv"], *inputs, [True, True, False, False])
    apart = tensors["qkv"].transpose(1, 2).contiguous().transpose(1, 2)
    columns = grad.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(launchers.window_attention_forward(apart, *inputs)[0], out)
    actual = launchers.window_attention_backward(columns, out, lse, apart, *inputs, [True, True, False, False])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_144_tokens_stream():
    case = Case((12, 12), (12, 12), (6, 0), heads=1)
    tensors, _ = _inputs(case, torch.float32)
    out = launchers.window_attention_forward(tensors["qkv"], tensors["table"], None, None, *_arguments(case))[0]
    options = dict(num_heads=1, window=case.window, shift=case.shift, scale=0.25)
    exact = reference.window_attention(tensors["qkv"].double(), table=tensors["table"].double(), **options)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


def test_no_images():
    case = Case((7, 7), (7, 7), (3, 3), batch=0)
    tensors, grad = _inputs(case, torch.float32)
    with use_backend("interpreter"):
        results = _run(window_attention, case, tensors, grad)
    assert results["out"].shape == (0, 7, 7, 32) and not results["dtable"].any()


@pytest.mark.parametrize("window", [(1, 1), (2, 5), (7, 7), (9, 9)])
def test_table_expands_and_reduces(window):
    size, heads = window[0] * window[1], 3
    table = torch.randn((2 * window[0] - 1) * (2 * window[1] - 1), heads).half()
    rows, columns = -(-size // 16) * 16, -(-size // 64) * 64
    tile = expand_table(table, window, rows, columns)
    index = reference.relative_position_index(window)
    torch.testing.assert_close(tile[:, :size, :size], table.float()[index].permute(2, 0, 1) * 1.4426950408889634)
    assert tile[:, :, size:].eq(float("-inf")).all() and tile[:, size:, :size].eq(0).all()

    gradient = torch.randn(heads, rows, columns)
    expected = torch.zeros(table.shape, dtype=torch.float64)
    expected.index_put_(
        (index.flatten(),), gradient[:, :size, :size].double().permute(1, 2, 0).reshape(-1, heads), accumulate=True
    )
    torch.testing.assert_close(reduce_table(gradient, window).double(), expected, rtol=1e-5, atol=1e-5)
