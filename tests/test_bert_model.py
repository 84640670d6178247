"""BERT's encoder against transformers: tokens, pooled, gradients, names of parameters in both directions, bad input."""

import pytest
import torch
from sequences import assert_gradients_agree, randomise

import vitkern.models as models
from vitkern.models.sequence.bert import SPECIAL_TOKENS, Bert, join
from vitkern.models.sequence.keys import revert
from vitkern.models.sequence.tables import BERT

transformers = pytest.importorskip("transformers", reason="transformers is the reference of this file")

SMALL = dict(vocab_size=120, dim=32, num_heads=4, hidden_dim=48, depth=2, max_len=40)


def config(**changes):
    return transformers.BertConfig(
        **dict(
            vocab_size=120, hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=2,
            max_position_embeddings=40,
        ) | changes
    )  # fmt: skip


def pair(dtype=torch.float32, **options):
    """(ours, transformers') with the same random weights, in evaluation."""
    theirs = randomise(transformers.BertModel(config()).eval()).to(dtype)
    ours = Bert(**SMALL, **options).eval().to(dtype)
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()), strict=True)
    return ours, theirs


def batch(n, masked):
    tokens, kinds = torch.randint(1, 120, (3, n)), torch.randint(0, 2, (3, n))
    mask = torch.arange(n) < torch.tensor([n, max(1, n // 2), 1])[:, None] if masked else None
    return tokens, kinds, mask


@pytest.mark.parametrize("n, masked", [(40, True), (40, False), (17, True), (5, True), (1, False)])
def test_tokens_and_pooled_agree(n, masked):
    ours, theirs = pair()
    tokens, kinds, mask = batch(n, masked)
    for types in (kinds, None):
        with torch.no_grad():
            expected = theirs(tokens, mask, types)
            hidden = ours.forward_features(tokens, types, mask)
            pooled = ours(tokens, types, mask)
        assert expected[0].std() > 0.1
        torch.testing.assert_close(hidden, expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pooled, expected[1], rtol=1e-5, atol=1e-5)
    if mask is not None:
        torch.testing.assert_close(ours(tokens, None, mask.long()), pooled)  # as tokenizers give it


def test_states_between_blocks_agree():
    ours, theirs = pair()
    tokens, kinds, mask = batch(20, True)
    with torch.no_grad():
        expected = theirs(tokens, mask, kinds, output_hidden_states=True).hidden_states
        found = [ours.embedded(tokens, kinds), *ours.forward_intermediates(tokens, (0, -1), kinds, mask)]
    for actual, state in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_gradients_agree(dtype, rtol):
    ours, theirs = pair(dtype)
    tokens, kinds, mask = batch(23, True)
    tokens[0, 3] = SPECIAL_TOKENS["[PAD]"]  # its embedding gets no gradient
    for hidden, pooled in (
        (theirs(tokens, mask, kinds)[:2]),
        (ours.forward_features(tokens, kinds, mask), ours(tokens, kinds, mask)),
    ):
        (hidden[mask].sin().sum() + pooled.square().sum()).backward()
    assert_gradients_agree(BERT, ours, theirs, rtol)
    assert (ours.embed.weight.grad[0] == 0).all()


@pytest.mark.parametrize("name, count", [("bert_base", 109_482_240), ("bert_large", 335_141_888)])
def test_published_sizes(name, count):
    with torch.device("meta"):
        model = models.create_model(name)
    large = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    with torch.device("meta"):
        theirs = transformers.BertModel(transformers.BertConfig(**large if "large" in name else {}))
    shapes = {key: tuple(value.shape) for key, value in theirs.named_parameters()}
    assert {key: tuple(value.shape) for key, value in revert(BERT, dict(model.named_parameters())).items()} == shapes
    assert sum(p.numel() for p in model.parameters()) == count == sum(p.numel() for p in theirs.parameters())
    assert {m.eps for m in model.modules() if hasattr(m, "eps")} == {1e-12}
    assert model(*model.example_inputs(3)).shape == (3, model.num_features)
    assert model.input_rule == "tokens (B, N), ids below 30522, N <= 512"


def test_names_are_converted_both_ways(tmp_path):
    ours, theirs = pair()
    own = ours.state_dict()
    back = revert(BERT, own)
    theirs.load_state_dict(back, strict=True)
    assert {key: value.tolist() for key, value in ours.convert_state_dict(back).items()} == {
        key: value.tolist() for key, value in own.items()
    }
    assert ours.convert_state_dict(own) is own
    # The first release: other names of norms, a prefix, heads of the pre-training.
    published = {
        f"bert.{key}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in back.items()
    }
    published["cls.predictions.bias"] = torch.ones(120)
    torch.save(published, tmp_path / "pytorch_model.bin")
    loaded = Bert(**SMALL)
    models.load_weights(loaded, tmp_path / "pytorch_model.bin")
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, own[key]), key


def test_a_classifier_agrees():
    theirs = randomise(transformers.BertForSequenceClassification(config(num_labels=7)).eval())
    ours = Bert(**SMALL, num_classes=7).eval()
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()), strict=True)
    tokens, kinds, mask = batch(12, True)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens, kinds, mask), theirs(tokens, mask, kinds).logits, rtol=1e-5, atol=1e-5)
    ours.reset_classifier(3)
    assert ours(tokens).shape == (3, 3)
    ours.reset_classifier(0)
    assert ours(tokens).shape == (3, 32)


def test_sentences_are_joined_as_a_tokenizer_joins_them():
    tokens, kinds, mask = join([7, 8], [9], length=8)
    assert tokens.tolist() == [[101, 7, 8, 102, 9, 102, 0, 0]]
    assert kinds.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]] and mask.tolist() == [[True] * 6 + [False] * 2]
    tokens, kinds, mask = join([7, 8], length=4)
    assert tokens.tolist() == [[101, 7, 8, 102]] and not kinds.any() and mask.all()
    with pytest.raises(ValueError, match=r"do not fit: got 6 tokens with \[CLS\] and \[SEP\]; expected at most 5"):
        join([7, 8], [9], length=5)


def test_checkpointing_changes_no_gradient():
    model, (tokens, kinds, mask) = randomise(Bert(**SMALL, drop_rate=0.2, attn_drop_rate=0.2)).train(), batch(9, True)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        model(tokens, kinds, mask).sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


def test_initial_weights():
    model = Bert(**SMALL)
    assert (model.embed.weight[0] == 0).all() and (model.embed.weight[SPECIAL_TOKENS["[CLS]"]] != 0).all()
    assert abs(model.pos_embed.std() - 0.02) < 2e-3 and not model.pooler.bias.any()
    decayed = dict(model.named_parameters()).keys() - model.no_weight_decay()
    assert {"blocks.1.attn.qkv.weight", "embed.weight", "pos_embed"} <= decayed
    assert not any("norm" in name or name.endswith("bias") for name in decayed)


BAD = {
    "dtype": (lambda m: m(torch.zeros(1, 4)), TypeError, r"tokens are no ids: got torch\.float32; expected an int64"),
    "shape": (lambda m: m(torch.zeros(4).long()), ValueError, r"no batch of sequences: got \(4,\); expected \(B, N\)"),
    "long": (lambda m: m(torch.zeros(1, 41).long()), ValueError, r"more than there are positions: got 41; .* most 40"),
    "none": (
        lambda m: m(torch.zeros(2, 0).long()),
        ValueError,
        r"no token to pool: got \(2, 0, 32\); expected \[CLS\]",
    ),
    "heads": (lambda m: Bert(dim=30, num_heads=4), ValueError, "do not split into heads: got dim=30, num_heads=4"),
    "act": (lambda m: Bert(act="swish"), ValueError, "unknown act: got 'swish'"),
}


@pytest.mark.parametrize("call, error, message", BAD.values(), ids=BAD)
def test_bad_input(call, error, message):
    with torch.device("meta"), pytest.raises(error, match=message):
        call(Bert(**SMALL))


def test_other_state_dicts_are_refused(tmp_path):
    ours, theirs = pair()
    state = theirs.state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"does not fit Bert: got \d+ unexpected \(blocks\.1"):
        models.load_weights(Bert(**SMALL | dict(depth=1)), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no names of transformers' BertModel: got extra; expected a state dict"):
        ours.convert_state_dict(state | {"extra": torch.zeros(1)})
    del state["encoder.layer.0.attention.self.key.weight"]
    with pytest.raises(ValueError, match=r"a projection is missing: got some of encoder\.layer\.0\.attention\.self\.q"):
        ours.convert_state_dict(state)
    state = theirs.state_dict() | {"encoder.layer.0.attention.self.key.weight": torch.zeros(32, 31)}
    with pytest.raises(ValueError, match=r"tensors do not join: got \(32, 32\) float32, \(32, 31\) float32"):
        ours.convert_state_dict(state)
    with pytest.raises(ValueError, match="BertModel has no such parameters: got extra"):
        revert(BERT, ours.state_dict() | {"extra": torch.zeros(1)})
