"""Policy attention on the PyTorch path, and its definition: stored results of DynamicViT's code, sums written out by
hand, what it is where all tokens count or none; chunks; the error contract. Its kernels: `python -m vitkern lab`, from
vitkern/lab/specimens/policy_attention.py, and stored results in `tests/interpreter/test_stored.py`."""

import math
from functools import partial

import pytest
import stored
import torch
from torch import nn

import vitkern
from vitkern.lab.specimens.policy_attention import LAYERS
from vitkern.nn import PolicyAttention
from vitkern.nn.policy_attention import keep_tokens
from vitkern.ops.policy_attention import chunks, policy_attention
from vitkern.reference import policy_attention as reference
from vitkern.testing import assert_close

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def operands(batch=2, tokens=5, heads=3, dim=4, dtype=torch.float64):
    qkv = torch.randn(batch, tokens, 3, heads, dim, dtype=dtype)
    policy = torch.rand(batch, tokens, dtype=torch.promote_types(dtype, torch.float32)).round()
    return [qkv.requires_grad_(), policy.requires_grad_()]


def graded(function, tensors, grad):
    out = function(*tensors)
    return [out, *torch.autograd.grad(out, tensors, grad.to(out.dtype))]


def by_hand(qkv, policy, scale, eps):
    """(N, 3, D), (N,) -> (N, D), sum by sum."""
    tokens, _, dim = qkv.shape
    out = torch.zeros(tokens, dim, dtype=torch.float64)
    q, k, v = qkv.unbind(1)
    for i in range(tokens):
        logits = [scale * math.fsum((q[i] * k[j]).tolist()) for j in range(tokens)]
        counts = [1.0 if i == j else policy[j].item() for j in range(tokens)]
        weights = [math.exp(logit - max(logits)) * count for logit, count in zip(logits, counts, strict=True)]
        total = sum(weights) + eps
        for j in range(tokens):
            out[i] += (weights[j] + eps / tokens) / total * v[j]
    return out


def test_definition():
    qkv, policy = (x.detach() for x in operands())
    policy[1] = torch.rand(5)
    for source in (reference, vitkern):
        found = source.policy_attention(qkv, policy, scale=0.3, eps=0.02)
        for image, head in ((0, 1), (1, 2)):
            expected = by_hand(qkv[image, :, :, head], policy[image], 0.3, 0.02)
            torch.testing.assert_close(found[image, :, head], expected)


@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_definition_gradients(eps):
    tensors = operands(1, 3, 2, 2)
    for source in (reference, vitkern):
        assert torch.autograd.gradcheck(lambda *x, f=source.policy_attention: f(*x, eps=eps), tensors)
    assert torch.autograd.gradgradcheck(lambda *x: policy_attention(*x, eps=eps), tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_reference(dtype):
    for sizes in ((2, 49, 3, 32), (1, 7, 1, 1), (1, 33, 2, 264)):
        tensors = [x.detach() for x in operands(*sizes, dtype)]
        out = policy_attention(*tensors)
        assert out.dtype == dtype and out.is_contiguous()
        ideal = reference.policy_attention(
            *(x.float() for x in tensors), low_precision=None if dtype == torch.float32 else dtype
        )
        exact = reference.policy_attention(*(x.double() for x in tensors))
        # PyTorch rounds the scores too, where a kernel does not.
        assert_close(out, ideal.to(dtype), exact, margin=2 if dtype == torch.float32 else 12)


def test_a_policy_of_ones_is_attention():
    qkv, ones = torch.randn(2, 9, 3, 4, 8, dtype=torch.float64), torch.ones(2, 9, 1)
    torch.testing.assert_close(policy_attention(qkv, ones, eps=0.0), vitkern.attention_qkvpacked(qkv))


def test_a_policy_of_zeros_leaves_each_token_itself():
    qkv, zeros = torch.randn(2, 9, 3, 4, 8, dtype=torch.float64), torch.zeros(2, 9)
    torch.testing.assert_close(policy_attention(qkv, zeros, eps=0.0), qkv[:, :, 2])
    qkv[:, :, 0], qkv[:, 3, 1], qkv[:, 3, 2] = 1.0, 1000.0, -5.0  # next to it, no other key is above 0
    found = policy_attention(qkv, zeros, scale=1.0)
    others = torch.tensor([i != 3 for i in range(9)])
    mean = qkv[:, :, 2].mean(1, keepdim=True).expand(-1, 8, -1, -1)
    torch.testing.assert_close(found[:, others], mean)
    assert torch.equal(policy_attention(qkv, zeros, scale=1.0, eps=0.0)[:, others], torch.zeros_like(mean))


def test_pruned_keys_have_a_gradient_too():
    """That of a straight-through sample: as if they counted by their policy."""
    qkv, policy = (x.detach() for x in operands(1, 6, 2, 4))
    policy[:] = torch.tensor([1.0, 0, 1, 0, 1, 1])
    grad, step = torch.randn(1, 6, 2, 4, dtype=torch.float64), 1e-6
    found = torch.autograd.grad((policy_attention(qkv, policy.requires_grad_()) * grad).sum(), policy)[0]
    for j in range(6):
        moved = torch.zeros_like(policy)
        moved[0, j] = step
        with torch.no_grad():
            change = policy_attention(qkv, policy + moved) - policy_attention(qkv, policy - moved)
        torch.testing.assert_close(found[0, j], (change * grad).sum() / (2 * step), rtol=1e-5, atol=1e-8)
    assert found[0, 1] != 0.0 != found[0, 3]


@pytest.mark.parametrize("most", [1, 800, 10**6], ids=["one head", "two heads", "all images"])
@pytest.mark.parametrize("eps", [0.1, 0.0])
def test_chunks_are_the_formula(most, eps, monkeypatch):
    monkeypatch.setitem(chunks.SCORES, "cpu", most)
    tensors = operands(3, 20, 3, 4)
    grad = torch.randn(3, 20, 3, 4, dtype=torch.float64)
    whole = graded(lambda *x: chunks.formula(*x, 0.4, eps)[0], tensors, grad)
    torch.testing.assert_close(graded(lambda *x: chunks.in_chunks(*x, 0.4, eps)[0], tensors, grad), whole)
    assert len(list(chunks._chunks(tensors[0]))) == {1: 9, 800: 6, 10**6: 1}[most]


def test_no_scores_are_kept_and_nothing_is_overwritten():
    tensors = operands(1, 200, 1, 4)
    before, sizes = [x.detach().clone() for x in tensors], []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        policy_attention(*tensors).sum().backward()
    assert 0 < max(sizes) <= 200 * 3 * 4
    assert all(map(torch.equal, before, tensors))


@pytest.mark.parametrize("shape", [(0, 5, 3, 2, 4), (2, 0, 3, 2, 4), (2, 5, 3, 0, 4)], ids=str)
def test_nothing_to_compute(shape):
    qkv, policy = torch.randn(shape, requires_grad=True), torch.ones(shape[:2], requires_grad=True)
    out = policy_attention(qkv, policy)
    assert out.shape == (*shape[:2], *shape[3:])
    for gradient in torch.autograd.grad(out.sum(), (qkv, policy)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_any_strides():
    qkv = torch.randn(2, 3, 8, 5, 6).permute(0, 3, 1, 4, 2)[..., ::2]  # (2, 5, 3, 6, 4)
    policy = torch.rand(5, 4).T[::2]
    expected = policy_attention(qkv.contiguous(), policy.contiguous())
    torch.testing.assert_close(policy_attention(qkv, policy), expected)


def test_autocast_dtypes():
    tensors = operands(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = policy_attention(*tensors)
    assert out.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.sum(), tensors))


@stored.each("dynamicvit_policy_softmax_*")
def test_stored_weights(path):
    config, tensors = stored.read(path)
    call = partial(stored.policy_softmax, eps=config["eps"])
    stored.assert_stored(nn.Module(), tensors, call, inputs=("attn", "policy"))


def module(dim=16, heads=2):
    made = PolicyAttention(dim, heads, qkv_bias=True).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def test_stored_block_without_a_policy():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(16, eps=1e-6) for _ in range(2))
            self.attn, self.mlp = PolicyAttention(16, 2, qkv_bias=True), vitkern.nn.Mlp(16, 64)

        def forward(self, x):
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    config, tensors = stored.read(stored.FOLDER / "dynamicvit_block_policy_none.safetensors")
    assert (config["dim"], config["num_heads"], config["mlp_ratio"]) == (16, 2, 4.0)
    stored.assert_stored(Block(), tensors)


def test_module():
    made, x = module(), torch.randn(2, 9, 16, dtype=torch.float64)
    qkv = made.qkv(x).unflatten(-1, (3, 2, 8))
    policy = torch.ones(2, 9, 1)
    policy[:, 4:] = 0.0
    expected = made.proj(reference.policy_attention(qkv, policy.double()).flatten(2))
    torch.testing.assert_close(made(x, policy), expected)
    torch.testing.assert_close(made(x, policy[:, :, 0]), expected)


def test_kept_tokens_attend_as_if_there_were_no_others():
    """What is learned with a policy is what inference computes with what is left."""
    made, x = module(), torch.randn(2, 9, 16, dtype=torch.float64)
    kept = torch.tensor([[0, 3, 5], [0, 8, 1]])
    policy = torch.zeros(2, 9, dtype=torch.float64).scatter(1, kept, 1.0)
    pruned = keep_tokens(made(x, policy), kept)
    torch.testing.assert_close(made(keep_tokens(x, kept)), pruned, rtol=1e-4, atol=1e-4)


def test_keep_tokens():
    x, indices = torch.randn(2, 5, 3, requires_grad=True), torch.tensor([[4, 0], [1, 1]])
    found = keep_tokens(x, indices)
    assert torch.equal(found, torch.stack([x[0, [4, 0]], x[1, [1, 1]]]))
    assert torch.equal(
        torch.autograd.grad(found.sum(), x)[0][:, :, 0], torch.tensor([[1.0, 0, 0, 0, 1], [0, 2, 0, 0, 0]])
    )
    assert torch.equal(keep_tokens(x[:, :, 0], indices), found[:, :, 0])
    for wrong in (indices[:1], indices[0]):
        with pytest.raises(ValueError, match=r"^keep_tokens: indices do not belong to the tokens: got"):
            keep_tokens(x, wrong)


def test_what_the_benchmarks_compare_with_computes_the_same():
    small = type(LAYERS[0])("", 33, 2, 16)
    problem = small.problem(2)
    tensors = {name: x.float() for name, x in problem.inputs(torch.Generator().manual_seed(0)).items()}
    torch.testing.assert_close(small.eager(problem.options)(**tensors), problem.reference(**tensors))


X, P = torch.zeros(2, 5, 3, 2, 4), torch.ones(2, 5)
SHAPE = r"policy has the wrong shape: got \({}\) for 2 x 5 tokens; expected \(B, N\) = \(2, 5\), or \(B, N, 1\). Give"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0], P), {}, TypeError, "qkv is no tensor: got list"),
        ((X.int(), P), {}, TypeError, "qkv has an unsupported dtype: got torch.int32"),
        ((X[0], P), {}, ValueError, "qkv has the wrong number of dimensions"),
        ((X[:, :, :2], P), {}, ValueError, r"qkv has the wrong shape: got \(2, 5, 2, 2, 4\)"),
        ((X[..., :0], P), {}, ValueError, "head dim is 0"),
        ((X, None), {}, TypeError, "policy is no tensor: got NoneType"),
        ((X, P.bool()), {}, TypeError, "policy has an unsupported dtype: got torch.bool"),
        ((X, P[:, :4]), {}, ValueError, SHAPE.format("2, 4")),
        ((X, P[:1]), {}, ValueError, SHAPE.format("1, 5")),
        ((X, P[0]), {}, ValueError, SHAPE.format("5,")),
        ((X, P[:, :, None].expand(-1, -1, 2)), {}, ValueError, SHAPE.format("2, 5, 2")),
        ((X, P.to("meta")), {}, ValueError, "devices differ: got qkv on cpu, policy on meta"),
        ((X, P), dict(scale=0.0), ValueError, "scale is not usable: got 0.0"),
        ((X, P), dict(eps=-1e-6), ValueError, "eps is not usable: got -1e-06"),
        ((X, P), dict(eps=None), TypeError, "eps is no number: got NoneType"),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=f"^policy_attention: {message}"):
        policy_attention(*arguments, **options)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"^PolicyAttention: channels do not split into heads: got dim=10"):
        PolicyAttention(10, 4)
