"""Dense attention in the interpreter, against float64: the streaming loop, in 16 by 16 tiles so that small shapes
cross block boundaries,
and the wiring of the one-pass kernels."""

import functools
from typing import NamedTuple

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vitkern.kernels import attention as launchers
from vitkern.kernels.loop import tokens
from vitkern.kernels.loop.problem import UNIT_ROWS, Problem, Rows, per_token
from vitkern.kernels.loop.stream import stream_forward
from vitkern.kernels.loop.stream_backward import stream_dkdv, stream_dq
from vitkern.kernels.loop.stream_bias import stream_bias_gradient
from vitkern.kernels.machine.blocks import Config
from vitkern.kernels.machine.choices import replaced
from vitkern.ops.attention import attention, attention_qkvpacked, attention_qkvpacked_op
from vitkern.reference import attention as reference
from vitkern.testing import Pool, compare

pytestmark = pytest.mark.interpreter


class Case(NamedTuple):
    """Shape and terms of one problem; ``bias`` and ``mask`` are the shapes of those tensors."""

    n: int
    m: int
    head_dim: int
    batch: int = 1
    heads: int = 2
    kv_heads: int = 2
    bias: tuple | None = None
    mask: tuple | None = None
    additive_mask: bool = False
    key_padding: bool = False
    causal: bool = False
    scale: float | None = None


CASES = {
    "even": Case(32, 32, 16),
    "one token": Case(1, 1, 8),
    "one key": Case(19, 1, 16),
    "odd": Case(19, 37, 20),
    "head 24": Case(33, 17, 24, scale=0.3),
    "head 72": Case(17, 18, 72, heads=1, kv_heads=1),
    "head 256": Case(5, 17, 256, heads=1, kv_heads=1),
    "grouped query": Case(18, 20, 16, heads=4),
    "multi query, causal": Case(35, 20, 16, heads=3, kv_heads=1, causal=True),
    "causal": Case(34, 34, 16, causal=True),
    "causal, more keys": Case(18, 37, 16, causal=True),
    "causal, more queries": Case(37, 18, 16, causal=True),
    "bias of the batch": Case(18, 33, 16, batch=3, heads=1, kv_heads=1, bias=(1, 1, 18, 33)),
    "bias of the head": Case(18, 20, 16, batch=2, bias=(2, 18, 20)),
    "bias of each": Case(17, 18, 16, batch=2, bias=(2, 2, 17, 18)),
    "bias of the keys": Case(18, 20, 16, batch=2, bias=(2, 1, 1, 20)),
    "bias of the queries": Case(18, 20, 16, batch=2, bias=(1, 2, 18, 1)),
    "bias, grouped, causal": Case(18, 20, 16, heads=4, bias=(1, 1, 18, 20), causal=True),
    "bool mask": Case(20, 33, 16, batch=2, mask=(2, 1, 20, 33)),
    "bool mask of the keys": Case(20, 33, 16, mask=(1, 33)),
    "additive mask": Case(20, 33, 16, mask=(1, 2, 20, 33), additive_mask=True),
    "key padding": Case(17, 33, 16, batch=2, key_padding=True),
    "everything": Case(18, 33, 24, batch=2, bias=(2, 18, 33), mask=(18, 33), key_padding=True, causal=True),
}


def problem(case: Case, dtype: torch.dtype):
    """q, k, v, bias and the keyword arguments; query 0 is fully masked where there is a mask."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    q = normal(case.batch, case.n, case.heads, case.head_dim).transpose(1, 2)
    k = normal(case.batch, case.m, case.kv_heads, case.head_dim).transpose(1, 2)
    v = normal(case.batch, case.m, case.kv_heads, case.head_dim).transpose(1, 2)
    bias = None if case.bias is None else normal(*case.bias)
    options = {"causal": case.causal, "scale": case.scale}
    if case.mask is not None:
        allowed = torch.rand(case.mask, generator=generator) > 0.4
        if case.mask[-2] > 1:
            allowed[..., 0, :] = False
        options["mask"] = allowed
        if case.additive_mask:
            options["mask"] = normal(*case.mask).masked_fill(~allowed, -torch.inf)
    if case.key_padding:
        options["key_padding_mask"] = torch.rand(case.batch, case.m, generator=generator) > 0.3
        options["key_padding_mask"][0] = False
    return (q, k, v, bias), options, normal(case.batch, case.heads, case.n, case.head_dim)


def solve(function, operands, options, grad):
    """out, lse and the gradients of every operand that is there."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in operands]
    q, k, v, bias = leaves
    out, lse = function(q, k, v, bias=bias, return_lse=True, **options)
    gradients = torch.autograd.grad(out, [t for t in leaves if t is not None], grad.to(out.dtype))
    return out, lse, *gradients


@pytest.fixture(autouse=True)
def _loop_only(request, monkeypatch):
    """Small shapes belong to the one-pass kernels; here they run in the loop unless a test asks for the launcher's
    choice.
    """
    if "one_pass" not in request.node.name:
        monkeypatch.setattr(launchers, "takes_short", lambda *_, **__: False)


@functools.cache
def comparisons(name: str, dtype: torch.dtype):
    """{tensor: (rule (a) and (c), magnitude)} for a case."""
    operands, options, grad = problem(CASES[name], dtype)
    wide = [None if t is None else t.double() for t in operands]
    exact = solve(reference.attention, wide, options, grad)
    ideal = solve(functools.partial(reference.attention, low_precision=dtype), operands, options, grad)
    actual = solve(attention, operands, options, grad)
    largest = (wide[0].abs().max() ** 2 * CASES[name].head_dim).item()  # bounds the scores
    slack = 2 * torch.finfo(torch.float32).eps * (1 + largest)
    names = ("out", "lse", "dq", "dk", "dv", "dbias")
    results = {}
    for tensor, a, i, e in zip(names, actual, ideal, exact, strict=False):
        magnitude = e[e.isfinite()].abs().max().item() if e.isfinite().any() else 0.0
        results[tensor] = compare(a, i.to(a.dtype), e, slack=slack * max(magnitude, 1.0)), magnitude
    return results


@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    failed = {tensor: result for tensor, (result, _) in comparisons(name, torch.float32).items() if not result.passed}
    assert not failed, failed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", ["odd", "head 72", "multi query, causal", "everything", "bias of the head"])
def test_half_precision(name, dtype):
    failed = {tensor: result for tensor, (result, _) in comparisons(name, dtype).items() if not result.passed}
    assert not failed, failed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_pooled_errors_are_the_ideals(dtype):
    pool = Pool()
    for name in ("odd", "head 72", "multi query, causal", "everything", "bias of the head"):
        for tensor, (result, magnitude) in comparisons(name, dtype).items():
            if tensor != "dbias":
                pool.add(tensor, torch.float32 if tensor == "lse" else dtype, result, magnitude)
    assert not pool.failures(), pool.failures()


def terms(bias=None, mask=None, key_mask=None):
    return launchers.Terms(bias, mask, key_mask, None, None, 0.3, False, 0.0, 0.0)


@pytest.mark.parametrize(
    "name",
    ["odd", "bias of the batch", "bias of each", "bias of the keys", "bool mask", "additive mask", "key padding"],
)
def test_one_pass_kernels_agree_with_the_loop(name, monkeypatch):
    operands, options, grad = problem(CASES[name], torch.float32)
    assert launchers.takes_short(*operands[:3], terms(*operands[3:]))
    one_pass = solve(attention, operands, options, grad)
    monkeypatch.setattr(launchers, "takes_short", lambda *_, **__: False)
    loop = solve(attention, operands, options, grad)
    torch.testing.assert_close(one_pass, loop, rtol=0, atol=1e-5)


def test_launcher_chooses_one_pass_where_it_may():
    q = torch.randn(1, 2, 20, 16)
    half = torch.randn(1, 2, 65, 64).half()
    assert launchers.takes_short(q, q, q, terms(mask=q))
    assert launchers.takes_short(half, half, half, terms())
    assert not launchers.takes_short(half, half, half, terms(mask=q))
    assert not launchers.takes_short(q, q[:, :1], q[:, :1], terms())
    assert not launchers.takes_short(q, q, q[..., :8], terms())
    for one in (dict(causal=True), dict(seed=torch.zeros(1)), dict(softcap=1.0), dict(sinks=torch.zeros(2))):
        assert not launchers.takes_short(q, q, q, terms()._replace(**one))


def test_fully_masked_rows_are_zero_with_zero_gradients():
    operands, options, grad = problem(CASES["bool mask"], torch.float32)
    out, lse, dq, dk, dv = solve(attention, operands, options, grad)
    assert (out[:, :, 0] == 0).all() and (dq[:, :, 0] == 0).all()
    assert torch.isneginf(lse[:, :, 0]).all() and torch.isfinite(lse[:, :, 1:]).all()
    assert all(torch.isfinite(t).all() for t in (out, dq, dk, dv))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)], ids=["B", "H", "N", "M"])
def test_empty(shape):
    batch, heads, n, m = shape
    q = torch.randn(batch, heads, n, 16, requires_grad=True)
    k = torch.randn(batch, heads, m, 16, requires_grad=True)
    bias = torch.randn(1, heads, n, m, requires_grad=True)
    out = attention(q, k, k, bias=bias)
    assert out.shape == q.shape and (out == 0).all()
    for leaf, gradient in zip((q, k, bias), torch.autograd.grad(out.sum(), (q, k, bias)), strict=True):
        assert gradient.shape == leaf.shape and (gradient == 0).all()


def layouts():
    base = torch.randn(2, 2, 18, 24)
    packed = torch.randn(2, 18, 3, 2, 24)
    misaligned = torch.randn(2 * 2 * 18 * 24 + 1)[1:].view(2, 2, 18, 24)
    return {
        "contiguous": base,
        "slice of packed": packed[:, :, 1].transpose(1, 2),
        "last stride": base.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded batch": base[:1].expand(2, -1, -1, -1),
        "odd storage offset": misaligned,
        "odd row stride": torch.randn(2, 2, 18, 25)[..., :24],
        "reversed heads first": torch.randn(2, 18, 2, 24).permute(2, 0, 1, 3),
    }


@pytest.mark.parametrize("layout", layouts())
def test_any_strides(layout):
    q = layouts()[layout]
    grad = torch.randn(2, 2, 18, 24)
    plain = solve(attention, (q.contiguous(), q.contiguous(), q.contiguous(), None), {}, grad)
    strided = (q.detach().requires_grad_(), q.detach().requires_grad_(), q.detach().requires_grad_())
    out = attention(*strided)
    gradients = torch.autograd.grad(out, strided, grad.transpose(2, 3).contiguous().transpose(2, 3))
    torch.testing.assert_close((out, *gradients), (plain[0], *plain[2:]), rtol=0, atol=1e-6)
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("head_dim", [16, 20])
def test_packed_is_the_unpacked_with_one_gradient(head_dim):
    qkv = torch.randn(2, 19, 3, 2, head_dim, requires_grad=True)
    bias = torch.randn(1, 2, 19, 19, requires_grad=True)
    grad = torch.randn(2, 19, 2, head_dim)
    out = attention_qkvpacked(qkv, bias=bias)
    dqkv, dbias = torch.autograd.grad(out, (qkv, bias), grad)
    q, k, v = (t.detach().transpose(1, 2).requires_grad_() for t in qkv.unbind(2))
    apart = attention(q, k, v, bias=bias)
    *apart_gradients, apart_dbias = torch.autograd.grad(apart, (q, k, v, bias), grad.transpose(1, 2))
    assert out.is_contiguous() and dqkv.is_contiguous()
    assert torch.equal(out, apart.transpose(1, 2)) and torch.equal(dbias, apart_dbias)
    assert torch.equal(dqkv, torch.stack([t.transpose(1, 2) for t in apart_gradients], 2))


def test_a_bias_of_another_dtype_keeps_its_own():
    operands, options, grad = problem(CASES["bias of the head"], torch.float16)
    bias = operands[3].float() * 1.001
    exact = solve(reference.attention, [t.double() for t in (*operands[:3], bias)], options, grad)
    actual = solve(attention, (*operands[:3], bias), options, grad)
    assert actual[-1].dtype == torch.float32
    torch.testing.assert_close(actual[-1].double(), exact[-1], rtol=0, atol=2e-3)


def dropped_weights(seed, n, m, dropout_p):
    """(B, H, N, M) weights after dropout, read through an identity in place of v."""
    torch.manual_seed(seed)
    q, k = torch.randn(2, 2, n, m), torch.randn(2, 2, m, m)
    return q, k, attention(q, k, torch.eye(m).expand(2, 2, m, m), dropout_p=dropout_p).detach()


def test_dropout_drops_the_stated_share_and_follows_the_seed():
    q, k, weights = dropped_weights(1, 48, 32, 0.25)
    kept = weights != 0
    assert abs(kept.float().mean().item() - 0.75) < 0.025  # 6144 draws: 4.5 standard deviations
    flat = kept.flatten(0, 1).flatten(1).float()
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.12  # heads and batch entries draw apart
    torch.testing.assert_close(weights[kept], (torch.softmax(q @ k.mT / 32**0.5, -1) / 0.75)[kept])
    assert torch.equal(weights, dropped_weights(1, 48, 32, 0.25)[2])
    torch.manual_seed(2)
    assert not torch.equal(kept, attention(q, k, torch.eye(32).expand(2, 2, 32, 32), dropout_p=0.25) != 0)


def test_dropout_gradients_are_those_of_the_same_mask_at_any_tile_size():
    n, m, d = 18, 32, 32
    keep = dropped_weights(3, n, m, 0.5)[2] != 0
    tiles = dict(dq=Config(16, 32, 1, 1), dkdv=Config(32, 16, 1, 1), bias=Config(32, 32, 1, 1))
    torch.manual_seed(3)
    torch.randn(2, 2, n, m), torch.randn(2, 2, m, m)  # the generator is where `dropped_weights` drew its seed
    generator = torch.Generator().manual_seed(5)
    leaves = [torch.randn(2, 2, rows, d, generator=generator, requires_grad=True) for rows in (n, m, m)]
    leaves.append(torch.randn(1, 2, n, m, generator=generator, requires_grad=True))
    grad = torch.randn(2, 2, n, d, generator=generator)
    out = attention(*leaves[:3], bias=leaves[3], dropout_p=0.5)
    q, k, v, bias = (t.detach().double().requires_grad_() for t in leaves)
    expected = (torch.softmax(q @ k.mT / d**0.5 + bias, -1) * keep * 2) @ v
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    with replaced({f"stream_{kernel}_config": lambda *_, config=config: config for kernel, config in tiles.items()}):
        gradients = torch.autograd.grad(out, leaves, grad)
    wanted = torch.autograd.grad(expected, (q, k, v, bias), grad.double())
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient.double(), want, rtol=0, atol=1e-5)


def test_runs_are_bit_equal():
    operands, options, grad = problem(CASES["bias of the batch"], torch.float32)
    first, second = solve(attention, operands, options, grad), solve(attention, operands, options, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_opcheck_with_a_padding_mask():
    qkv = torch.randn(1, 5, 3, 2, 8, requires_grad=True)
    mask, sinks = torch.ones(1, 5, dtype=torch.bool), torch.randn(2, requires_grad=True)
    torch.library.opcheck(attention_qkvpacked_op.overload, (qkv, None, None, mask, sinks, None, 0.3, True, 0.0, 1.5))


def test_checkpoint_redraws_the_same_dropout():
    q, k, v = (torch.randn(1, 2, 9, 16, requires_grad=True) for _ in range(3))

    def run(q, k, v):
        return attention(q, k, v, dropout_p=0.5)

    torch.manual_seed(4)
    plain = torch.autograd.grad(run(q, k, v).square().sum(), (q, k, v))
    torch.manual_seed(4)
    again = torch.autograd.grad(checkpoint(run, q, k, v, use_reentrant=False).square().sum(), (q, k, v))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_exports_with_the_operator_inside():
    class Block(torch.nn.Module):
        def forward(self, qkv):
            return attention_qkvpacked(qkv)

    qkv = torch.randn(1, 5, 3, 2, 8)
    program = torch.export.export(Block(), (qkv,))
    assert any(node.target is attention_qkvpacked_op.overload for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(qkv), attention_qkvpacked(qkv))


def window_tokens(image, window, shift):
    """(groups, tokens) flat indices into a padded image that was rolled after padding, and which of them are
    padding.
    """
    (height, width), (window_h, window_w) = image, window
    rows, cols = -(-height // window_h), -(-width // window_w)
    y, x = torch.meshgrid(torch.arange(rows * window_h), torch.arange(cols * window_w), indexing="ij")
    y, x = (y + shift[0]) % (rows * window_h), (x + shift[1]) % (cols * window_w)
    flat = torch.where((y < height) & (x < width), y * width + x, -1)
    return flat.view(rows, window_h, cols, window_w).transpose(1, 2).reshape(rows * cols, -1), rows, cols


@pytest.mark.parametrize("cosine", [False, True], ids=["scale", "cosine"])
def test_windows_with_padding(cosine):
    """The loop under the ``window`` hook, with padding rows and cosine scores, against an explicit gather."""
    image, window, shift, heads, d = (5, 7), (4, 5), (1, 2), 2, 16
    where, rows, cols = window_tokens(image, window, shift)
    groups, n = where.shape
    qkv = torch.randn(image[0] * image[1], 3, heads, d, dtype=torch.float64, requires_grad=True)
    padding = torch.randn(3, heads, d, dtype=torch.float64, requires_grad=True)
    factor = torch.tensor([3.0, 7.0], dtype=torch.float64, requires_grad=True)
    grad = torch.randn(image[0] * image[1], heads, d, dtype=torch.float64)

    everything = torch.cat([qkv, padding[None]])[where]  # -1 is the padding row; (groups, n, 3, heads, d)
    q, k, v = everything.permute(2, 0, 3, 1, 4)
    if cosine:
        q, k = torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
    logits = q @ k.mT * (factor[:, None, None] if cosine else 0.4)
    logits.retain_grad()
    result = (logits.softmax(-1) @ v).transpose(1, 2)  # (groups, n, heads, d)
    expected = torch.zeros_like(grad).index_put((where[where >= 0],), result[where >= 0])
    expected.backward(grad)

    base = qkv.detach().float()
    out, dqkv = torch.zeros(image[0] * image[1], heads, d), torch.zeros(image[0] * image[1], 3, heads, d)

    def rows_of(tensor):
        return Rows(tensor, tensor.stride(1), (0, image[1] * tensor.stride(0), tensor.stride(0)))

    args = tokens.window_args(image, (rows * window[0], cols * window[1]), (rows, cols), window, shift, False)
    stream = Problem(
        groups, heads, heads, n, n, d, 0.4, tokens.window, tokens.window, args, args,
        padding=padding.detach().float(),
        **(dict(head_scale=factor.detach().float(), norm=UNIT_ROWS) if cosine else {}),
    )  # fmt: skip
    operands = [rows_of(base[:, part]) for part in range(3)]
    gradients = [rows_of(dqkv[:, part]) for part in range(3)]
    statistics, delta = torch.empty(2, 1, heads, *image).unbind(0)
    lse = per_token(statistics)
    stream_forward(stream, *operands, rows_of(out), lse)
    upstream = rows_of(grad.float())
    cosine_grad = stream_dq(stream, *operands, rows_of(out), upstream, lse, delta, gradients[0])
    padding_grad = stream_dkdv(stream, *operands, upstream, lse, delta, *gradients[1:])
    bias_grad = stream_bias_gradient(stream, *operands, upstream, lse, delta, per_group=False, per_head=True)

    def close(actual, want):
        torch.testing.assert_close(actual.double(), want.detach(), rtol=0, atol=2e-5)

    close(out, expected)
    logs = logits.logsumexp(-1).transpose(1, 2)  # (groups, n, heads)
    close(
        statistics[0].flatten(1).mT,
        torch.zeros(grad.shape[:2]).double().index_put((where[where >= 0],), logs[where >= 0]),
    )
    close(dqkv, qkv.grad)
    close(padding_grad, padding.grad)
    close(bias_grad, logits.grad.sum(0, keepdim=True))
    if cosine:
        close(cosine_grad, factor.grad)
    else:
        assert cosine_grad is None


def test_cosine_of_a_zero_vector_is_finite():
    q = torch.randn(1, 1, 5, 16)
    q[0, 0, 2] = 0
    stream = Problem(1, 1, 1, 5, 5, 16, 1.0, head_scale=torch.tensor([5.0]), norm=UNIT_ROWS)
    operand = Rows(q, 80, (80, 16))
    out, lse, delta, dq, dk, dv = (torch.empty(1, 1, 5, 16), *torch.empty(2, 1, 1, 5), *torch.empty(3, 1, 1, 5, 16))
    outputs = [Rows(t, 80, (80, 16)) for t in (out, dq, dk, dv)]
    stream_forward(stream, operand, operand, operand, outputs[0], per_token(lse))
    stream_dq(stream, operand, operand, operand, outputs[0], operand, per_token(lse), delta, outputs[1])
    stream_dkdv(stream, operand, operand, operand, operand, per_token(lse), delta, *outputs[2:])
    assert all(torch.isfinite(t).all() for t in (out, dq, dk, dv, lse))
    unit = torch.nn.functional.normalize(q, dim=-1)
    torch.testing.assert_close(out, (unit @ unit.mT * 5).softmax(-1) @ q)
