"""Calls on the CPU are checked once; what makes another call is still looked at, and refused."""

import pytest
import torch

pytest.importorskip("triton", reason="calls are planned beside its kernels")

import vitkern
from vitkern import dispatch, plans
from vitkern.ops import checks

pytestmark = pytest.mark.skipif(dispatch.INTERPRETED, reason="interpreted kernels run on the CPU")
Q, MASK = torch.randn(2, 2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
X, W, FC1, FC2 = torch.randn(2, 5, 8), torch.ones(8), torch.randn(12, 8), torch.randn(8, 12)


@pytest.fixture(autouse=True)
def nothing_is_known():
    plans.forget()
    yield
    plans.forget()


def attend(q=Q, k=Q, v=Q, **terms):
    return vitkern.attention(q, k, v, **terms)


CALLS = {
    "attention": lambda: attend(key_padding_mask=MASK),
    "attention_qkvpacked": lambda: vitkern.attention_qkvpacked(X.view(2, 5, 1, 1, 8).expand(2, 5, 3, 1, 8)),
    "layernorm": lambda: vitkern.layernorm(X, W, W, 1e-6, X)[0],
    "rmsnorm": lambda: vitkern.rmsnorm(X, W, 1e-6),
    "layernorm_mlp": lambda: vitkern.layernorm_mlp(X, W, W, FC1, None, FC2, None, eps=1e-6),
}


@pytest.mark.parametrize("op", CALLS)
def test_the_second_call_is_not_checked(op, monkeypatch):
    expected = CALLS[op]()
    monkeypatch.setattr(checks, "check_dense", lambda *args: pytest.fail("checked again"))
    monkeypatch.setattr(dispatch, "why_not", lambda *args: pytest.fail("decided again"))
    assert torch.equal(CALLS[op](), expected)


REFUSED = {
    "dtype": (TypeError, dict(k=Q.double())),
    "shape": (ValueError, dict(k=Q[:, :, :3])),
    "device": (ValueError, dict(k=Q.to("meta"))),
    "layout": (TypeError, dict(k=Q.to_sparse())),
    "kind": (TypeError, dict(k=Q.int())),
    "gradient": (ValueError, dict(mask=torch.zeros(5, 5, requires_grad=True))),
    "probability": (ValueError, dict(dropout_p=1.5)),
    "flag": (TypeError, dict(causal=0)),
    "scale": (ValueError, dict(scale=float("nan"))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_call_is_refused_still(name):
    error, changes = REFUSED[name]
    attend(mask=torch.zeros(5, 5), causal=False)
    attend()
    for _ in range(2):
        with pytest.raises(error, match="attention: "):
            attend(**changes)


def test_what_is_switched_counts():
    attend(), CALLS["layernorm"]()
    with torch.autocast("cpu", torch.bfloat16):
        assert CALLS["layernorm"]().dtype == torch.bfloat16
    with dispatch.use_backend("triton"), pytest.raises(NotImplementedError):
        attend()
    assert attend().dtype == torch.float32


def test_what_others_see_is_not_planned():
    class Tokens(torch.Tensor):
        pass

    assert type(attend(*[Q.as_subclass(Tokens)] * 3)) is Tokens
    torch.func.vmap(lambda q: attend(q, q, q))(Q[None])
    with torch.profiler.profile():
        attend()
    assert not plans._plans
