"""iGPT against transformers: logits, gradients, generated pixels, names of parameters in both directions, bad input."""

import pytest
import torch
from sequences import assert_gradients_agree, randomise

import vitkern.models as models
from vitkern.models.sequence.cache import Cache
from vitkern.models.sequence.igpt import ImageGPT, colours
from vitkern.models.sequence.keys import revert
from vitkern.models.sequence.tables import IMAGEGPT

transformers = pytest.importorskip("transformers", reason="transformers is the reference of this file")

SMALL = dict(img_size=(6, 7), num_classes=20, dim=24, depth=2, num_heads=3)


def pair(dtype=torch.float32):
    """(ours, transformers') with the same random weights, in evaluation."""
    config = transformers.ImageGPTConfig(vocab_size=21, n_positions=42, n_embd=24, n_layer=2, n_head=3)
    theirs = randomise(transformers.ImageGPTForCausalImageModeling(config).eval()).to(dtype)
    ours = ImageGPT(**SMALL).eval().to(dtype)
    ours.load_state_dict(ours.convert_state_dict(theirs.state_dict()), strict=True)
    return ours, theirs


def varied(model):
    """Positions outweigh tokens, so that no token begets itself for ever."""
    with torch.no_grad():
        model.embed.weight.mul_(0.3)
        model.pos_embed.mul_(3.0)
    return model


@pytest.mark.parametrize("n", [42, 17, 5, 1])
def test_logits_agree(n):
    ours, theirs = pair()
    tokens = ours.behind_start(torch.randint(0, 20, (3, n)))
    assert tokens.shape == (3, n) and (tokens[:, 0] == 20).all()
    with torch.no_grad():
        expected = theirs(tokens, output_hidden_states=True)
        torch.testing.assert_close(ours(tokens), expected.logits, rtol=1e-5, atol=1e-5)
    assert expected.logits.std() > 0.1
    assert torch.equal(ours.forward_head(ours.forward_features(tokens)), ours(tokens))


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_gradients_agree(dtype, rtol):
    ours, theirs = pair(dtype)
    pixels = torch.randint(0, 20, (3, 42))
    for logits in (ours(ours.behind_start(pixels)), theirs(ours.behind_start(pixels)).logits):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), pixels.flatten()).backward()
    assert_gradients_agree(IMAGEGPT, ours, theirs, rtol)


@pytest.mark.parametrize("name, count", [("small", 76_682_240), ("medium", 455_489_536), ("large", 1_362_914_304)])
def test_published_sizes(name, count):
    shape = {"small": (512, 24, 8), "medium": (1024, 36, 8), "large": (1536, 48, 16)}[name]
    with torch.device("meta"):
        model = models.create_model(f"igpt_{name}")
        config = transformers.ImageGPTConfig(**dict(zip(("n_embd", "n_layer", "n_head"), shape, strict=True)))
        theirs = transformers.ImageGPTForCausalImageModeling(config)
    shapes = {key: tuple(value.shape) for key, value in theirs.named_parameters()}
    assert {
        key: tuple(value.shape) for key, value in revert(IMAGEGPT, dict(model.named_parameters())).items()
    } == shapes
    assert sum(p.numel() for p in model.parameters()) == count == sum(p.numel() for p in theirs.parameters())
    assert {m.eps for m in model.modules() if hasattr(m, "eps")} == {1e-5}
    assert model(*model.example_inputs(2)).shape == (2, 4, 512)
    assert model.input_rule.endswith("the start token 512, which is the first, N <= 1024")


def test_names_are_converted_both_ways(tmp_path):
    ours, theirs = pair()
    own, back = ours.state_dict(), revert(IMAGEGPT, ours.state_dict())
    theirs.load_state_dict(back, strict=True)
    again = ours.convert_state_dict(back)
    assert again.keys() == own.keys() and all(torch.equal(again[key], own[key]) for key in own)
    back["transformer.h.0.attn.bias"] = torch.ones(1, 1, 42, 42)  # the mask, which older checkpoints hold
    torch.save(back, tmp_path / "pytorch_model.bin")
    loaded = ImageGPT(**SMALL)
    models.load_weights(loaded, tmp_path / "pytorch_model.bin")
    assert all(torch.equal(value, own[key]) for key, value in loaded.state_dict().items())


def test_generated_pixels_are_those_of_transformers():
    ours, theirs = pair()
    varied(ours)
    theirs.load_state_dict(revert(IMAGEGPT, ours.state_dict()))
    begin = torch.randint(0, 20, (2, 3))
    tokens = torch.cat([torch.full((2, 1), 20), begin], 1)
    expected = theirs.generate(tokens, max_length=42, do_sample=False)
    found = ours.generate(begin, temperature=0.0)
    assert found.shape == (2, 42) and torch.equal(found[:, :3], begin)
    assert torch.equal(found[:, :41], expected[:, 1:]) and found.unique().numel() > 4


@pytest.mark.parametrize("options", [dict(temperature=0.0), dict(top_k=5), dict(temperature=0.7)], ids=str)
@pytest.mark.parametrize("known", [0, 4])
def test_a_cache_changes_nothing(options, known):
    model, begin = varied(randomise(ImageGPT(**SMALL))).eval().double(), torch.randint(0, 20, (3, known))
    found = [
        model.generate(begin, use_cache=use_cache, generator=torch.Generator().manual_seed(5), **options)
        for use_cache in (True, False)
    ]
    assert found[0].shape == (3, 42) and torch.equal(*found) and found[0].unique().numel() > 4


def test_pieces_of_any_length_go_through_a_cache():
    model = randomise(ImageGPT(**SMALL)).eval().double()
    tokens, cache, found = torch.randint(0, 20, (2, 42)), Cache(2), []
    with torch.no_grad():
        for piece in tokens.split([1, 17, 1, 2, 21], 1):
            found.append(model.forward_features(piece, cache))
        torch.testing.assert_close(torch.cat(found, 1), model.forward_features(tokens), rtol=1e-12, atol=1e-12)
    assert cache.length == 42
    with pytest.raises(ValueError, match="more than there are positions: got 43; expected at most 42"):
        model.forward_features(tokens[:, :1], cache)


def test_top_k_draws_among_the_likeliest_alone():
    model = varied(randomise(ImageGPT(**SMALL))).eval()
    nothing = torch.zeros(2, 0).long()
    assert torch.equal(model.generate(nothing, top_k=1), model.generate(nothing, temperature=0.0))
    for options in (dict(temperature=-1.0), dict(top_k=0), dict(temperature=float("nan"))):
        with pytest.raises(ValueError, match=r"draw: got temperature=.*expected a temperature of at least 0"):
            model.generate(nothing, **options)


def test_more_than_an_image_is_refused():
    with torch.device("meta"):
        model = ImageGPT(**SMALL)
        for call in (model.generate, model):
            with pytest.raises(ValueError, match="are more than there are positions: got 43; expected at most 42"):
                call(torch.zeros(1, 43).long())
            with pytest.raises(TypeError, match=r"are no ids: got torch\.float32"):
                call(torch.zeros(1, 4))


def test_features_for_a_linear_probe():
    ours, theirs = pair()
    pixels = torch.randint(0, 20, (3, 42))
    with torch.no_grad():
        states = theirs(ours.behind_start(pixels), output_hidden_states=True).hidden_states
        for layer in (0, 1):
            expected = theirs.transformer.h[layer].ln_1(states[layer]).mean(1)
            torch.testing.assert_close(ours.probe(pixels, layer), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.probe(pixels, 2), states[2].mean(1), rtol=1e-5, atol=1e-5)
        assert torch.equal(ours.probe(pixels), ours.probe(pixels, 1))
    with pytest.raises(ValueError, match="there is no such block: got layer=3; expected 0 to 2"):
        ours.probe(pixels, 3)


def test_colours_are_the_nearest():
    clusters = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0]])
    images = torch.zeros(2, 3, 2, 2)
    images[0, :, 0, 1], images[1, 0, 1, 0] = 0.9, 0.8
    assert colours(images, clusters).tolist() == [[0, 1, 0, 0], [0, 0, 2, 0]]


def test_initial_weights_shrink_with_depth():
    model = ImageGPT(**SMALL | dict(dim=96, depth=8))
    assert abs(model.blocks[0].mlp.fc1.weight.std() - 0.02) < 1e-3
    assert abs(model.blocks[0].mlp.fc2.weight.std() - 0.02 / 4) < 3e-4
    assert not any(name.endswith("weight") and "norm" not in name for name in model.no_weight_decay())
