"""Soft caps, sinks and values of another width through ``attn_implementation="vitkern"``: the operator's own terms, and
the plain formula where calls are recorded, as SDPA knows none of them."""

import types

import pytest
import torch
import transformers as hf
from swapping import assert_near, randomise
from torch import nn

from vitkern.interop import transformers as by_name
from vitkern.interop.transformers import attention_forward

hf.logging.set_verbosity_error()
CAP = 0.7


def heads(value=8, dtype=torch.double):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 6, 8), (2, 2, 6, 8), (2, 2, 6, value), (4,)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def reference(q, k, v, causal=False, cap=None, sinks=None):
    scores = q @ k.repeat_interleave(2, 1).mT / 8**0.5
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf) if causal else scores
    total = scores.exp().sum(-1, keepdim=True) + (0 if sinks is None else sinks.exp().view(-1, 1, 1))
    return (scores.exp() / total @ v.repeat_interleave(2, 1)).transpose(1, 2)


@pytest.mark.parametrize("causal", (False, True))
@pytest.mark.parametrize("given", ("softcap", "s_aux", "both"))
def test_the_operator_has_the_terms(given, causal, monkeypatch):
    q, k, v, sinks = heads(value=5)
    cap, sinks = None if given == "s_aux" else CAP, None if given == "softcap" else sinks
    asked = []
    operator = by_name.attention
    monkeypatch.setattr(
        by_name, "attention", lambda *qkv, **terms: asked.append((qkv, terms)) or operator(*qkv, **terms)
    )
    out, nothing = attention_forward(nn.Identity(), q, k, v, None, is_causal=causal, softcap=cap, s_aux=sinks)
    assert nothing is None and out.is_contiguous()
    assert_near(out, reference(q, k, v, causal, cap, sinks), 1e-12, given)
    (((*_, values), terms),) = asked
    assert values is v and terms["softcap"] == cap and terms["sinks"] is sinks
    weighed, weights = attention_forward(
        nn.Identity(), q, k, v, None, is_causal=causal, softcap=cap, s_aux=sinks, output_attentions=True
    )
    assert len(asked) == 1 and weights.shape == (2, 4, 6, 6)
    assert_near(weighed, out, 1e-6, "with weights")  # whose softmax is in float32


@pytest.mark.parametrize("given", ("softcap", "s_aux"))
def test_what_sdpa_does_not_know_is_recorded_in_steps(given):
    q, k, v, sinks = heads()
    terms = dict(cap=CAP) if given == "softcap" else dict(sinks=sinks)
    names = dict(softcap=CAP) if given == "softcap" else dict(s_aux=sinks)
    module = types.SimpleNamespace(num_key_value_groups=2)
    traced = torch.jit.trace(lambda *qkv: attention_forward(module, *qkv, None, is_causal=False, **names)[0], (q, k, v))
    assert_near(traced(2 * q, k, v), reference(2 * q, k, v, **terms), 1e-6, given)


def gpt_oss():
    sizes = dict(vocab_size=99, hidden_size=32, intermediate_size=16, num_attention_heads=4, num_key_value_heads=2)
    kinds = ["sliding_attention", "full_attention"]
    config = hf.GptOssConfig(
        **sizes, num_hidden_layers=2, layer_types=kinds, sliding_window=4, head_dim=8, num_local_experts=2,
        num_experts_per_tok=1, attn_implementation="eager",
    )  # fmt: skip
    return randomise(hf.GptOssModel(config))


def test_a_model_with_sinks():
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(2))
    keep = torch.ones(2, 12, dtype=torch.long)
    keep[0, 9:] = 0
    model, outputs, gradients = gpt_oss(), [], []
    for implementation in ("eager", "vitkern"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        out = model(input_ids=ids, attention_mask=keep).last_hidden_state[keep.bool()]
        out.square().sum().backward()
        outputs.append(out)
        gradients.append([layer.self_attn.sinks.grad for layer in model.layers])
    assert_near(outputs[1], outputs[0], 2e-5, "output")
    for mine, theirs in zip(gradients[1], gradients[0], strict=True):
        assert theirs.abs().min() > 0
        assert_near(mine, theirs, 1e-4, "gradient of sinks")
