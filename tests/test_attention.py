"""Attention on the PyTorch path and its definition, against an explicit softmax in float64; the error contract."""

import time

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from vitkern.ops.attention import attention, attention_qkvpacked
from vitkern.reference import attention as reference


def explicit(q, k, v, bias=None, mask=None, key_padding_mask=None, causal=False, scale=None, softcap=None, sinks=None):
    """Row by row, with no tensor tricks: (B, H, N, Dv) and lse, float64."""
    batch, heads, n, d = q.shape
    m, share = k.shape[2], heads // k.shape[1]
    out, lse = (
        torch.zeros(batch, heads, n, v.shape[3], dtype=torch.float64),
        torch.full((batch, heads, n), -torch.inf, dtype=torch.float64),
    )
    scale = d**-0.5 if scale is None else scale
    full = (batch, heads, n, m)
    bias = torch.zeros(full, dtype=torch.float64) if bias is None else bias.double().expand(full)
    allowed = torch.ones(full, dtype=torch.bool)
    if mask is not None and mask.dtype == torch.bool:
        allowed = allowed & mask
    elif mask is not None:
        bias = bias + mask.double()
    if key_padding_mask is not None:
        allowed = allowed & key_padding_mask[:, None, None, :]
    for b in range(batch):
        for h in range(heads):
            for i in range(n):
                keys = [
                    j
                    for j in range(m)
                    if allowed[b, h, i, j] and (not causal or j <= i + m - n) and bias[b, h, i, j] > -torch.inf
                ]
                if keys or sinks is not None:
                    logits = (k[b, h // share, keys].double() @ q[b, h, i].double()) * scale
                    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
                    logits, values = logits + bias[b, h, i, keys], v[b, h // share, keys].double()
                    if sinks is not None:  # a key whose value is 0
                        logits = torch.cat([logits, sinks[h].double().view(1)])
                        values = torch.cat([values, values.new_zeros(1, v.shape[3])])
                    out[b, h, i] = logits.softmax(0) @ values
                    lse[b, h, i] = logits.logsumexp(0)
    return out, lse


def operands(dtype=torch.float32, n=6, m=19, heads=2, kv_heads=2, d=8):
    q = torch.randn(2, heads, n, d, dtype=torch.float64).to(dtype)
    k, v = torch.randn(2, 2, kv_heads, m, d, dtype=torch.float64).to(dtype).unbind(0)
    return q, k, v


def options():
    """Terms for N = 6, M = 19; query 1 of the masks may attend to nothing."""
    allowed = torch.rand(2, 1, 6, 19) > 0.4
    allowed[:, :, 1] = False
    additive = torch.randn(6, 19).masked_fill(torch.rand(6, 19) > 0.7, -torch.inf)
    additive[1] = -torch.inf
    padding = torch.rand(2, 19) > 0.3
    bias = torch.randn(2, 6, 19)
    return {
        "plain": {},
        "scale": {"scale": 0.7},
        "causal": {"causal": True},
        "bias": {"bias": bias},
        "bool mask": {"mask": allowed},
        "additive mask": {"mask": additive},
        "key padding": {"key_padding_mask": padding},
        "bias, bool mask": {"bias": bias, "mask": allowed},
        "bias, additive mask, key padding": {"bias": bias, "mask": additive, "key_padding_mask": padding},
        "bias, causal": {"bias": bias, "causal": True},
        "bool mask, key padding, causal": {"mask": allowed, "key_padding_mask": padding, "causal": True},
        "additive mask, causal": {"mask": additive, "causal": True},
        "soft cap": {"softcap": 0.8},
        "soft cap, bias, sinks, causal": {"softcap": 1.5, "bias": bias, "causal": True, "sinks": torch.randn(2)},
        "sinks, bool mask": {"sinks": torch.randn(2), "mask": allowed},
    }


@pytest.mark.parametrize("function", [reference.attention, attention], ids=["reference", "op"])
@pytest.mark.parametrize("name", options())
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_against_the_explicit_softmax(function, name, kv_heads):
    terms = options()[name]
    q, k, v = operands(torch.float64, kv_heads=kv_heads)
    expected, expected_lse = explicit(q, k, v, **terms)
    torch.testing.assert_close(function(q, k, v, **terms), expected, rtol=0, atol=1e-12)
    out, lse = function(q, k, v, return_lse=True, **terms)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", options())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def test_gradients_follow_the_reference(name, dtype):
    terms = options()[name]
    leaves = [t.requires_grad_() for t in operands(dtype)]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    wide_terms = dict(terms)
    for name in {"bias", "sinks"} & set(terms):
        term = terms[name].to(dtype).requires_grad_()
        terms = {**terms, name: term}
        wide_terms[name] = term.detach().double().requires_grad_()
        leaves.append(term)
        wide.append(wide_terms[name])
    grad = torch.randn(2, 2, 6, 8).to(dtype)
    actual = torch.autograd.grad(attention(*leaves[:3], **terms), leaves, grad)
    expected = torch.autograd.grad(reference.attention(*wide[:3], **wide_terms), wide, grad.double())
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype and torch.isfinite(a).all()
        torch.testing.assert_close(a.double(), e, rtol=0, atol=40 * torch.finfo(dtype).eps)


def test_reference_gradients_are_the_derivatives():
    q, k, v = (t.requires_grad_() for t in operands(torch.float64, n=3, m=4, d=3))
    bias = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])

    def function(q, k, v, bias):
        return reference.attention(q, k, v, bias=bias, mask=mask, causal=True)

    assert torch.autograd.gradcheck(function, (q, k, v, bias))


@pytest.mark.parametrize("low_precision", [torch.float16, torch.bfloat16])
def test_the_ideal_errs_by_its_dtype_and_no_more(low_precision):
    q, k, v = (t.requires_grad_() for t in operands(low_precision, n=33, m=40, d=32))
    grad = torch.randn(2, 2, 33, 32).to(low_precision)
    ideal = reference.attention(q, k, v, low_precision=low_precision)
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    exact = reference.attention(*wide)
    eps = torch.finfo(low_precision).eps
    pairs = [(ideal, exact)]
    pairs += zip(
        torch.autograd.grad(ideal, (q, k, v), grad), torch.autograd.grad(exact, wide, grad.double()), strict=True
    )
    for a, e in pairs:
        error = ((a.double() - e).abs().max() / e.abs().max()).item()
        assert 0.02 * eps < error < 2 * eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("m", [1, 5, 19])
def test_nan_in_a_query_reaches_its_row_only(dtype, m):
    q, k, v = operands(dtype, m=m)
    q[0, 1, 2, 3] = torch.nan
    out = attention(q, k, v)
    assert out[0, 1, 2].isnan().all() and out.isnan().sum() == out.shape[-1]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("low, masks", [(2, 1), (20, 0)])
def test_an_exported_graph_takes_few_and_many_keys(low, masks, strict):
    """NaN included, without a guard: only where there may be few keys is there a mask."""
    length = torch.export.Dim("n", min=low, max=64)

    class Attend(torch.nn.Module):
        def forward(self, qkv):
            return attention_qkvpacked(qkv)

    program = torch.export.export(
        Attend(), (torch.randn(2, 33, 3, 2, 8),), dynamic_shapes=({1: length},), strict=strict
    )
    for n in (low, 64):
        qkv = torch.randn(2, n, 3, 2, 8)
        qkv[0, 1, 0, 1, 2] = torch.nan
        torch.testing.assert_close(program.module()(qkv), attention_qkvpacked(qkv), equal_nan=True)
    assert sum("ones" in str(node.target) for node in program.graph.nodes) == masks


@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("m", [3, 19])
def test_layout_is_tokens_first(m, return_lse):
    q, k, v = operands(m=m)
    result = attention(q, k, v, return_lse=return_lse)
    out = result[0] if return_lse else result
    assert out.shape == q.shape and out.transpose(1, 2).is_contiguous()
    qkv = torch.randn(2, m, 3, 2, 8)
    packed = attention_qkvpacked(qkv, return_lse=return_lse)
    assert (packed[0] if return_lse else packed).is_contiguous()


def test_packed_is_the_unpacked():
    qkv = torch.randn(2, 19, 3, 2, 8, requires_grad=True)
    bias = torch.randn(2, 19, 19, requires_grad=True)
    q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
    packed, apart = attention_qkvpacked(qkv, bias=bias), attention(q, k, v, bias=bias).transpose(1, 2)
    assert torch.equal(packed, apart)
    gradients = (
        torch.autograd.grad(packed.square().sum(), (qkv, bias)),
        torch.autograd.grad(apart.square().sum(), (qkv, bias)),
    )
    torch.testing.assert_close(*gradients)


def test_a_float32_bias_stays_exact_beside_half_precision():
    q, k, v = operands(torch.bfloat16)
    bias = 16 + torch.rand(2, 6, 19)  # bfloat16 steps by 1/8 here
    expected, _ = explicit(q, k, v, bias=bias)
    torch.testing.assert_close(attention(q, k, v, bias=bias).double(), expected, rtol=0, atol=2e-2)


def test_merged_tokens_weigh_as_many_as_they_are():
    """ToMe (Bolya et al., arXiv 2210.09461, section 3): log(size) is a bias of keys, and sizes may be learnt."""
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64) for n in (5, 4, 4))
    sizes = torch.tensor([[1, 3, 2, 1], [4, 1, 1, 2]])
    size = sizes.double().requires_grad_()
    out = attention(q, k, v, bias=size.log()[:, None, None, :])
    for i in range(2):
        again = [x[i : i + 1].repeat_interleave(sizes[i], 2) for x in (k, v)]
        torch.testing.assert_close(out[i : i + 1], attention(q[i : i + 1], *again))
    assert torch.autograd.gradcheck(lambda s: attention(q, k, v, bias=s.log()[:, None, None, :]), size)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)], ids=["B", "N", "M"])
def test_empty(shape):
    batch, heads, n, m = shape
    q = torch.randn(batch, heads, n, 8, requires_grad=True)
    k = torch.randn(batch, heads, m, 8, requires_grad=True)
    out, lse = attention(q, k, k, return_lse=True)
    assert out.shape == q.shape and (out == 0).all() and torch.isneginf(lse).all()
    assert all((g == 0).all() for g in torch.autograd.grad(out.sum(), (q, k)))


def test_dropout_follows_the_seed_and_keeps_the_mean():
    q, k, _ = operands(n=64, m=32)
    v = torch.ones(2, 2, 32, 8)

    def run():
        torch.manual_seed(3)
        return attention(q, k, v, dropout_p=0.25)

    assert torch.equal(run(), run())
    assert abs(run().mean().item() - 1) < 0.03 and run().std() > 0.05


def test_autocast_casts_the_operands_and_leaves_the_bias():
    q, k, v = operands()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(q, k, v, bias=torch.zeros(6, 19)).dtype == torch.bfloat16
        assert attention(q.half(), k, v).dtype == torch.bfloat16
        assert attention_qkvpacked(torch.randn(1, 5, 3, 2, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("options", [dict(sinks=torch.zeros(2)), dict(softcap=1e6), dict(return_lse=True)], ids=str)
def test_autocast_leaves_scores_wide(options):
    """They pass the range of float16."""
    q, k, v = (torch.randn(1, 2, n, 64) * 60 for n in (4, 20, 20))
    with torch.autocast("cpu", torch.float16):
        found = attention(q, k, v, **options)
    expected = attention(q.half(), k.half(), v.half(), **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_compiles_without_a_graph_break():
    def loss(q, k, v, bias):
        return attention(q, k, v, bias=bias, causal=True).square().sum()

    leaves = [t.requires_grad_() for t in operands(n=19)]
    bias = torch.randn(2, 19, 19, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = torch.autograd.grad(compiled(*leaves, bias), (*leaves, bias))
    torch.testing.assert_close(gradients, torch.autograd.grad(loss(*leaves, bias), (*leaves, bias)))


def test_head_dims_beyond_the_kernel_run_in_pytorch():
    q, k, v = operands(torch.float64, d=300)
    torch.testing.assert_close(attention(q, k, v), explicit(q, k, v)[0], rtol=0, atol=1e-12)


def test_the_plain_case_costs_what_pytorch_costs():
    q, k, v = (torch.randn(1, 197, 12, 64).transpose(1, 2) for _ in range(3))

    def best(function, repeats=30):
        times = []
        for _ in range(repeats):
            start = time.process_time()
            function(q, k, v)
            times.append(time.process_time() - start)
        return min(times)

    with torch.no_grad():
        assert best(attention) < 1.2 * best(torch.nn.functional.scaled_dot_product_attention) + 50e-6


def bad_calls():
    q, k, v = torch.zeros(2, 4, 6, 8), torch.zeros(2, 2, 5, 8), torch.zeros(2, 2, 5, 8)
    wrong = r"sinks has the wrong shape: got \(2,\); expected \(H,\) = \(4,\)"
    three, six = torch.zeros(2, 3, 5, 8), torch.ones(2, 6, dtype=torch.bool)
    return {
        "no tensor": (TypeError, "q is no tensor", dict(q=[1.0])),
        "integer": (TypeError, "unsupported dtype", dict(q=q.int())),
        "dimensions": (ValueError, "k has the wrong number of dimensions", dict(k=k[0])),
        "dtypes": (TypeError, "dtypes differ", dict(v=v.half())),
        "sparse": (TypeError, "not a dense tensor", dict(q=q.to_sparse())),
        "batch": (ValueError, r"k has the wrong shape.*q's B = 2", dict(k=k[:1], v=v[:1])),
        "head dim": (ValueError, "k has the wrong shape.*D = 8", dict(k=k[..., :4])),
        "value length": (ValueError, "v has the wrong shape", dict(v=v[:, :, :4])),
        "no value head dim": (ValueError, "the width of v is 0", dict(v=v[..., :0])),
        "soft cap": (ValueError, "softcap is not usable", dict(softcap=0.0)),
        "a soft cap beyond float32": (ValueError, "softcap is not usable: got 1e[+]38", dict(softcap=1e38)),
        "a soft cap of many digits": (ValueError, "softcap is not usable", dict(softcap=10**400)),
        "a soft cap below float32": (ValueError, "softcap is not usable", dict(softcap=1e-39)),
        "no soft cap": (TypeError, "softcap is no number", dict(softcap="50")),
        "sinks": (ValueError, wrong, dict(sinks=q[0, :2, 0, 0])),
        "integer sinks": (TypeError, "sinks has an unsupported dtype", dict(sinks=torch.zeros(4, dtype=torch.int32))),
        "sinks elsewhere": (ValueError, "devices differ", dict(sinks=torch.zeros(4, device="meta"))),
        "heads": (ValueError, "heads do not divide: got 4 query heads and 3", dict(k=three, v=three)),
        "no head dim": (ValueError, "head dim is 0", dict(q=q[..., :0], k=k[..., :0], v=v[..., :0])),
        "bias shape": (ValueError, r"bias has the wrong shape: got \(4, 6, 6\)", dict(bias=torch.zeros(4, 6, 6))),
        "bias dimensions": (ValueError, "bias has the wrong shape", dict(bias=torch.zeros(1, 2, 4, 6, 5))),
        "bool bias": (TypeError, "bias has an unsupported dtype", dict(bias=torch.ones(6, 5, dtype=torch.bool))),
        "mask shape": (ValueError, "mask has the wrong shape", dict(mask=torch.ones(2, 1, 6, 4, dtype=torch.bool))),
        "integer mask": (TypeError, "mask has an unsupported dtype", dict(mask=torch.ones(6, 5, dtype=torch.int8))),
        "mask gradient": (ValueError, "mask requires a gradient", dict(mask=torch.zeros(6, 5, requires_grad=True))),
        "key mask shape": (ValueError, r"key_padding_mask has the wrong shape.*\(2, 5\)", dict(key_padding_mask=six)),
        "key mask dtype": (TypeError, "key_padding_mask is not a bool tensor", dict(key_padding_mask=torch.ones(2, 5))),
        "scale": (ValueError, "scale is not usable", dict(scale=0.0)),
        "nan scale": (ValueError, "scale is not usable", dict(scale=float("nan"))),
        "dropout": (ValueError, "dropout_p is no probability", dict(dropout_p=1.0)),
        "device": (ValueError, "devices differ", dict(bias=torch.zeros(6, 5, device="meta"))),
    }  # fmt: skip


@pytest.mark.parametrize("name", bad_calls())
def test_errors(name):
    kind, message, change = bad_calls()[name]
    arguments = dict(q=torch.zeros(2, 4, 6, 8), k=torch.zeros(2, 2, 5, 8), v=torch.zeros(2, 2, 5, 8)) | change
    with pytest.raises(kind, match=f"^attention: .*{message}"):
        attention(**arguments)


def test_values_of_another_width():
    q, k, _ = (t.requires_grad_() for t in operands())
    v = torch.randn(2, 2, 19, 5, requires_grad=True)
    out, lse = attention(q, k, v, return_lse=True)
    expected, expected_lse = explicit(q, k, v)
    torch.testing.assert_close(attention(q, k, v).double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close((out.double(), lse.double()), (expected, expected_lse), rtol=0, atol=1e-5)
    assert out.transpose(1, 2).is_contiguous()
    for grad, operand in zip(torch.autograd.grad(out.sum(), (q, k, v)), (q, k, v), strict=True):
        assert grad.shape == operand.shape


def test_packed_errors():
    with pytest.raises(ValueError, match=r"^attention_qkvpacked: qkv has the wrong shape.*\(B, N, 3, H, D\)"):
        attention_qkvpacked(torch.zeros(2, 5, 2, 4, 8))


@pytest.mark.parametrize("key_heads", [4, 2])
def test_one_graph_serves_any_batch_and_number_of_tokens(key_heads):
    """Compiled with sizes left open, heads too; where as many keys are there as PyTorch's own kernel takes."""
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(attention, fullgraph=True, dynamic=True, backend=graphs)
    for batch, tokens in ((3, 20), (5, 24)):
        q, k, v = (torch.randn(batch, heads, tokens, 8) for heads in (4, key_heads, key_heads))
        keys = torch.rand(batch, tokens) < 0.7
        expected = attention(q, k, v, key_padding_mask=keys)
        torch.testing.assert_close(compiled(q, k, v, key_padding_mask=keys), expected)
    assert graphs.frame_count == 1
