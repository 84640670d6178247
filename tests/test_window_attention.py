"""Window attention's PyTorch path and its contract: against the formula in float64, against other libraries' modules,
caches, bad input."""

import copy
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitkern.ops import window_attention as op
from vitkern.ops.window_attention import projected_window_attention, window_attention
from vitkern.ops.window_attention import steps as steps
from vitkern.ops.window_attention import windows as geometry
from vitkern.reference import window_attention as reference
from vitkern.testing import assert_close

HEADS, HEAD_DIM = 2, 4
CHANNELS = HEADS * HEAD_DIM
# image, window, shift: divisible, ragged on one and on both axes, smaller than the window, rectangular, shifted on one
# axis only
LAYOUTS = [
    ((6, 9), (3, 3), (0, 0)),
    ((6, 9), (3, 3), (1, 2)),
    ((7, 5), (2, 3), (1, 1)),
    ((7, 6), (2, 3), (0, 2)),
    ((4, 7), (4, 4), (3, 0)),
    ((2, 3), (4, 5), (1, 4)),
    ((1, 1), (1, 1), (0, 0)),
]


def make(image, window, *, batch=2, cosine=False, dtype=torch.float64, heads=HEADS, head_dim=HEAD_DIM):
    """Random differentiable arguments; one logit scale of two lies above the clamp."""
    packed = 3 * heads * head_dim
    tensors = dict(
        qkv=torch.randn(batch, *image, packed, dtype=dtype),
        table=torch.randn((2 * window[0] - 1) * (2 * window[1] - 1), heads, dtype=dtype),
        padding=torch.randn(packed, dtype=dtype),
    )
    if cosine:
        tensors["logit_scale"] = torch.linspace(1.0, 5.0, heads, dtype=dtype)
    return {name: t.requires_grad_() for name, t in tensors.items()}


def run(function, tensors, **arguments):
    """``function`` of the tensors by name."""
    tensors = dict(tensors)
    return function(tensors.pop("qkv"), num_heads=arguments.pop("num_heads", HEADS), **tensors, **arguments)


def both(tensors, **arguments):
    """(name, actual, expected) of the result and of every gradient."""
    results = []
    for function in (window_attention, reference.window_attention):
        out = run(function, tensors, **arguments)
        cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape).sin()
        grads = torch.autograd.grad(out, list(tensors.values()), cotangent)
        results.append([out, *grads])
    return list(zip(["out", *tensors], *results, strict=True))


@pytest.mark.parametrize("cosine", [False, True], ids=["dot", "cosine"])
@pytest.mark.parametrize("mask_value", [-100.0, -0.5, None])
@pytest.mark.parametrize("wrap", ["image", "padded"])
@pytest.mark.parametrize("image, window, shift", LAYOUTS)
def test_matches_the_formula_in_float64(image, window, shift, wrap, mask_value, cosine):
    tensors = make(image, window, cosine=cosine)
    arguments = dict(window=window, shift=shift, wrap=wrap, mask_value=mask_value)
    for name, actual, expected in both(tensors, **arguments):
        torch.testing.assert_close(
            actual, expected, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
    with torch.no_grad():
        torch.testing.assert_close(
            run(window_attention, tensors, **arguments),
            run(reference.window_attention, tensors, **arguments),
        )


# image, window, shift: sides from 2 to 32, of one window and of several, square and not
SIDES = [
    ((6, 4), (2, 2), (1, 1)),
    ((11, 9), (5, 5), (2, 2)),
    ((12, 12), (8, 8), (4, 4)),
    ((14, 28), (14, 14), (0, 7)),
    ((20, 16), (16, 16), (8, 8)),
    ((24, 24), (24, 24), (0, 0)),
    ((24, 30), (24, 24), (12, 12)),
    ((32, 32), (32, 32), (0, 0)),
    ((4, 40), (2, 32), (1, 16)),
    ((33, 7), (32, 3), (5, 0)),
    ((12, 48), (12, 24), (6, 12)),
]


@pytest.mark.parametrize("image, window, shift", SIDES, ids=str)
def test_windows_from_2_to_32(image, window, shift):
    tensors = make(image, window, cosine=window[0] in (16, 24), batch=1)
    for name, actual, expected in both(tensors, window=window, shift=shift):
        torch.testing.assert_close(
            actual, expected, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("cosine", [False, True], ids=["dot", "cosine"])
def test_gradients_by_finite_differences(cosine):
    window, shift = (2, 3), (1, 1)
    tensors = make((3, 4), window, batch=1, cosine=cosine)
    names = list(tensors)

    def of_values(*values):
        return run(window_attention, dict(zip(names, values, strict=True)), window=window, shift=shift)

    if cosine:
        tensors["logit_scale"].data.clamp_(max=3.0)
    assert torch.autograd.gradcheck(of_values, tuple(tensors.values()))


def test_many_windows_cross_every_step_of_the_cpu_path():
    """More window tokens than one step projects, and more scores than it holds, in every class; also a large window."""
    for image, window, shift, heads in (((58, 51), (7, 7), (3, 3), 4), ((24, 25), (12, 12), (5, 5), 2)):
        tensors = make(image, window, cosine=True, heads=heads, dtype=torch.float32, batch=1)
        assert steps._CHUNK_SCORES // (heads * (window[0] * window[1]) ** 2) < 49
        for name, actual, expected in both(tensors, window=window, shift=shift, num_heads=heads):
            torch.testing.assert_close(
                actual, expected, rtol=2e-4, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
        with torch.no_grad():
            arguments = dict(window=window, shift=shift, num_heads=heads)
            actual, expected = (run(f, tensors, **arguments) for f in (window_attention, reference.window_attention))
            torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cosine", [False, True], ids=["dot", "cosine"])
def test_half_precision_is_as_good_as_an_ideal_kernel(dtype, cosine):
    window, shift = (3, 3), (1, 2)
    tensors = make((7, 8), window, cosine=cosine, dtype=dtype, head_dim=16)
    runs = {}
    for name, function, options in (
        ("actual", window_attention, {}),
        ("ideal", reference.window_attention, dict(low_precision=dtype)),
        ("reference", reference.window_attention, {}),
    ):
        wide = {key: t.double() if name == "reference" else t for key, t in tensors.items()}
        out = run(function, wide, window=window, shift=shift, **options)
        runs[name] = [out, *torch.autograd.grad(out, list(tensors.values()), torch.ones_like(out).cumsum(1) / 8)]
    assert runs["actual"][0].dtype == dtype
    for name, actual, ideal, exact in zip(["out", *tensors], *runs.values(), strict=True):
        assert_close(actual, ideal, exact, name=name)


def test_one_head_leaves_its_input_alone():
    tensors = make((4, 4), (2, 2), cosine=True, heads=1)
    before = tensors["qkv"].detach().clone()
    for name, actual, expected in both(tensors, window=(2, 2), shift=(1, 1), num_heads=1):
        torch.testing.assert_close(actual, expected, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        run(window_attention, tensors, window=(2, 2), shift=(1, 1), num_heads=1)
    assert torch.equal(tensors["qkv"], before)


def test_logit_scale_is_clamped_and_has_no_gradient_above():
    tensors = make((4, 4), (2, 2), cosine=True)
    tensors["logit_scale"] = torch.tensor([[[4.0]], [[6.0]]], dtype=torch.float64, requires_grad=True)
    out = run(window_attention, tensors, window=(2, 2))
    grad = torch.autograd.grad(out.square().sum(), tensors["logit_scale"])[0]
    assert grad[0].abs() > 0 and grad[1] == 0
    tensors["logit_scale"] = torch.tensor([4.0, math.log(100.0)], dtype=torch.float64)
    torch.testing.assert_close(run(window_attention, tensors, window=(2, 2)), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_cosine_of_zero_vectors_is_finite(dtype):
    """Padded tokens without a bias have q = k = 0, and 1e-12 is 0 in float16."""
    qkv = torch.zeros(1, 3, 3, 3 * CHANNELS, dtype=dtype, requires_grad=True)
    scale = torch.ones(HEADS, requires_grad=True)
    out = window_attention(
        qkv, num_heads=HEADS, window=(2, 2), padding=torch.zeros(3 * CHANNELS, dtype=dtype), logit_scale=scale
    )
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(scale.grad).all()
    assert torch.isfinite(qkv.grad[..., 2 * CHANNELS :]).all()


def test_padded_tokens_are_attended_to_and_their_gradient_reaches_padding():
    tensors = make((3, 3), (2, 2))
    out = run(window_attention, tensors, window=(2, 2))
    grads = dict(zip(tensors, torch.autograd.grad(out.sum(), list(tensors.values())), strict=True))
    q, k, v = grads["padding"].split(CHANNELS)
    assert (q == 0).all() and k.abs().max() > 0 and v.abs().max() > 0
    other = dict(tensors, padding=tensors["padding"] + 1.0)
    assert (run(window_attention, other, window=(2, 2)) - out).abs().max() > 1e-2


def test_mask_value_decides_whether_regions_leak():
    """Cosine scores reach 100: a mask of -100 lets a key of another region through, -inf does not."""
    qkv = torch.zeros(1, 2, 2, 3 * 4, dtype=torch.float64)
    qkv[..., 0], qkv[..., 4] = 1.0, -1.0  # q = e, k = -e ...
    qkv[0, 0, 0, 4] = 1.0  # ... but one key agrees with every query
    qkv[0, 0, 0, 8] = 1.0
    outs = []
    for mask_value in (-100.0, None):
        arguments = dict(
            num_heads=1, window=(2, 2), shift=(1, 1), mask_value=mask_value, logit_scale=torch.tensor([9.0])
        )
        outs.append(window_attention(qkv, **arguments))
        torch.testing.assert_close(outs[-1], reference.window_attention(qkv, **arguments))
    assert outs[0][0, 1, 1, 0] > 0.9 and outs[1][0, 1, 1, 0] == 0.0


def test_layouts_of_memory_and_empty_batches():
    tensors = make((5, 7), (3, 3), dtype=torch.float32)
    arguments = dict(window=(3, 3), shift=(1, 1))
    expected = run(window_attention, tensors, **arguments)
    wide = torch.randn(2, 7, 5, 6 * CHANNELS)
    views = [tensors["qkv"].transpose(1, 2).contiguous().transpose(1, 2), wide[..., ::2].transpose(1, 2)]
    views[1].copy_(tensors["qkv"].detach())
    for view in views:
        assert not view.is_contiguous()
        out = run(window_attention, dict(tensors, qkv=view), **arguments)
        assert out.is_contiguous()
        torch.testing.assert_close(out, expected, rtol=0, atol=0)
    one = tensors["qkv"][:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(run(window_attention, dict(tensors, qkv=one), **arguments)[1], expected[0])
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            empty = dict(tensors, qkv=tensors["qkv"][:0])
            out = run(window_attention, empty, **arguments)
            assert out.shape == (0, 5, 7, CHANNELS)
    out = run(window_attention, empty, **arguments)
    assert torch.autograd.grad(out.sum(), tensors["table"])[0].abs().max() == 0
    nothing = projected_window_attention(torch.zeros(0, 4, 4, 8), nn.Linear(8, 24), num_heads=2, window=(2, 2))
    assert nothing.shape == (0, 4, 4, 8)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("image, window, shift", LAYOUTS)
def test_projection_commutes_with_the_gather(image, window, shift, grad):
    project = nn.Linear(6, 3 * CHANNELS).double()
    x = torch.randn(2, *image, 6, dtype=torch.float64, requires_grad=True)
    table = make(image, window)["table"]
    arguments = dict(num_heads=HEADS, window=window, shift=shift, table=table)
    with torch.set_grad_enabled(grad):
        out = projected_window_attention(x, project, **arguments)
        expected = reference.projected_window_attention(x, project, **arguments)
        torch.testing.assert_close(out, expected)
        packed = window_attention(project(x), padding=project.bias, **arguments)
        torch.testing.assert_close(out, packed)
    if grad:
        inputs = [x, table, *project.parameters()]
        for actual, wanted in zip(
            torch.autograd.grad(out.sin().sum(), inputs), torch.autograd.grad(expected.sin().sum(), inputs), strict=True
        ):
            torch.testing.assert_close(actual, wanted)


def test_a_hooked_projection_is_called_once():
    project, seen = nn.Linear(8, 24), []
    x = torch.randn(2, 64, 64, 8)
    with torch.no_grad():
        expected = projected_window_attention(x, project, num_heads=2, window=(4, 4))
        project.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
        torch.testing.assert_close(projected_window_attention(x, project, num_heads=2, window=(4, 4)), expected)
    assert seen == [(2 * 64 * 64, 24)]


# The classes of other libraries


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "size, window, shift", [((14, 14), 7, 3), ((15, 20), (4, 5), (2, 1)), ((9, 13), 4, 2), ((8, 8), 8, 0)]
)
def test_matches_timm(size, window, shift, grad):
    timm_swin = pytest.importorskip("timm.models.swin_transformer", reason="timm is not installed")
    block = timm_swin.SwinTransformerBlock(24, size, num_heads=3, window_size=window, shift_size=shift).eval()
    nn.init.normal_(block.attn.relative_position_bias_table)
    nn.init.normal_(block.attn.qkv.bias)
    attn, x = block.attn, torch.randn(2, *size, 24)
    with torch.set_grad_enabled(grad):
        ours = projected_window_attention(
            x,
            attn.qkv,
            num_heads=3,
            window=block.window_size,
            shift=block.shift_size,
            table=attn.relative_position_bias_table,
        )
        torch.testing.assert_close(attn.proj(ours), block._attn(x), rtol=1e-4, atol=2e-5)
        if grad:
            parameters = list(attn.parameters())
            pairs = (torch.autograd.grad(out.square().sum(), parameters) for out in (attn.proj(ours), block._attn(x)))
            for actual, expected in zip(*pairs, strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size, window, shift", [((16, 16), 8, 4), ((11, 14), 4, 2)])
def test_matches_timm_v2(size, window, shift):
    timm_swin = pytest.importorskip("timm.models.swin_transformer_v2", reason="timm is not installed")
    block = timm_swin.SwinTransformerV2Block(24, size, num_heads=3, window_size=window, shift_size=shift).eval()
    attn, x = block.attn, torch.randn(2, *size, 24)
    nn.init.normal_(attn.q_bias)
    nn.init.normal_(attn.v_bias)
    attn.logit_scale.data = torch.tensor([1.0, 4.0, 7.0]).view(3, 1, 1)
    bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    table = 16 * torch.sigmoid(attn.cpb_mlp(attn.relative_coords_table).view(-1, 3))
    ours = projected_window_attention(
        x,
        lambda t: F.linear(t, attn.qkv.weight, bias),
        num_heads=3,
        window=block.window_size,
        shift=block.shift_size,
        table=table,
        logit_scale=attn.logit_scale,
    )
    torch.testing.assert_close(attn.proj(ours), block._attn(x), rtol=1e-4, atol=5e-5)
    pairs = (torch.autograd.grad(out.square().sum(), attn.logit_scale)[0] for out in (attn.proj(ours), block._attn(x)))
    torch.testing.assert_close(*pairs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [(14, 14), (9, 17)])
def test_matches_torchvision(size, version):
    swin = pytest.importorskip("torchvision.models.swin_transformer", reason="torchvision is not installed")
    kind = swin.ShiftedWindowAttention if version == 1 else swin.ShiftedWindowAttentionV2
    attn = kind(24, [7, 7], [3, 3], 3).eval()
    nn.init.normal_(attn.qkv.bias)
    if version == 1:
        nn.init.normal_(attn.relative_position_bias_table)
        table, project, logit_scale = attn.relative_position_bias_table, attn.qkv, None
    else:
        bias = attn.qkv.bias.detach().clone()
        bias[24:48] = 0
        table = 16 * torch.sigmoid(attn.cpb_mlp(attn.relative_coords_table).view(-1, 3))
        project, logit_scale = (lambda t: F.linear(t, attn.qkv.weight, bias)), attn.logit_scale
    x = torch.randn(2, *size, 24)
    ours = projected_window_attention(
        x, project, num_heads=3, window=(7, 7), shift=(3, 3), table=table, wrap="padded", logit_scale=logit_scale
    )
    torch.testing.assert_close(attn.proj(ours), attn(x), rtol=1e-4, atol=5e-5)


# Caches


def test_a_changed_table_is_always_seen():
    x = torch.randn(1, 6, 6, 3 * CHANNELS)
    table = nn.Parameter(torch.randn(25, HEADS))

    def check():
        arguments = dict(num_heads=HEADS, window=(3, 3), shift=(1, 1), table=table)
        with torch.inference_mode():
            torch.testing.assert_close(window_attention(x, **arguments), reference.window_attention(x, **arguments))

    check()
    table.data.mul_(-2.0)  # does not move the version counter
    check()
    window_attention(x, num_heads=HEADS, window=(3, 3), table=table).square().sum().backward()
    torch.optim.SGD([table], lr=10.0).step()
    check()
    table.data = torch.randn(25, HEADS)
    check()


def test_sizes_in_turn_devices_and_inference_mode():
    geometry._cached.cache_clear()
    with torch.inference_mode():  # what is cached here must still serve training
        for image, window, shift in LAYOUTS * 2:
            tensors = make(image, window)
            torch.testing.assert_close(
                run(window_attention, tensors, window=window, shift=shift),
                run(reference.window_attention, tensors, window=window, shift=shift),
            )
    hits = geometry._cached.cache_info().hits
    assert hits >= len(LAYOUTS)
    for image, window, shift in LAYOUTS:
        for _, actual, expected in both(make(image, window), window=window, shift=shift):
            torch.testing.assert_close(actual, expected)
    assert geometry._cached.cache_info().hits > hits
    meta = {name: t.detach().to("meta") for name, t in make((7, 5), (3, 3)).items()}
    assert run(window_attention, meta, window=(3, 3), shift=(1, 1)).shape == (2, 7, 5, CHANNELS)
    test_matches_the_formula_in_float64((7, 5), (3, 3), (1, 1), "image", -100.0, False)


def test_fake_tensors_stay_out_of_the_cache():
    from torch._subclasses.fake_tensor import FakeTensorMode

    arguments = dict(num_heads=HEADS, window=(5, 4), shift=(2, 2), padding=None)
    geometry._cached.cache_clear()
    with FakeTensorMode():
        out = window_attention(torch.empty(1, 10, 8, 3 * CHANNELS), **arguments)
    assert out.shape == (1, 10, 8, CHANNELS)
    x = torch.randn(1, 10, 8, 3 * CHANNELS)
    torch.testing.assert_close(window_attention(x, **arguments), reference.window_attention(x, **arguments))


def test_threads_share_the_cache():
    geometry._cached.cache_clear()
    failures = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for image, window, shift in LAYOUTS * 3:
            x = torch.randn(1, *image, 3 * CHANNELS, generator=generator)
            arguments = dict(num_heads=HEADS, window=window, shift=shift, padding=x[0, 0, 0])
            if not torch.allclose(
                window_attention(x, **arguments), reference.window_attention(x, **arguments), atol=1e-5
            ):
                failures.append((seed, image, window, shift))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# PyTorch's machinery


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        self.table = nn.Parameter(torch.randn(25, HEADS))

    def forward(self, x):
        return projected_window_attention(x, self.qkv, num_heads=HEADS, window=(3, 3), shift=(1, 1), table=self.table)


def test_compiles_without_a_break():
    torch._dynamo.reset()
    module = Attention()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=False)
    x = torch.randn(2, 7, 8, CHANNELS)
    out, expected = compiled(x), module(x)
    torch.testing.assert_close(out, expected)
    pairs = (torch.autograd.grad(y.square().sum(), list(module.parameters())) for y in (out, expected))
    for actual, wanted in zip(*pairs, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x[:, :6, :6]), module(x[:, :6, :6]))


def test_export_and_deepcopy_and_state_dict():
    module, x = Attention().eval(), torch.randn(2, 7, 8, CHANNELS)
    expected = module(x)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), expected)
    torch.testing.assert_close(copy.deepcopy(module)(x), expected, rtol=0, atol=0)
    assert set(module.state_dict()) == {"qkv.weight", "qkv.bias", "table"}


def test_checkpointing_and_function_transforms():
    module, x = Attention(), torch.randn(2, 7, 8, CHANNELS, requires_grad=True)
    expected = torch.autograd.grad(module(x).square().sum(), x)[0]
    again = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), x)[0], expected)
    torch.testing.assert_close(torch.func.grad(lambda t: module(t).square().sum())(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.func.vmap(module)(x[:, None])[:, 0], module(x))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("cosine", [False, True], ids=["dot", "cosine"])
def test_autocast(cosine, grad):
    tensors = make((7, 8), (3, 3), cosine=cosine, dtype=torch.float32, head_dim=16)
    exact = run(
        reference.window_attention, {k: t.bfloat16().double() for k, t in tensors.items()}, window=(3, 3), shift=(1, 1)
    )
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        out = run(window_attention, tensors, window=(3, 3), shift=(1, 1))
        projected = projected_window_attention(
            torch.randn(1, 4, 4, 8),
            nn.Linear(8, 3 * CHANNELS),
            num_heads=HEADS,
            window=(2, 2),
            table=torch.randn(9, HEADS),
        )
    assert out.dtype == projected.dtype == torch.bfloat16
    # the table and the scale stay in float32, so they are not what the bfloat16 copies of them are
    assert (out.double() - exact).abs().max() < (0.25 if cosine else 0.03)
    if grad:
        out.float().sum().backward()
        assert tensors["table"].grad.dtype == torch.float32 and tensors["qkv"].grad.dtype == torch.float32


# Bad input

GOOD = dict(num_heads=2, window=(2, 2))


@pytest.mark.parametrize(
    "changes, kind, words",
    [
        (dict(window=7), TypeError, "window is no pair of integers: got 7"),
        (dict(window=(2, 2.0)), TypeError, "window is no pair of integers"),
        (dict(shift=(True, 0)), TypeError, "shift is no pair of integers"),
        (dict(window=(0, 2)), ValueError, r"window is not usable: got \(0, 2\)"),
        (dict(window=(-2, 2)), ValueError, "window is not usable"),
        (dict(shift=(2, 0)), ValueError, r"shift does not fit the window: got shift \(2, 0\), window \(2, 2\)"),
        (dict(shift=(0, -1)), ValueError, "shift does not fit the window"),
        (dict(num_heads=3), ValueError, "heads do not divide the channels: got C = 8, num_heads = 3"),
        (dict(num_heads=0), ValueError, "heads do not divide the channels"),
        (dict(num_heads=2.0), TypeError, "num_heads is no integer"),
        (dict(window=(3, 2)), ValueError, r"the window does not divide the image: got image \(4, 4\), window \(3, 2\)"),
        (dict(window=(3, 2), padding=torch.zeros(8)), ValueError, "padding has the wrong shape"),
        (dict(window=(3, 2), padding=torch.zeros(24).double()), TypeError, "dtypes differ"),
        (dict(padding=[0.0]), TypeError, "padding is no tensor"),
        (
            dict(table=torch.zeros(8, 2)),
            ValueError,
            r"table has the wrong shape: got \(8, 2\); expected .* = \(9, 2\) for window \(2, 2\)",
        ),
        (dict(table=torch.zeros(9, 1)), ValueError, "table has the wrong shape"),
        (dict(table=torch.zeros(9, 2, dtype=torch.int64)), TypeError, "table has an unsupported dtype"),
        (dict(table=torch.zeros(9, 2, device="meta")), ValueError, "devices differ: got table on meta"),
        (dict(wrap="timm"), ValueError, "wrap has an unknown name: got 'timm'"),
        (dict(mask_value=math.nan), ValueError, "mask_value does not mask: got nan"),
        (dict(mask_value=100.0), ValueError, "mask_value does not mask: got 100.0"),
        (dict(mask_value="-100"), TypeError, "mask_value is no number"),
        (dict(scale=0.0), ValueError, "scale is not usable: got 0.0"),
        (dict(scale=math.inf), ValueError, "scale is not usable"),
        (
            dict(logit_scale=torch.zeros(3)),
            ValueError,
            r"logit_scale has the wrong shape: got \(3,\); expected \(2,\) or \(2, 1, 1\)",
        ),
        (dict(logit_scale=2.0), TypeError, "logit_scale is no tensor"),
        (dict(logit_scale=torch.zeros(2), scale=1.0), ValueError, "scale and logit_scale are both given"),
    ],
)
def test_bad_arguments(changes, kind, words):
    functions = [lambda **arguments: window_attention(torch.zeros(1, 4, 4, 24), **arguments)]
    arguments = {**GOOD, **changes}
    if "padding" not in changes and "does not divide the image" not in words and "num_heads = 3" not in words:
        functions.append(
            lambda **arguments: projected_window_attention(torch.zeros(1, 4, 4, 8), nn.Linear(8, 24), **arguments)
        )
    for function in functions:
        with pytest.raises(kind, match=f"window_attention: .*{words}"):
            function(**arguments)


@pytest.mark.parametrize(
    "qkv, kind, words",
    [
        (torch.zeros(4, 4, 24), ValueError, "wrong number of dimensions"),
        (torch.zeros(1, 4, 4, 25), ValueError, "qkv does not hold q, k and v: got 25"),
        (torch.zeros(1, 4, 4, 0), ValueError, "heads do not divide the channels: got C = 0"),
        (torch.zeros(1, 0, 4, 24), ValueError, r"the image has no tokens: got shape \(1, 0, 4, 24\)"),
        (torch.zeros(1, 4, 4, 24, dtype=torch.int32), TypeError, "qkv has an unsupported dtype"),
        (torch.zeros(1, 4, 4, 24).to_sparse(), TypeError, "not a dense tensor"),
        ([[1.0]], TypeError, "qkv is no tensor"),
    ],
)
def test_bad_images(qkv, kind, words):
    with pytest.raises(kind, match=f"window_attention: .*{words}"):
        window_attention(qkv, **GOOD)


def test_bad_projections():
    x = torch.zeros(1, 4, 4, 8)
    for project, kind, words in (
        ("qkv", TypeError, "project is not callable: got str"),
        (lambda t: t, ValueError, "project does not give q, k and v of 2 heads"),
        (lambda t: None, TypeError, r"project\(x\) is no tensor"),
        (lambda t: F.pad(t, (0, 16))[1:], ValueError, "for each token"),
    ):
        with pytest.raises(kind, match=words):
            projected_window_attention(x, project, **GOOD)


def test_forcing_a_kernel_says_why_it_cannot_run():
    from vitkern.dispatch import use_backend

    with use_backend("triton"), pytest.raises(NotImplementedError, match=r"window_attention: .*more than 1024 tokens"):
        window_attention(torch.zeros(1, 33, 32, 24), num_heads=2, window=(33, 32))
    with use_backend("triton"), pytest.raises(NotImplementedError, match="reaches beyond the image"):
        window_attention(torch.zeros(1, 2, 2, 24), num_heads=2, window=(4, 4), shift=(3, 3), padding=torch.zeros(24))
    assert op.MAX_TOKENS == 1024
