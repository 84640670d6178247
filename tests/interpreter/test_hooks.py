"""The hooks of the loop that change a logit, a weight, a row or where a softmax starts, and its splits: against
float64, forward and every gradient."""

import math

import pytest
import torch
import triton
import triton.language as tl

import vitkern
from vitkern.kernels.loop import reductions, starts
from vitkern.kernels.loop.problem import CAPPED_LOGIT, UNIT_ROWS, Pair, Problem, dense_rows, per_token
from vitkern.kernels.loop.stream import stream_forward
from vitkern.kernels.loop.stream_backward import stream_dkdv, stream_dq
from vitkern.kernels.loop.stream_bias import stream_bias_gradient
from vitkern.kernels.machine.choices import replaced
from vitkern.kernels.tile.short_attention import LOG2_OF_E
from vitkern.reference.dropout import keep_mask

SCALE = 0.3


@triton.jit
def by_key(e, group, head, qi, ki, args):
    """WEIGH: a factor of each key, in the denominator too, and another of what is used."""
    factor = 1.0 / (1.0 + ki + 0.0 * qi)
    return e * factor, e * factor * args[0]


@triton.jit
def doubled(rows, DIM: tl.constexpr):
    """NORM: twice the rows."""
    parts = ()
    for n in tl.static_range(len(rows)):
        parts += (rows[n] * 2.0,)
    return parts


@triton.jit
def doubled_backward(grad, rows, DIM: tl.constexpr):
    parts = ()
    for n in tl.static_range(len(grad)):
        parts += (grad[n] * 2.0,)
    return parts


@triton.jit
def distance(group, i, args):
    """PREPARE: a third of each token of the program."""
    return (i * args[0] * (1.0 / 3.0),)


@triton.jit
def slanted(s, group, head, qi, ki, args, state):
    """SCORE: a third of the number of the query, or of the key where those are the program's."""
    return s + state[0]


class Run:
    """Outputs and gradients of the loop for a problem, float32, (B, H, N, D) and (B, KV, M, D)."""

    def __init__(self, q, k, v, grad, **hooks):
        (batch, heads, n, dim), (_, kv_heads, m, width) = q.shape, v.shape
        hooks.setdefault("value_dim", width if width != dim else None)
        self.problem = Problem(batch, heads, kv_heads, n, m, dim, SCALE, **hooks)
        rows = [dense_rows(t) for t in (q, k, v)]
        self.out, self.lse = torch.full((batch, heads, n, width), math.nan), torch.full((batch, heads, n), math.nan)
        self.delta = torch.empty_like(self.lse)
        self.grads = [torch.full_like(t, math.nan) for t in (q, k, v)]
        out, lse, grad = dense_rows(self.out), per_token(self.lse), dense_rows(grad)
        dq, dk, dv = map(dense_rows, self.grads)
        stream_forward(self.problem, *rows, out, lse)
        self.scale_grad = stream_dq(self.problem, *rows, out, grad, lse, self.delta, dq)
        stream_dkdv(self.problem, *rows, grad, lse, self.delta, dk, dv)
        self.rows, self.given = rows, (grad, lse, self.delta)

    def map(self, reduce, *, per_head=False):
        grad, lse, delta = self.given
        if reduce is reductions.weights:
            grad = delta = None
        options = dict(per_group=True, per_head=per_head, reduce=reduce)
        return stream_bias_gradient(self.problem, *self.rows, grad, lse, delta, **options)


def tensors(n=37, m=45, dim=16, width=None, heads=2, kv_heads=None, batch=1):
    width, kv_heads = width or dim, kv_heads or heads
    shapes = (batch, heads, n, dim), (batch, kv_heads, m, dim), (batch, kv_heads, m, width), (batch, heads, n, width)
    return [torch.randn(shape) for shape in shapes]


class Exact:
    """The same in float64, by autograd. ``change(logits)``, ``weigh(weights) -> counted, used``."""

    def __init__(
        self, q, k, v, grad, *, change=lambda s: s, weigh=lambda e: (e, e), sink=None, causal=False, rows=None
    ):
        leaves = [t.double().requires_grad_() for t in (q, k, v)]
        q, k, v = leaves
        self.sink = None if sink is None else sink.double().requires_grad_()
        share = q.shape[1] // k.shape[1]
        k, v = (t.repeat_interleave(share, 1) for t in (k, v))
        q, k = (t if rows is None else rows(t) for t in (q, k))
        logits = change(q @ k.mT * SCALE)
        if causal:
            n, m = logits.shape[-2:]
            logits = logits.masked_fill(torch.ones(n, m, dtype=torch.bool).triu(m - n + 1), -math.inf)
        top = logits.detach().amax(-1, keepdim=True).clamp(min=-1e30)
        counted, used = weigh((logits - top).exp())
        total = counted.sum(-1, keepdim=True)
        if self.sink is not None:
            total = total + (self.sink.view(-1, 1, 1) - top).exp()
        self.out = used / total.where(total > 0, 1.0) @ v
        self.lse = (total.log() + top).squeeze(-1)
        self.weights = (used / total).detach()
        self.out.backward(grad.double())
        self.grads = [t.grad for t in leaves]
        self.slopes = grad.double() @ v.detach().mT


def agree(run, exact, tolerance=2e-5):
    for actual, expected in zip((run.out, run.lse, *run.grads), (exact.out, exact.lse, *exact.grads), strict=True):
        torch.testing.assert_close(actual.double(), expected.detach(), rtol=tolerance, atol=tolerance)


CAP = 1.5
HOOKS = {
    "plain": (dict(), dict()),
    "causal": (dict(causal=True), dict(causal=True)),
    "capped": (
        dict(logit=CAPPED_LOGIT, logit_args=(CAP * LOG2_OF_E,)), dict(change=lambda s: CAP * torch.tanh(s / CAP)),
    ),
    "weighed": (
        dict(weigh=by_key, weigh_args=(0.7,)),
        dict(weigh=lambda e: (e / (1.0 + torch.arange(e.shape[-1])), 0.7 * e / (1.0 + torch.arange(e.shape[-1])))),
    ),
    "unit rows": (dict(norm=UNIT_ROWS), dict(rows=lambda t: torch.nn.functional.normalize(t, dim=-1))),
    "other rows": (dict(norm=Pair(doubled, doubled_backward)), dict(rows=lambda t: 2 * t)),
}  # fmt: skip


@pytest.mark.parametrize("dim", [16, 80])
@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_and_its_gradients(name, dim):
    given = tensors(dim=dim, n=19, m=21)
    hooks, exact = HOOKS[name]
    agree(Run(*given, **hooks), Exact(*given, **exact))


@pytest.mark.walk(3)
@pytest.mark.parametrize("name", ["plain", "causal", "capped", "weighed"])
@pytest.mark.parametrize("splits", [2, 3, 7])
def test_splits(name, splits):
    """Shares of keys and of queries, the last ones short or empty, add up to the whole."""
    given = tensors(kv_heads=1, batch=2, n=40)
    hooks, exact = HOOKS[name]
    with replaced({"stream_splits": lambda programs, turns, arch: splits}):
        run, again = Run(*given, **hooks), Run(*given, **hooks)
    agree(run, Exact(*given, **exact))
    assert all(map(torch.equal, (run.out, run.lse, *run.grads), (again.out, again.lse, *again.grads)))


def test_splits_of_rows_without_keys():
    given = tensors(n=45, m=20)
    with replaced({"stream_splits": lambda programs, turns, arch: 2}):
        run = Run(*given, causal=True)
    assert run.out[:, :, :25].eq(0).all() and run.lse[:, :, :25].eq(-math.inf).all()
    assert run.grads[0][:, :, :25].eq(0).all() and all(torch.isfinite(t).all() for t in run.grads)


def test_few_programs_of_many_turns_are_split():
    from vitkern.kernels.loop.blocks import stream_splits

    assert stream_splits(1000, 49, 90) == 1 and stream_splits(8, 23, 90) == 1
    assert stream_splits(64, 49, 90) == 4 and stream_splits(8, 49, 90) == 6


@pytest.mark.parametrize("widths", [(16, 32), (80, 24), (8, 80)])
def test_values_of_another_width(widths):
    given = tensors(dim=widths[0], width=widths[1], n=20, m=18)
    agree(Run(*given), Exact(*given))


def test_a_row_too_short_to_be_made_a_unit_row():
    """Its length counts as 1e-12, which has no gradient."""
    given = tensors(n=5, m=6)
    given[0][:, :, 2] *= 1e-13 / given[0][:, :, 2].norm(dim=-1, keepdim=True)
    run = Run(*given, norm=UNIT_ROWS)
    exact = Exact(*given, rows=lambda t: torch.nn.functional.normalize(t, dim=-1))
    torch.testing.assert_close(run.grads[0].double(), exact.grads[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("splits", [1, 3])
def test_a_sink(splits, dtype):
    given, sink = tensors(), torch.tensor([0.7, -2.0]).to(dtype)
    with replaced({"stream_splits": lambda programs, turns, arch: splits}):
        run = Run(*given, start=starts.sink, start_args=(sink,))
    exact = Exact(*given, sink=sink)
    agree(run, exact)
    grad = -(torch.exp(sink.float()[:, None] - run.lse) * run.delta).sum((0, 2))
    torch.testing.assert_close(grad.double(), exact.sink.grad, rtol=1e-5, atol=1e-5)


def test_the_scale_of_a_head_has_a_gradient_without_unit_rows():
    given = tensors(n=20, m=18)
    scale = torch.tensor([0.4, 1.3])
    exact = scale.double().requires_grad_()
    expected = Exact(*given, change=lambda s: s / SCALE * exact.view(-1, 1, 1))
    run = Run(*given, head_scale=scale)
    agree(run, expected)
    torch.testing.assert_close(run.scale_grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def test_what_is_prepared_is_seen_by_each_score():
    given = tensors(n=20, m=35)
    run = Run(*given, score=slanted, score_args=(1.0,), prepare=distance)
    agree_out = Exact(*given).out  # a logit that all keys of a query share changes nothing but the denominator
    torch.testing.assert_close(run.out.double(), agree_out.detach(), rtol=2e-5, atol=2e-5)
    lse = Exact(*given).lse + torch.arange(20) / 3 / LOG2_OF_E
    torch.testing.assert_close(run.lse.double(), lse.detach(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("per_head", [True, False])
def test_maps_of_weights_and_of_relevance(per_head):
    given = tensors(batch=2, n=20, m=18)
    run, exact = Run(*given), Exact(*given)
    expected = dict(weights=exact.weights, relevance=(exact.weights * exact.slopes).clamp(min=0))
    for name, whole in expected.items():
        found = run.map(getattr(reductions, name), per_head=per_head)
        torch.testing.assert_close(
            found.double(), whole if per_head else whole.sum(1, keepdim=True), rtol=2e-5, atol=2e-5
        )


def kept(n, p):
    """Weights that dropout keeps, of two samples and heads, and the seed. With one-hot values the output is the dropped
    probabilities."""
    q, k = torch.randn(2, 2, n, 32), torch.randn(2, 2, n, 32)
    torch.manual_seed(7)
    out = vitkern.attention(q, k, torch.eye(n, 32).expand(2, 2, n, 32), dropout_p=p)[..., :n]
    torch.manual_seed(7)
    return out != 0, torch.randint(0, 2**62, (1,))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_formula_of_dropout_draws_the_kernels_mask(p):
    found, seed = kept(24, p)
    assert torch.equal(found, keep_mask(seed, (2, 2, 24, 24), p))


def test_a_weight_whose_number_is_the_probability_is_kept():
    _, seed = kept(2, 0.5)
    low, high = 0.0, 1.0  # float32 around the number of the first weight
    for _ in range(60):
        middle = torch.tensor((low + high) / 2).item()
        low, high = (middle, high) if keep_mask(seed, (1, 1, 1, 1), middle) else (low, middle)
    assert 0 < low < 1 and kept(2, low)[0][0, 0, 0, 0] and not kept(2, high)[0][0, 0, 0, 0]
