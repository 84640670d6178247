"""Talking-heads attention on the PyTorch path, and its definition: against timm's CaiT, stored results of the official
code, sums written out by hand; chunks; the error contract. Its kernels: `python -m vitkern lab`, from
vitkern/lab/specimens/talking_heads_attention.py, and stored results in `tests/interpreter/test_stored.py`."""

import math

import pytest
import stored
import torch
from timm.models.cait import TalkingHeadAttn

import vitkern
from vitkern.lab.specimens.talking_heads_attention import LAYERS
from vitkern.nn import TalkingHeadsAttention
from vitkern.ops.talking_heads_attention import chunks, talking_heads_attention
from vitkern.reference import talking_heads_attention as reference
from vitkern.testing import assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def operands(batch=2, tokens=5, heads=3, dim=4, dtype=torch.float64):
    shapes = (heads, heads), (heads, heads), (heads,), (heads,)
    qkv = torch.randn(batch, tokens, 3, heads, dim, dtype=dtype)
    return [
        x.requires_grad_()
        for x in (qkv, *(torch.randn(shape, dtype=torch.promote_types(dtype, torch.float32)) for shape in shapes))
    ]


def graded(function, tensors, grad):
    out = function(*tensors)
    return [out, *torch.autograd.grad(out, tensors, grad.to(out.dtype))]


def by_hand(qkv, before, after, before_bias, after_bias, scale):
    """(N, 3, H, D) -> (N, H, D), sum by sum."""
    tokens, _, heads, _ = qkv.shape
    out = torch.zeros(qkv.shape[:1] + qkv.shape[2:], dtype=torch.float64)
    q, k, v = qkv.unbind(1)
    for i in range(tokens):
        scores = scale * torch.einsum("hd,jhd->hj", q[i], k)
        weights = []
        for g in range(heads):
            logits = [before_bias[g] + sum(before[g, h] * scores[h, j] for h in range(heads)) for j in range(tokens)]
            total = sum(math.exp(logit) for logit in logits)
            weights.append([math.exp(logit) / total for logit in logits])
        for g in range(heads):
            for j in range(tokens):
                weight = after_bias[g] + sum(after[g, h] * weights[h][j] for h in range(heads))
                out[i, g] += weight * v[j, g]
    return out


def test_definition():
    qkv, *mixing = (x.detach() for x in operands(tokens=4, dim=3))
    expected = torch.stack([by_hand(image, *mixing, 0.3) for image in qkv])
    for source in (reference, vitkern):
        torch.testing.assert_close(source.talking_heads_attention(qkv, *mixing, scale=0.3), expected)


def test_definition_gradients():
    tensors = operands(1, 3, 2, 2)
    for source in (reference, vitkern):
        assert torch.autograd.gradcheck(source.talking_heads_attention, tensors)
    assert torch.autograd.gradgradcheck(talking_heads_attention, tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_reference(dtype):
    for sizes in ((2, 49, 3, 32), (1, 7, 1, 1), (1, 33, 17, 8)):
        tensors = [x.detach() for x in operands(*sizes, dtype)]
        out = talking_heads_attention(*tensors)
        assert out.dtype == dtype and out.is_contiguous()
        ideal = reference.talking_heads_attention(
            *(x.float() for x in tensors), low_precision=None if dtype == torch.float32 else dtype
        )
        exact = reference.talking_heads_attention(*(x.double() for x in tensors))
        # PyTorch rounds scores and their mixture too, where one kernel does not.
        assert_close(out, ideal.to(dtype), exact, margin=2 if dtype == torch.float32 else 12)


def test_heads_that_do_not_talk_attend_as_ever():
    qkv = torch.randn(2, 9, 3, 4, 8, dtype=torch.float64)
    same, nothing = torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    expected = vitkern.attention_qkvpacked(qkv)
    torch.testing.assert_close(talking_heads_attention(qkv, same, same, nothing, nothing), expected)
    torch.testing.assert_close(talking_heads_attention(qkv, same, same), expected)


def test_no_softmax_sees_a_bias_of_its_logits():
    qkv, before, after, before_bias, after_bias = operands()
    out = talking_heads_attention(qkv, before, after, before_bias, after_bias)
    torch.testing.assert_close(out, talking_heads_attention(qkv, before, after, None, after_bias))
    assert torch.equal(torch.autograd.grad(out.sum(), before_bias)[0], torch.zeros_like(before_bias))


@pytest.mark.parametrize("most", [1, 200, 10**6], ids=["a few queries", "an image", "all images"])
def test_chunks_are_the_formula(most, monkeypatch):
    monkeypatch.setitem(chunks.SCORES, "cpu", most)
    tensors, scale = operands(3, 20, 2, 4), 0.4
    grad = torch.randn(3, 20, 2, 4, dtype=torch.float64)
    whole = graded(lambda *x: chunks.formula(*x, scale)[0], tensors, grad)
    torch.testing.assert_close(graded(lambda *x: chunks.in_chunks(*x, scale)[0], tensors, grad), whole)
    parts = [rows for _, rows in chunks._chunks(tensors[0])]
    assert len(parts) == {1: 6, 200: 6, 10**6: 1}[most]


def test_products_beyond_float16_are_scaled_first():
    qkv, before, after, *_ = (x.detach() for x in operands(1, 9, 2, 64, torch.float16))
    qkv[:, :, :2] = 40.0  # 40^2 D is beyond float16, an eighth of it is not
    exact = [x.double().requires_grad_() for x in (qkv, before, after)]
    given = [x.requires_grad_() for x in (qkv, before, after)]
    grad = torch.randn(1, 9, 2, 64, dtype=torch.float64)
    for found, expected in zip(
        *(graded(vitkern.talking_heads_attention, x, grad) for x in (given, exact)), strict=True
    ):
        assert found.isfinite().all()
        if found.shape != before.shape:  # of constant scores it is a difference of large numbers
            torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=1e-2 * expected.abs().max().item())


def test_gradients_of_chunks_are_added_up_in_float32(monkeypatch):
    tensors, grad = operands(1, 176, 1, 16, torch.bfloat16), torch.full((1, 176, 1, 16), 2.0**-4, dtype=torch.bfloat16)
    tensors[2].data.fill_(0.0), tensors[4].data.fill_(1.0)  # each value weighs 1: its gradient is a sum over queries
    grad[:, :16] = 16.0  # to 256, the first chunk's, bfloat16 can add no 1, which each of the ten others has
    monkeypatch.setitem(chunks.SCORES, "cpu", 1)
    gradient = torch.autograd.grad(talking_heads_attention(*tensors), tensors[0], grad)[0]
    assert torch.equal(gradient[:, :, 2], torch.full_like(grad, 266.0))


def test_no_scores_are_kept():
    tensors = operands(1, 200, 2, 4)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        talking_heads_attention(*tensors)
    assert 0 < max(sizes) <= 200 * 3 * 2 * 4


@pytest.mark.parametrize("shape", [(0, 5, 3, 2, 4), (2, 0, 3, 2, 4), (2, 5, 3, 0, 4)], ids=str)
def test_nothing_to_compute(shape):
    heads = shape[3]
    tensors = [torch.randn(s, requires_grad=True) for s in (shape, *[(heads, heads)] * 2, *[(heads,)] * 2)]
    out = talking_heads_attention(*tensors)
    assert out.shape == (*shape[:2], *shape[3:])
    for gradient in torch.autograd.grad(out.sum(), tensors[1:]):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_any_strides():
    qkv = torch.randn(2, 3, 8, 5, 6).permute(0, 3, 1, 4, 2)[..., ::2]  # (2, 5, 3, 6, 4)
    matrices = [torch.randn(12, 6)[::2].T for _ in range(2)]
    expected = talking_heads_attention(qkv.contiguous(), *(x.contiguous() for x in matrices))
    torch.testing.assert_close(talking_heads_attention(qkv, *matrices), expected)


def test_autocast_dtypes():
    tensors = operands(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = talking_heads_attention(*tensors)
    assert out.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.sum(), tensors))


def test_dropped_weights():
    """All mixed weights are 1, and the values tell them apart."""
    qkv = torch.eye(64)[None, :, None, None].expand(-1, -1, 3, -1, -1)  # (1, 64, 3, 1, 64)
    nothing, one = torch.zeros(1, 1), torch.ones(1)
    found = talking_heads_attention(qkv, nothing, nothing, None, one, dropout_p=0.25)
    assert set(found.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert 0.7 < found.count_nonzero() / found.numel() < 0.8


@pytest.mark.parametrize("tokens", [1, 35])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_as_timm(tokens, qkv_bias):
    theirs, ours = TalkingHeadAttn(24, 3, qkv_bias=qkv_bias), TalkingHeadsAttention(24, 3, qkv_bias=qkv_bias)
    theirs, ours = theirs.double(), ours.double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, tokens, 24, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    found = [
        graded(lambda *_, m=module: m(x), [x, *dict(sorted(module.named_parameters())).values()], grad)
        for module in (theirs, ours)
    ]
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("name", ["proj_l", "proj_w", "attn_drop"])
def test_modules_that_somebody_watches_are_called(name):
    module, x, calls = TalkingHeadsAttention(24, 3), torch.randn(2, 7, 24), []
    expected = module(x)
    getattr(module, name).register_forward_hook(lambda *call: calls.append(call[1][0].shape))
    torch.testing.assert_close(module(x), expected)
    assert calls == [(2, 3, 7, 7) if name == "attn_drop" else (2, 7, 7, 3)]


@stored.each("cait_talking_heads")
def test_stored_results(path):
    config, tensors = stored.read(path)
    del config["input"]
    stored.assert_stored(TalkingHeadsAttention(config.pop("dim"), **config), tensors)


def test_what_the_benchmarks_compare_with_computes_the_same():
    small = type(LAYERS[0])("", 33, 2, 16)
    problem = small.problem(2)
    tensors = {name: x.float() for name, x in problem.inputs(torch.Generator().manual_seed(0)).items()}
    torch.testing.assert_close(small.eager(problem.options)(**tensors), problem.reference(**tensors))


X, W = torch.zeros(2, 5, 3, 2, 4), torch.zeros(2, 2)
MATCH = r"does not match the heads: got \({}\) for qkv \(2, 5, 3, 2, 4\) of 2 heads; expected \({}\). Split"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0], W, W), {}, TypeError, "qkv is no tensor: got list"),
        ((X.int(), W, W), {}, TypeError, "qkv has an unsupported dtype: got torch.int32"),
        ((X[0], W, W), {}, ValueError, "qkv has the wrong number of dimensions"),
        ((X[:, :, :2], W, W), {}, ValueError, r"qkv has the wrong shape: got \(2, 5, 2, 2, 4\)"),
        ((X[..., :0], W, W), {}, ValueError, "head dim is 0"),
        ((X, None, W), {}, TypeError, "before is no tensor: got NoneType"),
        ((X, torch.zeros(3, 3), W), {}, ValueError, f"before {MATCH.format('3, 3', '2, 2')}"),
        ((X, W, torch.zeros(2, 3)), {}, ValueError, f"after {MATCH.format('2, 3', '2, 2')}"),
        ((X, W, W, torch.zeros(3)), {}, ValueError, f"before_bias {MATCH.format('3,', '2,')}"),
        ((X, W, W, None, W), {}, ValueError, f"after_bias {MATCH.format('2, 2', '2,')}"),
        ((X, W, W.to("meta")), {}, ValueError, "devices differ: got qkv on cpu, after on meta"),
        ((X, W, W), dict(scale=0.0), ValueError, "scale is not usable: got 0.0"),
        ((X, W, W), dict(dropout_p=1.0), ValueError, "dropout_p is no probability: got 1.0"),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=f"^talking_heads_attention: {message}"):
        talking_heads_attention(*arguments, **options)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"^TalkingHeadsAttention: channels do not split into heads: got dim=10"):
        TalkingHeadsAttention(10, 4)
