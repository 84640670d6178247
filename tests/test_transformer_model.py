"""The Transformer against torch.nn.Transformer and Marian: logits, gradients, decoding, names, learning, bad input."""

import math

import pytest
import torch
from sequences import assert_gradients_agree, randomise
from torch import nn

import vitkern.models as models
from vitkern.models.sequence.decode import beam_search
from vitkern.models.sequence.embeddings import sinusoids
from vitkern.models.sequence.keys import revert
from vitkern.models.sequence.tables import MARIAN, TORCH
from vitkern.models.sequence.transformer import BOS, EOS, PAD, Transformer

SMALL = dict(vocab_size=50, dim=32, num_heads=4, hidden_dim=48, depth=2, decoder_depth=3, max_len=40)


def batch(source_len, target_len):
    """(source, target, mask of the source), padded at different places."""
    source, target = torch.randint(3, 50, (3, source_len)), torch.randint(3, 50, (3, target_len))
    mask = torch.arange(source_len) < torch.tensor([source_len, source_len // 2 + 1, 1])[:, None]
    return source, target, mask


def torch_pair(dtype=torch.float32, **options):
    """(ours with norms after the last blocks, torch.nn.Transformer) with the same random weights, in evaluation."""
    pre_norm, act = options.get("pre_norm", False), options.get("act", "relu")
    theirs = nn.Transformer(32, 4, 2, 3, 48, 0.0, act, norm_first=pre_norm, batch_first=True).eval()
    theirs.encoder.enable_nested_tensor = False  # it sets padding to 0
    randomise(theirs).to(dtype)
    ours = randomise(Transformer(**SMALL, final_norm=True, **options), 1).eval().to(dtype)
    state = ours.convert_state_dict(theirs.state_dict())
    assert ours.load_state_dict(state, strict=False).missing_keys == ["embed.weight"]
    return ours, theirs


def torch_states(ours, theirs, source, target, mask):
    """What torch.nn.Transformer makes of our embeddings."""
    causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=ours.embed.weight.dtype)
    padding = torch.zeros_like(mask, dtype=causal.dtype).masked_fill(~mask, -math.inf)
    positions = sinusoids(40, 32).to(causal.dtype)
    x, y = (ours.embed(t) * 32**0.5 + positions[: t.shape[1]] for t in (source, target))
    return theirs(x, y, tgt_mask=causal, src_key_padding_mask=padding, memory_key_padding_mask=padding)


def marian_pair(dtype=torch.float32):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference of this test")
    config = transformers.MarianConfig(
        vocab_size=50, max_position_embeddings=40, encoder_layers=2, decoder_layers=3, encoder_ffn_dim=48,
        decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4, d_model=32, scale_embedding=True,
        activation_function="relu", pad_token_id=0, decoder_start_token_id=1, eos_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    theirs = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        tables = [part.embed_positions.weight.clone() for part in (theirs.model.encoder, theirs.model.decoder)]
        randomise(theirs)
        for part, table in zip((theirs.model.encoder, theirs.model.decoder), tables, strict=True):
            part.embed_positions.weight.copy_(table)
    theirs.to(dtype)
    ours = Transformer(**SMALL, positions="halves").eval().to(dtype)
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()), strict=True)
    return ours, theirs


def with_logits(model, call):
    """(what ``call`` gives, the logits of each step) of a model that generates."""
    seen, plain = [], model.logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "logits", lambda x: seen.append(plain(x)) or seen[-1])
        return call(), torch.stack(seen, 1)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize(
    "options", [{}, dict(pre_norm=True), dict(pre_norm=True, act="gelu"), dict(act="gelu")], ids=str
)
@pytest.mark.parametrize("lengths", [(40, 21), (5, 9), (19, 1)], ids=str)
def test_tokens_agree_with_pytorch(lengths, options):
    ours, theirs = torch_pair(**options)
    source, target, mask = batch(*lengths)
    with torch.no_grad():
        expected = torch_states(ours, theirs, source, target, mask)
        found = ours.decode(target, ours.encode(source, mask), mask)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 0.1
        assert torch.equal(ours(source, target, mask), ours.logits(found))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_gradients_agree_with_pytorch(pre_norm, dtype, rtol):
    ours, theirs = torch_pair(dtype, pre_norm=pre_norm)
    source, target, mask = batch(19, 17)
    shared = []
    for states in (
        torch_states(ours, theirs, source, target, mask),
        ours.decode(target, ours.encode(source, mask), mask),
    ):
        ours.embed.weight.grad = None
        states.sin().sum().backward()
        shared.append(ours.embed.weight.grad)
        ours.embed.weight.grad = None
    torch.testing.assert_close(*shared, rtol=rtol, atol=rtol * shared[0].abs().max().item())
    assert_gradients_agree(TORCH, ours, theirs, rtol)


@pytest.mark.parametrize("lengths", [(40, 21), (5, 9)], ids=str)
def test_logits_agree_with_marian(lengths):
    ours, theirs = marian_pair()
    source, target, mask = batch(*lengths)
    with torch.no_grad():
        expected = theirs(source, attention_mask=mask, decoder_input_ids=target).logits
        torch.testing.assert_close(ours(source, target, mask), expected, rtol=1e-5, atol=1e-5)
        padded = torch.arange(lengths[1]) < torch.tensor([lengths[1], 3, 1])[:, None]
        expected = theirs(source, attention_mask=mask, decoder_input_ids=target, decoder_attention_mask=padded).logits
        found = ours(source, target, mask, padded)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[padded], ours(source, target, mask)[padded])  # nothing sees what follows it


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_a_training_step_agrees_with_marian(dtype, rtol):
    ours, theirs = marian_pair(dtype)
    source, target, mask = batch(19, 17)
    target[1, 5:] = PAD  # its embedding gets the gradient of the softmax alone
    for logits in (ours(source, target, mask), theirs(source, attention_mask=mask, decoder_input_ids=target).logits):
        nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten()).backward()
    assert_gradients_agree(MARIAN, ours, theirs, rtol)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("name, bare, marian", [("base", 44_140_544, 64_131_072), ("big", 176_361_472, 216_342_528)])
def test_published_sizes(name, bare, marian):
    transformers = pytest.importorskip("transformers", reason="transformers is the reference of this test")
    dim, heads, hidden = {"base": (512, 8, 2048), "big": (1024, 16, 4096)}[name]
    with torch.device("meta"):
        model = models.create_model(f"transformer_{name}")
        normed = models.create_model(f"transformer_{name}", final_norm=True)
        pytorchs = nn.Transformer(dim, heads, 6, 6, hidden)
        config = transformers.MarianConfig(
            vocab_size=37000, pad_token_id=0, decoder_start_token_id=1, d_model=dim, encoder_layers=6, decoder_layers=6,
            encoder_attention_heads=heads, decoder_attention_heads=heads,
            encoder_ffn_dim=hidden, decoder_ffn_dim=hidden,
        )  # fmt: skip
        theirs = transformers.MarianMTModel(config)
    own = {key: p for key, p in normed.named_parameters() if key != "embed.weight"}
    shapes = {key: p.shape for key, p in pytorchs.named_parameters()}
    assert {key: p.shape for key, p in revert(TORCH, own).items()} == shapes
    assert sum(p.numel() for p in own.values()) == bare == sum(p.numel() for p in pytorchs.parameters())
    positions = {key: p.numel() for key, p in theirs.named_parameters() if "embed_positions" in key}
    shapes = {key: p.shape for key, p in theirs.named_parameters() if key not in positions}
    assert {key: p.shape for key, p in revert(MARIAN, dict(model.named_parameters())).items()} == shapes
    assert sum(p.numel() for p in model.parameters()) + sum(positions.values()) == marian
    assert sum(p.numel() for p in theirs.parameters()) == marian
    assert model(*model.example_inputs(2)).shape == (2, 5, 37000)
    assert model.input_rule == "source (B, S) and target (B, T), ids below 37000, S and T <= 1024"


def test_names_are_converted_both_ways():
    for (ours, theirs), table in ((torch_pair(), TORCH), (marian_pair(), MARIAN)):
        own = {key: value for key, value in ours.state_dict().items() if table is MARIAN or key != "embed.weight"}
        back = revert(table, own)
        missing, unexpected = theirs.load_state_dict(back, strict=False)
        assert not unexpected and all(
            "embed" in key or key in ("lm_head.weight", "final_logits_bias") for key in missing
        )
        again = ours.convert_state_dict(back)
        assert again.keys() == own.keys() and all(torch.equal(again[key], own[key]) for key in own)


def test_a_state_of_marian_with_more_than_we_have_is_refused():
    ours, theirs = marian_pair()
    for key, what in (
        ("lm_head.weight", "two tensors are one here"),
        ("final_logits_bias", "no place for this tensor"),
    ):
        with pytest.raises(ValueError, match=f"{what}: got {key}"):
            ours.convert_state_dict(theirs.state_dict() | {key: theirs.state_dict()[key] + 1})


def test_positions_are_those_of_the_paper():
    table = sinusoids(7, 6)
    for position in range(7):
        for channel in range(6):
            angle = position / 10000 ** (2 * (channel // 2) / 6)
            assert table[position, channel] == pytest.approx(
                math.cos(angle) if channel % 2 else math.sin(angle), abs=1e-7
            )
    halves = sinusoids(7, 6, "halves")
    assert torch.equal(torch.stack([halves[:, :3], halves[:, 3:]], 2).flatten(1), table)
    assert sinusoids(3, 5).shape == sinusoids(3, 5, "halves").shape == (3, 5)


def test_positions_return_after_the_meta_device():
    with torch.device("meta"):
        model = Transformer(**SMALL)
    model.to_empty(device="cpu").positions.init_non_persistent_buffers()
    assert torch.equal(model.positions.table, sinusoids(40, 32)) and "positions.table" not in model.state_dict()


def test_greedy_tokens_are_those_of_marian():
    ours, theirs = marian_pair()
    source, _, mask = batch(12, 1)
    options = dict(max_new_tokens=20, num_beams=1, do_sample=False, return_dict_in_generate=True, output_logits=True)
    expected = theirs.generate(source, attention_mask=mask, **options)
    found, logits = with_logits(ours, lambda: ours.generate(source, mask, steps=20))
    assert torch.equal(found, expected.sequences[:, 1:])
    torch.testing.assert_close(logits, torch.stack(expected.logits, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("options", [{}, dict(pre_norm=True)], ids=str)
def test_a_cache_changes_nothing(options, beams):
    model = randomise(Transformer(**SMALL, **options)).eval().double()
    source, _, mask = batch(12, 1)
    (cached, logits), (plain, expected) = (
        with_logits(model, lambda flag=flag: model.generate(source, mask, beams=beams, use_cache=flag))
        for flag in (True, False)
    )
    assert torch.equal(cached, plain)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    assert logits.shape == (3 * beams, 40, 50) and logits.std(1).mean() > 0.02


def following_of(table):
    """Logits that depend on the token before alone."""
    return lambda tokens: table[tokens[:, -1]]


def test_beams_that_keep_all_find_the_likeliest_sequence():
    generator = torch.Generator().manual_seed(2)
    table, alpha = 2 * torch.randn(5, 5, generator=generator, dtype=torch.float64), 0.6
    logp = table.log_softmax(-1)

    def all_sequences(prefix, total):
        if len(prefix) == 4 or (len(prefix) > 1 and prefix[-1] == EOS):
            yield prefix[1:], total / ((5 + len(prefix) - 1) / 6) ** alpha
            return
        for token in range(5):
            yield from all_sequences((*prefix, token), total + logp[prefix[-1], token].item())

    best = max(all_sequences((BOS,), 0.0), key=lambda pair: pair[1])[0]
    begin = torch.full((2, 1), BOS)
    options = dict(eos=EOS, pad=PAD, length_penalty=alpha)
    found = beam_search(following_of(table), lambda rows: None, begin, 3, beams=125, **options)
    assert found.shape[0] == 2 and [tuple(row[: len(best)]) for row in found[:, 1:].tolist()] == [best, best]
    assert (found[:, 1 + len(best) :] == PAD).all()
    alone = beam_search(following_of(table), lambda rows: None, begin, 3, beams=1, **options)
    assert tuple(alone[0, 1:].tolist())[:1] == (table[BOS].argmax().item(),)
    with pytest.raises(ValueError, match="nothing to follow: got beams=0"):
        beam_search(following_of(table), lambda rows: None, begin, 3, beams=0, **options)


@pytest.mark.parametrize("penalty, best", [(0.0, [EOS]), (1.0, [3, 4, EOS])])
def test_beams_weigh_length_and_keep_what_ended(penalty, best):
    """An end of probability 0.4 against three tokens of 0.33, on the way to which it changes its place."""
    table = torch.zeros(6, 6)
    table[BOS, [3, EOS]] = torch.tensor([0.6, 0.4])
    table[3, [4, 5]] = torch.tensor([0.55, 0.45])
    table[4, EOS] = table[5, EOS] = 1.0
    begin, options = torch.full((2, 1), BOS), dict(eos=EOS, pad=PAD, length_penalty=penalty)
    found = beam_search(following_of(table.log()), lambda rows: None, begin, 5, beams=2, **options)
    assert found[:, 1:].tolist() == [best + [PAD] * (3 - len(best))] * 2
    alone = beam_search(following_of(table.log()), lambda rows: None, begin, 5, beams=1, **options)
    assert alone[:, 1:].tolist() == [[3, 4, EOS]] * 2


def test_norms_after_the_last_blocks_are_there_where_branches_begin_with_one():
    for options, there in (({}, False), (dict(pre_norm=True), True), (dict(pre_norm=True, final_norm=False), False)):
        names = dict(Transformer(**SMALL, **options).named_parameters())
        assert ("encoder_norm.weight" in names, "decoder_norm.bias" in names) == (there, there)


def test_sequences_end_alone_and_are_padded():
    table = torch.full((6, 6), -10.0)
    table[BOS, 3] = table[3, 4] = table[4, EOS] = table[5, 5] = table[EOS, 5] = 10.0  # 5 goes on for ever
    model = Transformer(6, 8, 2, 8, 1, max_len=16)
    model.encode = lambda source, mask: source[..., None].float()
    model.decode = lambda tokens, memory, mask, cache: tokens[..., None].expand(-1, -1, 8)
    first = torch.tensor([3, 5])
    model.logits = lambda x: torch.where(x[:, :1] == BOS, nn.functional.one_hot(first, 6) * 20.0, table[x[:, 0]])
    found = model.generate(torch.zeros(2, 4).long(), steps=5, use_cache=False)
    assert found.tolist() == [[3, 4, EOS, PAD, PAD], [5, 5, 5, 5, 5]]
    assert model.generate(torch.zeros(2, 4).long(), steps=99, use_cache=False).shape == (2, 16)


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(drop):
    model = randomise(Transformer(**SMALL, drop_rate=drop, attn_drop_rate=drop, pre_norm=drop > 0)).train()
    source, target, mask = batch(9, 7)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        model(source, target, mask).sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


def test_it_learns_to_reverse_digits():
    """In seconds on a CPU; and decodes the same greedily, with its cache and without, and by beams."""
    generator = torch.Generator().manual_seed(0)
    model = Transformer(13, 32, 4, 64, 2, max_len=16)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)

    def drawn(count):
        """Strings of 1 to 6 digits, which are 3 to 12, and what is to be said of them."""
        length = torch.randint(1, 7, (count, 1), generator=generator)
        digits = torch.randint(3, 13, (count, 6), generator=generator)
        place = torch.arange(6)
        source = digits.where(place < length, PAD)
        backwards = digits.gather(1, (length - 1 - place).clamp(min=0)).where(place < length, PAD)
        target = torch.cat([torch.full((count, 1), BOS), backwards, torch.full((count, 1), PAD)], 1)
        target.scatter_(1, length + 1, EOS)
        return source, target

    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=300)
    for _ in range(300):
        source, target = drawn(64)
        logits = model(source, target[:, :-1], source != PAD)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    source, target = drawn(200)
    found = model.generate(source, source != PAD)
    right = nn.functional.pad(found, (0, 15 - found.shape[1])) == nn.functional.pad(target[:, 1:], (0, 8))
    assert right.all(1).float().mean() > 0.97
    assert torch.equal(found, model.generate(source, source != PAD, use_cache=False))
    for use_cache in (True, False):
        beamed = model.generate(source, source != PAD, steps=7, beams=3, use_cache=use_cache)
        assert (beamed == target[:, 1:]).all(1).float().mean() > 0.97


BAD = {
    "token": (lambda: Transformer(50, pad_id=50), "special token is none of the vocabulary: got pad_id=50"),
    "heads": (lambda: Transformer(**SMALL | dict(num_heads=5)), "do not split into heads: got dim=32, num_heads=5"),
    "act": (lambda: Transformer(**SMALL, act="swish"), "unknown act: got 'swish'"),
    "layout": (lambda: Transformer(**SMALL, positions="learned"), "unknown layout: got 'learned'"),
    "long": (
        lambda: Transformer(**SMALL)(torch.zeros(1, 3).long(), torch.zeros(1, 41).long()),
        "target tokens are more than there are positions: got 41; expected at most 40",
    ),
}


@pytest.mark.parametrize("build, message", BAD.values(), ids=BAD)
def test_bad_input(build, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build()
