"""STRec beyond the authors' tensors: the dense backbone, padding, stages, gradients, bad arguments."""

import pytest
import torch
import torch.nn as nn

from vitkern.commands.timing import peak_memory
from vitkern.strec import slices as strec_slices
from vitkern.strec.form import FORMS, default_alphas, default_ks
from vitkern.strec.model import STRec
from vitkern.strec.sampling import sampled_order

N, ITEMS = 10, 40


def build(**arguments):
    torch.manual_seed(1)
    settings = dict(d=16, n_layers=3, n_heads=2, dropout=0.0) | arguments
    model = STRec(ITEMS, N, **settings).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
        model.item_embedding.weight[0] = 0
    return model


def sequences(batch=5, length=N, padding=0):
    seq = torch.randint(1, ITEMS, (batch, length))
    times = torch.randint(0, 5000, (batch, length)).sort(dim=1).values + 1_700_000_000
    seq[:, :padding] = 0
    return seq, times


def encoder_of(model):
    """PyTorch's own post-norm encoder with the weights of the model: an independent dense backbone."""
    layers = []
    for layer in model.trm_encoder["layer"]:
        attention, forward = layer.multi_head_attention, layer.feed_forward
        d = attention.query.in_features
        peer = nn.TransformerEncoderLayer(
            d, attention.heads, forward.dense_1.out_features, 0.0, "gelu", 1e-12, batch_first=True
        ).double()
        qkv = (attention.query, attention.key, attention.value)
        peer.self_attn.in_proj_weight.data = torch.cat([p.weight.data for p in qkv])
        peer.self_attn.in_proj_bias.data = torch.cat([p.bias.data for p in qkv])
        for ours, theirs in (
            (attention.dense, peer.self_attn.out_proj), (attention.LayerNorm, peer.norm1),
            (forward.dense_1, peer.linear1), (forward.dense_2, peer.linear2), (forward.LayerNorm, peer.norm2),
        ):  # fmt: skip
            theirs.load_state_dict(ours.state_dict())
        layers.append(peer)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("padding", [0, 4])
def test_all_rows_kept_is_the_dense_backbone(padding):
    model, (seq, times) = build(ks=(N, N, N)), sequences(padding=padding)
    x = model.embed(seq, torch.arange(N).expand_as(seq))[:, padding:]
    expected = encoder_of(model).eval()(x)[:, -1]
    torch.testing.assert_close(model(seq, times), expected, rtol=1e-12, atol=1e-12)


def test_sampled_order_with_all_rows_equals_the_dense_backbone():
    """The path that samples: all rows, in the sampler's order, but for one of the last layer that nothing reads."""
    model, (seq, times) = build(ks=(N, N, N)), sequences(padding=2)
    dense = model(seq, times)
    sampled = build(ks=(N, N, N - 1))
    sampled.load_state_dict(model.state_dict())
    torch.testing.assert_close(sampled(seq, times), dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_padding_changes_nothing(form, stage):
    model = build(form=form).set_stage(stage)
    seq, times = sequences(length=6)
    wide = torch.cat([torch.zeros(5, 4, dtype=torch.int64), seq], 1)
    odd = torch.cat([torch.full((5, 4), -(10**12)), times], 1)
    noise = torch.randn(5, 6).double()
    padded = model(wide, odd, torch.cat([torch.full((5, 4), 99.0).double(), noise], 1))
    torch.testing.assert_close(padded, model(seq, times, noise), rtol=1e-9, atol=1e-9)
    assert torch.isfinite(padded).all()


def test_padding_is_sampled_after_every_real_item():
    model, (seq, times) = build(ks=(N, 5, 1)), sequences(padding=7)
    order = sampled_order(seq, model.score(seq, times) - 50)
    assert (seq.gather(1, order)[:, :3] != 0).all() and (order[:, 0] == N - 1).all()
    assert [x.shape[1] for x in model.hidden_states(seq, times)] == [N, 5, 1]


def test_k_beyond_the_sequence():
    model, (seq, times) = build(ks=(N, 8, 4)), sequences(length=2)
    assert [x.shape[1] for x in model.hidden_states(seq, times)] == [2, 2, 2]
    assert model(seq[:, -1:], times[:, -1:]).shape == (5, 16)


def test_first_layer_samples_too():
    """k_1 below n: the rows that are left attend to all keys."""
    small, whole = build(ks=(4, 4, 4)), build(ks=(N, 4, 4))
    seq, times = sequences()
    first = next(small.hidden_states(seq, times))
    torch.testing.assert_close(first, next(whole.hidden_states(seq, times))[:, :4], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["official", "log"])
def test_soft_mask_where_it_is_sharp_equals_sampling(form):
    """Scores far from every threshold, equal counts: pre-training and fine-tuning give the last item the same state."""
    keep = 4
    model = build(form=form, ks=(N, keep, 1), alphas=(100.0, 0.0, 0.0, 0.0))
    seq, times = sequences()
    noise = torch.full((5, N), -50.0).double()
    noise[:, -keep:] = 50.0
    soft = model.set_stage("pretrain")(seq, times, noise)
    # In fine-tuning layer 1 computes every row; the sampled ones alone are keys of layer 2, as under the mask.
    model.ks = (keep, keep, 1)
    torch.testing.assert_close(soft, model.set_stage("finetune")(seq, times, noise), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_pretraining_ends_with_the_last_row_alone(form):
    model, (seq, times) = build(form=form).set_stage("pretrain"), sequences(padding=3)
    *_, rows = model.hidden_states(seq, times)
    *_, row = model.hidden_states(seq, times, whole=False)
    assert rows.shape == (5, N, 16) and row.shape == (5, 1, 16)
    torch.testing.assert_close(row, rows[:, -1:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(seq, times), rows[:, -1], rtol=1e-9, atol=1e-9)


def test_without_noise_the_gates_of_evaluation_are_those_of_its_mean():
    seq, times = sequences()
    model = build(noise="uniform").set_stage("pretrain")
    assert torch.equal(model(seq, times), model(seq, times, torch.full(seq.shape, 0.5)))
    assert torch.equal(build(noise="normal").score(seq, times), build().score(seq, times, torch.zeros(seq.shape)))


def test_one_state_dict_for_both_stages():
    model = build()
    before = {name: t.clone() for name, t in model.set_stage("pretrain").state_dict().items()}
    assert list(before) == list(model.set_stage("finetune").state_dict())
    other = build(ks=(N, 3, 1)).set_stage("finetune")
    other.load_state_dict(before, strict=True)


@pytest.mark.parametrize("form", FORMS)
def test_pretraining_reaches_the_sampler_and_fine_tuning_does_not(form):
    model, (seq, times) = build(form=form), sequences()
    if FORMS[form].relaxation == "product":
        # The penalty of 1e8 leaves a gradient only where a mask is neither open nor shut.
        model.form = FORMS[form].__class__(**(FORMS[form].__dict__ | {"temperature": 1.0}))
        for layer in model.trm_encoder["layer"]:
            layer.multi_head_attention.strength = 3.0
    model.set_stage("pretrain")(seq, times, torch.zeros(seq.shape)).square().sum().backward()
    assert model.ffn.dense_1.weight.grad.abs().max() > 0
    model.zero_grad(set_to_none=True)
    model.set_stage("finetune")(seq, times, torch.zeros(seq.shape)).square().sum().backward()
    assert model.ffn.dense_1.weight.grad is None and model.item_embedding.weight.grad.abs().max() > 0


def test_log_form_is_well_conditioned_in_float32():
    """The sampler's gradient in float32 agrees with float64, where the authors' form loses it."""

    def gradient(model):
        model.set_stage("pretrain")(seq, times, noise)[:, 0].sum().backward()
        return model.ffn.dense_1.weight.grad.double()

    seq, times = sequences()
    noise = torch.randn(seq.shape)
    exact, single = gradient(build(form="log")), gradient(build(form="log").float())
    assert (exact - single).abs().max() < 1e-3 * exact.abs().max()


def test_times_are_subtracted_before_they_are_cast():
    model, (seq, _) = build().float(), sequences()
    gaps = torch.arange(N - 1, -1, -1).expand(5, N)
    old, new = 10 - gaps, 1_700_000_000 - gaps
    assert torch.equal(model.score(seq, old), model.score(seq, new))
    assert torch.equal(model.score(seq, old), model.score(seq, new.double()))


@pytest.mark.parametrize("sampler", ["hash", "position", "random"])
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_other_samplers(sampler, stage):
    model, (seq, times) = build(sampler=sampler).set_stage(stage), sequences(padding=3)
    assert torch.isfinite(model(seq, times)).all()
    if sampler == "position":
        assert torch.equal(model(seq, times), model(seq, times + torch.arange(N) * 7))
    if sampler == "hash":
        assert model.ffn.raw(torch.tensor([[-2000.0, -500.0, 0.0]])).tolist()[0] == pytest.approx(
            [-0.7824, -0.7824 + 0.075, -0.7824 + 0.8194]
        )
        assert not list(model.ffn.parameters())


def test_noise_is_drawn_in_training_and_on_request_alone():
    seq, times = sequences()
    model = build()
    assert torch.equal(model.score(seq, times), model.score(seq, times))
    assert not torch.equal(model.train().score(seq, times), model.score(seq, times))
    noisy = build(eval_noise=True)
    assert not torch.equal(noisy.score(seq, times), noisy.score(seq, times))
    uniform = build(noise="uniform").draw_noise((200, N), "cpu")
    assert uniform.min() >= 0 and uniform.max() <= 1 and build(noise=None).draw_noise((2, N), "cpu") is None


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("ks", [(N, 4, 1), (N, N, N)])
def test_inference_a_few_sequences_at_a_time(monkeypatch, stage, ks):
    """Equal to all at once, the noise that is drawn too."""
    monkeypatch.setattr(strec_slices, "_CPU_BYTES", 3 * N * 64 * 8)  # three sequences of float64
    model, (seq, times) = build(ks=ks, eval_noise=True, noise="normal").set_stage(stage), sequences(batch=8, padding=3)
    taken, whole = [], model._state
    model._state = lambda seq, *rest: taken.append(len(seq)) or whole(seq, *rest)
    torch.manual_seed(5)
    together = model(seq, times)
    torch.manual_seed(5)
    with torch.no_grad():
        torch.testing.assert_close(model(seq, times), together, rtol=1e-12, atol=1e-12)
    assert taken == [8, 3, 3, 2]
    with torch.no_grad():
        assert model(seq[:0], times[:0]).shape == (0, 16)
        model.train()(seq, times)
    assert taken[4:] == [0, 8]


def test_memory_of_inference_does_not_grow_with_the_batch(monkeypatch):
    monkeypatch.setattr(strec_slices, "_CPU_BYTES", 4 * N * 64 * 8)
    model = build()

    def peak(batch):
        seq, times = sequences(batch)
        with torch.no_grad():
            return peak_memory(lambda: model(seq, times), torch.device("cpu"))

    assert peak(400) - peak(4) < 2 * 400 * 16 * 8  # the result, as parts and as one


def test_attention_weights_are_dropped_in_training_alone():
    model, (seq, times) = build(ks=(N, N, N), attention_dropout=0.5), sequences(padding=2)
    plain = build(ks=(N, N, N))(seq, times)
    assert torch.equal(model(seq, times), plain)
    assert not torch.allclose(model.train()(seq, times), plain)
    with pytest.raises(ValueError, match="dropout_p is no probability"):
        build(attention_dropout=1.0).train()(seq, times)


def test_topk():
    model, (seq, times) = build(), sequences(padding=2)
    items, scores = model.topk(seq, times, 5)
    expected = (model(seq, times) @ model.item_table().T)[:, 1:]
    assert torch.equal(items, expected.argsort(dim=1, descending=True)[:, :5] + 1)
    torch.testing.assert_close(scores, expected.sort(dim=1, descending=True).values[:, :5])
    unseen, _ = model.topk(seq, times, ITEMS - 1 - N, exclude_seen=True)
    assert not (unseen[:, :, None] == seq[:, None, :]).any() and (unseen > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(ks=(N, 3)), "one k a layer"),
        (dict(ks=(3, 4, 1)), "ks grows"),
        (dict(ks=(N + 1, 4, 1)), "max_len = 10"),
        (dict(ks=(N, 4, 0)), "expected 1 .."),
        (dict(alphas=(1.0,)), "alphas does not fit"),
        (dict(alphas=(1.0, 0.0, float("nan"), 0.0)), "expected finite numbers"),
        (dict(form="other"), "unknown form"),
        (dict(sampler="age"), "unknown sampler"),
        (dict(noise="gumbel"), "unknown noise"),
        (dict(sampler="random", noise=None), "needs noise"),
        (dict(activation="gelu"), "unknown activation"),
        (dict(n_heads=3), "do not split into heads"),
        (dict(n_layers=0), "not usable"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        STRec(ITEMS, N, **(dict(d=16, n_layers=3, n_heads=2) | arguments))


def test_bad_inputs():
    model, (seq, times) = build(), sequences()
    with pytest.raises(ValueError, match="aligned right"):
        model(seq.flip(1) * (torch.arange(N) < 5), times)
    with pytest.raises(ValueError, match="timestamps has the wrong shape"):
        model(seq, times[:, 1:])
    with pytest.raises(ValueError, match="seq has the wrong shape"):
        model(torch.ones(2, N + 1, dtype=torch.int64), torch.ones(2, N + 1))
    with pytest.raises(ValueError, match="k is not usable"):
        model.topk(seq, times, ITEMS)
    with pytest.raises(ValueError, match="unknown stage"):
        model.set_stage("serve")


def test_default_densities():
    assert default_ks(50, 8) == (50, 20, 20, 5, 5, 5, 5, 1) and default_ks(8, 8) == (8, 3, 3, 3, 3, 3, 3, 1)
    for layers in range(1, 12):
        for length in (1, 2, 7, 200):
            ks = default_ks(length, layers)
            assert len(ks) == layers and ks[-1] == 1 and len(default_alphas(layers)) == layers + 1
            STRec(3, length, d=4, n_layers=layers, n_heads=1)
