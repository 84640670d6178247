"""Class attention and pooling by attention: against timm's, stored results of the official code, projections that are
absorbed and such that are not, the error contract."""

import pytest
import stored
import torch
from timm.layers import AttentionPoolLatent
from timm.models.cait import ClassAttn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import vitkern
from vitkern.nn import AttentionPool, ClassAttention
from vitkern.ops import class_attention as absorbed
from vitkern.ops.class_attention import class_attention

POOLS = {
    "SigLIP": (dict(), dict()),
    "as timm's default": (dict(norm_layer=None), dict(norm=False)),
    "no projection of latents": (dict(q_proj=False), dict(q_proj=False)),
    "norms of queries and keys": (dict(qk_norm=True), dict(qk_norm=True)),
    "latents of their own width, all of them": (
        dict(latent_len=3, latent_dim=10, pool_type=""),
        dict(latent_len=3, latent_dim=10, pool=""),
    ),
    "the mean of many latents": (dict(latent_len=9, pool_type="avg"), dict(latent_len=9, pool="avg")),
    "positions, no biases": (
        dict(pos_embed="abs", feat_size=7, qkv_bias=False),
        dict(feat_size=7, qkv_bias=False),
    ),
    "no output projection": (dict(out_features=0), dict(out_dim=0)),
    "another width, another activation": (
        dict(out_features=12, mlp_ratio=2.0, act_layer=lambda: nn.GELU(approximate="tanh")),
        dict(out_dim=12, mlp_ratio=2.0, act="gelu_tanh"),
    ),
}


def agree(theirs, ours, *arguments):
    """Outputs and gradients of the first argument and of every parameter, in float64."""
    theirs, ours = theirs.double(), ours.double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    found, grad = [], None
    for module in (theirs, ours):
        x = arguments[0].clone().requires_grad_()
        out = module(x, *arguments[1:])
        grad = torch.randn_like(out) if grad is None else grad
        parameters = dict(sorted(module.named_parameters())).values()
        found.append([out, *torch.autograd.grad(out, [x, *parameters], grad)])
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 9])
def test_class_attention_as_timm(tokens, qkv_bias):
    x = torch.randn(2, tokens, 24, dtype=torch.float64)
    agree(ClassAttn(24, 3, qkv_bias=qkv_bias), ClassAttention(24, 3, qkv_bias=qkv_bias), x)


@pytest.mark.parametrize("name", POOLS)
def test_pool_as_timm(name):
    theirs, ours = POOLS[name]
    theirs = AttentionPoolLatent(24, num_heads=3, **{"norm_layer": nn.LayerNorm, **theirs})
    agree(theirs, AttentionPool(24, 3, eps=1e-5, **ours), torch.randn(2, 7, 24, dtype=torch.float64))


def test_pool_with_a_mask_as_timm():
    mask = torch.tensor([True] * 5 + [False] * 2).expand(2, 1, 1, 7)
    theirs = AttentionPoolLatent(24, num_heads=3, norm_layer=nn.LayerNorm)
    agree(theirs, AttentionPool(24, 3, eps=1e-5), torch.randn(2, 7, 24, dtype=torch.float64), mask)


@stored.each("cait_class_attention")
@pytest.mark.parametrize("watched", [False, True], ids=["absorbed", "projected"])
def test_stored_results(path, watched):
    config, tensors = stored.read(path)
    del config["input"]
    module = ClassAttention(config.pop("dim"), **config)
    if watched:
        module.k.register_forward_hook(lambda *_: None)
    stored.assert_stored(module, tensors)


def test_no_token_is_projected():
    """2 B N C H operations for the scores and as many for what they gather, where two projections take 4 B N C^2."""
    (batch, tokens, dim, heads), width = (2, 50, 64, 4), 16
    q, x, linear = torch.randn(batch, heads, 1, width), torch.randn(batch, tokens, dim), (torch.randn(dim, dim), None)
    with FlopCounterMode(display=False) as counter:  # which watches all modules, so that none is bypassed
        absorbed._absorbed(q, x, linear, linear)
    of_one_row = 2 * batch * dim * dim
    assert counter.get_total_flops() == 4 * batch * tokens * dim * heads + 2 * of_one_row


@pytest.mark.parametrize("name", ["q", "k", "v", "proj"])
def test_projections_that_somebody_watches_are_called(name):
    module, x, calls = ClassAttention(24, 3), torch.randn(2, 7, 24), []
    expected = module(x)
    getattr(module, name).register_forward_hook(lambda *call: calls.append(call[1][0].shape))
    torch.testing.assert_close(module(x), expected)
    assert calls == [{"q": (2, 24), "proj": (2, 1, 24)}.get(name, (2, 7, 24))]


@pytest.mark.parametrize(("name", "shape"), [("kv", (2, 7, 24)), ("q", (2, 1, 24)), ("k_norm", (2, 3, 7, 8))])
def test_what_somebody_watches_of_a_pool_is_called(name, shape):
    module, x, calls = AttentionPool(24, 3), torch.randn(2, 7, 24), []
    expected = module(x)
    getattr(module, name).register_forward_hook(lambda *call: calls.append(call[1][0].shape))
    torch.testing.assert_close(module(x), expected)
    assert calls == [shape]


class Scaled(nn.Linear):
    """An adapter's: what it computes is not what its weight says."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_adapters_are_called():
    module, x = ClassAttention(24, 3), torch.randn(2, 7, 24)
    doubled = Scaled(24, 24, bias=False)
    doubled.load_state_dict(module.v.state_dict())
    expected = module(x) - module.proj.bias
    module.v = doubled
    torch.testing.assert_close(module(x) - module.proj.bias, 2 * expected)


@pytest.mark.parametrize(("queries", "read"), [(1, True), (4, True), (5, False), (8, False)])
def test_absorbed_or_not_it_is_attention(queries, read):
    """Absorbed where queries are few beside the channels of a head."""
    q, x = torch.randn(2, 3, queries, 8, dtype=torch.float64), torch.randn(2, 5, 20, dtype=torch.float64)
    key, value = (nn.Linear(20, 24, dtype=torch.float64) for _ in range(2))
    assert (absorbed._read(q, x, (key, value)) is not None) == read
    k, v = (project(x).unflatten(-1, (3, 8)).transpose(1, 2) for project in (key, value))
    expected = vitkern.attention(q, k, v, scale=0.3).transpose(1, 2)
    for projections in ((key, value), (lambda x: torch.cat([key(x), value(x)], -1),)):
        torch.testing.assert_close(class_attention(q, x, *projections, scale=0.3), expected)


def test_dropped_weights():
    module = ClassAttention(64, 1, attn_drop=0.25).train()
    with torch.no_grad():
        module.k.weight.zero_()
        module.v.weight.copy_(torch.eye(64))
        module.proj.weight.copy_(torch.eye(64))
        module.proj.bias.zero_()
    found = torch.cat([module(torch.eye(64)[None]) for _ in range(20)])
    assert set((64 * found).round(decimals=4).unique().tolist()) == {
        0.0,
        torch.tensor(1 / 0.75).round(decimals=4).item(),
    }


def test_autocast_and_no_tokens():
    module = ClassAttention(24, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(2, 7, 24)).dtype == torch.bfloat16
    q, project = torch.randn(1, 3, 1, 8), nn.Linear(24, 48)
    assert torch.equal(class_attention(q, torch.randn(2, 0, 24), project), torch.zeros(2, 1, 3, 8))


Q, X, P = torch.zeros(2, 3, 1, 4), torch.zeros(2, 5, 12), nn.Linear(12, 12)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0], X, P, P), {}, TypeError, "q is no tensor: got list"),
        ((Q[0], X, P, P), {}, ValueError, "q has the wrong number of dimensions"),
        ((Q, X[0], P, P), {}, ValueError, "x has the wrong number of dimensions"),
        ((Q, X[:1], P, P), {}, ValueError, r"q does not fit the tokens: got q \(2, 3, 1, 4\), x \(1, 5, 12\)"),
        ((Q[..., :0], X, P, P), {}, ValueError, "q does not fit the tokens"),
        ((Q, X.half(), P, P), {}, TypeError, "dtypes differ: got q torch.float32, x torch.float16"),
        ((Q, X.to("meta"), P, P), {}, ValueError, "devices differ: got q on cpu, x on meta"),
        ((Q, X), {}, ValueError, "too few or too many projections: got 0"),
        ((Q, X, P), {}, ValueError, r"what is projected has the wrong shape: got \(2, 5, 12\); expected \(B, N, 24\)"),
        ((Q, X, P, P), dict(scale=-1.0), ValueError, "scale is not usable"),
        ((Q, X, P, P), dict(dropout_p=2.0), ValueError, "dropout_p is no probability"),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=f"^class_attention: {message}"):
        class_attention(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(dim=10, num_heads=4), "channels do not split into heads: got dim=10"),
        (dict(dim=8, pool="max"), "pool is unknown: got 'max'; expected one of 'token', 'avg', ''"),
        (dict(dim=8, q_proj=False, latent_dim=4), "latents are the queries and have other channels: got latent_dim=4"),
    ],
)
def test_a_pool_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=f"^AttentionPool: {message}"):
        AttentionPool(**arguments)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"^ClassAttention: channels do not split into heads: got dim=10"):
        ClassAttention(10, 4)
