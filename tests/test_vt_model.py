"""Visual Transformers against their equations, on timm's ResNet stages with the same random weights."""

import model_pairs
import pytest
import torch
from checkpoints import assert_blocks_run_again
from uninitialised import uninitialised

import vitkern.models as models

SMALL = dict(num_classes=5, depths=(1, 2, 1), stem_chs=16, vt_depth=2, num_tokens=6, token_dim=48, num_heads=4)


def by_equations(model, pixels):
    """The modules of ``model`` on pixels (B, N, C) -> (tokens, pixels): arXiv 2006.03677, equations 1 to 5."""

    def heads(x):
        return x.unflatten(2, (model.vt[0].transformer.num_heads, -1)).transpose(1, 2)

    tokens = None
    for module in model.vt:
        cut, mix = module.tokenizer, module.transformer
        value = pixels if isinstance(cut.value, torch.nn.Identity) else pixels @ cut.value.weight.T
        scores = pixels @ (cut.filters.T if tokens is None else (tokens @ cut.from_tokens.weight.T).transpose(1, 2))
        tokens = scores.softmax(1).transpose(1, 2) @ value  # over pixels
        left, right = heads(tokens @ mix.key.weight.T), heads(tokens @ mix.query.weight.T)
        weights = (left @ right.transpose(2, 3)).softmax(3)
        tokens = tokens + (weights @ heads(tokens)).transpose(1, 2).flatten(2)
        tokens = tokens + (tokens @ mix.fc1.weight.T).relu() @ mix.fc2.weight.T
        if module.projector is not None:
            back = module.projector
            value = tokens if isinstance(back.value, torch.nn.Identity) else tokens @ back.value.weight.T
            asked, given = heads(pixels @ back.query.weight.T), heads(tokens @ back.key.weight.T)
            weights = (asked @ given.transpose(2, 3)).softmax(3)  # over tokens
            pixels = pixels + (weights @ heads(value)).transpose(1, 2).flatten(2)
    return tokens, pixels


def small(bottleneck, **changes):
    """(ours, timm's ResNet of its three stages) with the same random weights, in float64."""
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    from timm.models.byobnet import ByoBlockCfg

    kind, factor = ("bottle", 4) if bottleneck else ("basic", 1)
    blocks = tuple(
        ByoBlockCfg(kind, d=depth, c=factor * 16 * 2**i, s=min(i, 1) + 1, gs=0, br=1 / factor)
        for i, depth in enumerate(SMALL["depths"])
    )
    with uninitialised():
        theirs = timm.create_model("halonet_h1", num_classes=0, blocks=blocks, stem_chs=16)
    ours = models.create_model("vt_resnet18", bottleneck=bottleneck, **SMALL | changes)
    model_pairs.randomise(ours.eval().double())
    with torch.no_grad():
        for module in ours.vt:  # maps and tokens are small: with small weights all tokens are nearly one
            cut = module.tokenizer
            (cut.from_tokens.weight if cut.recurrent else cut.filters).mul_(3.0)
    missing, unexpected = theirs.double().eval().load_state_dict(ours.state_dict(), strict=False)
    assert not missing and all(key.startswith(("vt.", "head.")) for key in unexpected)
    return ours, theirs


CASES = [(False, {}), (True, dict(num_heads=1, token_dim=256)), (True, dict(vt_depth=1))]


def both(bottleneck, changes):
    """(ours, its peer below the tokens, images, the map that this gives; by the equations tokens, pixels, logits)."""
    ours, theirs = small(bottleneck, **changes)
    x = torch.randn(2, 3, 70, 96, dtype=torch.float64)
    below = theirs.forward_features(x)
    tokens, pixels = by_equations(ours, below.flatten(2).transpose(1, 2))
    return ours, theirs, x, below, tokens, pixels, tokens.mean(1) @ ours.head.fc.weight.T + ours.head.fc.bias


@pytest.mark.parametrize("bottleneck, changes", CASES)
def test_logits_and_maps_agree_with_the_equations(bottleneck, changes):
    ours, _, x, below, tokens, pixels, expected = both(bottleneck, changes)
    assert expected.std() > 1e-2
    torch.testing.assert_close(ours(x), expected, rtol=1e-9, atol=1e-9)
    features, maps = ours.forward_intermediates(x)
    torch.testing.assert_close(features, tokens, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(maps[-2], below, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), pixels, rtol=1e-9, atol=1e-9)
    single = ours.float()(x.float())
    torch.testing.assert_close(single, expected.float(), rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert [one.shape[1] for one in maps] == [row["num_chs"] for row in ours.feature_info]


@pytest.mark.parametrize("bottleneck, changes", CASES)
def test_gradients_agree_with_the_equations(bottleneck, changes):
    ours, theirs, x, *_, expected = both(bottleneck, changes)
    parameters = dict(ours.named_parameters())
    found = torch.autograd.grad(ours(x).square().sum(), list(parameters.values()))
    above = [key for key in parameters if key.startswith(("vt.", "head."))]
    peers = dict(theirs.named_parameters()) | {key: parameters[key] for key in above}
    wanted = torch.autograd.grad(expected.square().sum(), [peers[key] for key in parameters])
    largest = max(other.abs().max().item() for other in wanted)
    for key, one, other in zip(parameters, found, wanted, strict=True):
        assert other.abs().max() > 1e-9 * largest, f"no signal in {key}"
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-13 * largest, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("layers, count", [(18, 11_807_272), (34, 21_782_312), (50, 23_216_168), (101, 42_208_296)])
def test_parameter_counts(layers, count):
    """The paper gives 11.7, 19.2, 21.4 and 41.5 M, and not what its modules' channels are; these are ours."""
    description = models.describe(f"vt_resnet{layers}")
    assert (description.parameters, description.input_size, description.num_classes) == (count, (3, 224, 224), 1000)


def test_as_a_backbone():
    x = model_pairs.images((64, 48), 2)
    model = models.create_model("vt_resnet18", **SMALL)
    model_pairs.assert_checkpointing_changes_nothing(model, x)
    assert_blocks_run_again(model, [model.stages[1][0], model.vt[0]], x)
    model_pairs.assert_another_head(model, x)
    model_pairs.assert_maps("vt_resnet18", 64, **SMALL)
    assert model.no_weight_decay() == {"vt.0.tokenizer.filters"}
    backbone = models.create_model("vt_resnet18", features_only=True, **SMALL)
    lower = models.create_model("vt_resnet18", features_only=True, out_indices=[1], **SMALL)
    assert not any(name.startswith(("model.vt", "model.stages.1")) for name, _ in lower.named_parameters())
    assert [one.shape[1:] for one in backbone(x)] == [
        (16, 32, 24), (16, 16, 12), (32, 8, 6), (64, 4, 3), (64, 4, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(token_dim=50), "VisualTransformer: channels do not split into heads: got token_dim=50, num_heads=4"),
        (dict(key_dim=6), "VisualTransformer: channels do not split into heads: got key_dim=6, num_heads=4"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        models.create_model("vt_resnet18", **SMALL | changes)
