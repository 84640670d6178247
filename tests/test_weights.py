"""Other libraries' checkpoints, converted by their names, give the same logits."""

import re

import pytest
import torch

import vitkern.models as models
from vitkern.models.tables import FAMILIES, detect_family

VIT = dict(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=96,
    image_size=48,
    patch_size=16,
    num_labels=5,
)
SWIN = dict(
    embed_dim=16, depths=[2, 2, 2], num_heads=[1, 2, 4], image_size=112, window_size=7, num_labels=5, drop_path_rate=0.0
)
OWN_VIT = dict(embed_dim=48, depth=2, num_heads=3, mlp_ratio=2.0, img_size=48, num_classes=5)
OWN_SWIN = dict(embed_dim=16, depths=(2, 2, 2), num_heads=(1, 2, 4), img_size=112, num_classes=5)


def randomise(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            norm = p.dim() == 1 and name.endswith("weight")
            p.copy_(
                1.0 + 0.3 * noise
                if norm
                else noise / p[0].numel() ** 0.5
                if p.dim() == 2 and "table" not in name
                else 0.5 * noise
            )
    return model.eval()


def from_transformers(kind):
    transformers = pytest.importorskip("transformers", reason="it is the reference of this test")
    if kind == "vit":
        peer = transformers.ViTForImageClassification(transformers.ViTConfig(**VIT))
        own = models.create_model("google/vit-base-patch16-224", **OWN_VIT)
    elif kind == "vit, headless":
        config = {key: value for key, value in VIT.items() if key != "num_labels"}
        peer = transformers.ViTModel(transformers.ViTConfig(**config))
        own = models.create_model("google/vit-base-patch16-224-in21k", **{**OWN_VIT, "num_classes": 0})
    elif kind == "deit":
        peer = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**VIT))
        own = models.create_model("facebook/deit-base-distilled-patch16-224", **OWN_VIT)
    elif kind == "swin":
        peer = transformers.SwinForImageClassification(transformers.SwinConfig(**SWIN))
        own = models.create_model("swin_tiny_patch4_window7_224", **OWN_SWIN)
    else:
        config = {**SWIN, "window_size": 8, "image_size": 128, "pretrained_window_sizes": [6, 6, 3]}
        peer = transformers.Swinv2ForImageClassification(transformers.Swinv2Config(**config))
        own = models.create_model(
            "swinv2_tiny_window8_256", **{**OWN_SWIN, "img_size": 128, "pretrained_window_sizes": (6, 6, 3)}
        )
    randomise(peer)

    def logits(x):
        out = peer(x)
        return out.last_hidden_state[:, 0] if kind == "vit, headless" else out.logits

    return peer, logits, own.eval()


def from_torchvision(kind):
    torchvision = pytest.importorskip("torchvision", reason="it is the reference of this test")
    swin = torchvision.models.swin_transformer
    if kind == "vit":
        peer = torchvision.models.VisionTransformer(48, 16, 2, 3, 48, 96, num_classes=5)
        own = models.create_model("vit_base_patch16_224", **OWN_VIT)
    elif kind == "swin":
        peer = swin.SwinTransformer([4, 4], 16, [2, 2, 2], [1, 2, 4], [7, 7], num_classes=5)
        own = models.create_model("swin_tiny_patch4_window7_224", **OWN_SWIN)
    else:
        parts = dict(block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2)
        peer = swin.SwinTransformer([4, 4], 16, [2, 2, 2], [1, 2, 4], [8, 8], num_classes=5, **parts)
        own = models.create_model("swinv2_tiny_window8_256", **{**OWN_SWIN, "img_size": 128})
    randomise(peer)
    return peer, peer, own.eval()


PEERS = [
    (from_transformers, "vit", "transformers_vit"),
    (from_transformers, "vit, headless", "transformers_vit"),
    (from_transformers, "deit", "transformers_deit"),
    (from_transformers, "swin", "transformers_swin"),
    (from_transformers, "swin v2", "transformers_swinv2"),
    (from_torchvision, "vit", "torchvision_vit"),
    (from_torchvision, "swin", "torchvision_swin"),
    (from_torchvision, "swin v2", "torchvision_swinv2"),
]


@pytest.mark.parametrize(
    "build, kind, family", PEERS, ids=[f"{p[2]}{'-headless' * ('headless' in p[1])}" for p in PEERS]
)
def test_converted_weights_give_the_peers_logits(build, kind, family, tmp_path):
    peer, logits, own = build(kind)
    state = peer.state_dict()
    assert detect_family(state) == family
    own.load_state_dict(models.convert_state_dict(state, family), strict=True)
    x = torch.randn(2, 3, *own.patch_embed.img_size)
    with torch.no_grad():
        expected = logits(x)
        torch.testing.assert_close(own(x), expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))
        assert expected.std() > 1e-2
        torch.save(state, tmp_path / "peer.bin")
        for p in own.parameters():
            p.zero_()
        models.load_weights(own, tmp_path / "peer.bin")
        torch.testing.assert_close(own(x), expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("name, window", [("swin_tiny_patch4_window7_224", 3), ("swinv2_tiny_window8_256", 4)])
def test_padding_before_rolling_agrees_with_torchvision(name, window):
    """Windows that do not divide the grid: torchvision pads and then rolls, timm the other way round."""
    torchvision = pytest.importorskip("torchvision", reason="it is the reference of this test")
    swin = torchvision.models.swin_transformer
    parts = dict(block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2) if window == 4 else {}
    peer = randomise(swin.SwinTransformer([4, 4], 16, [2, 2], [1, 2], [window] * 2, num_classes=5, **parts))
    shape = dict(embed_dim=16, depths=(2, 2), num_heads=(1, 2), num_classes=5, img_size=(100, 84), window_size=window)
    own = models.create_model(name, wrap="padded", **shape).eval()
    other = models.create_model(name, wrap="image", **shape).eval()
    x = torch.randn(2, 3, 100, 84)
    for model in (own, other):
        model.load_state_dict(models.convert_state_dict(peer.state_dict(), detect_family(peer.state_dict())))
    with torch.no_grad():
        expected = peer(x)
        torch.testing.assert_close(own(x), expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))
        assert (other(x) - expected).abs().max() > 1e-3


def hub_names(key):
    """transformers 5 renames what it reads from the hub; the files there keep these names."""
    key = re.sub(r"^(vit|deit)\.layers\.(\d+)", r"\1.encoder.layer.\2", key)
    inner = "attention.attention" if key.startswith(("vit.", "deit.")) else "attention.self"
    for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        key = key.replace(f"attention.{new}", f"{inner}.{old}")
    key = (
        key.replace("attention.o_proj", "attention.output.dense")
        .replace("mlp.fc1", "intermediate.dense")
        .replace("mlp.fc2", "output.dense")
    )
    return key.replace("attention.relative_position_bias.", "attention.self.")


@pytest.mark.parametrize("kind", ["vit", "deit", "swin", "swin v2"])
def test_names_of_checkpoints_on_the_hub_convert_too(kind):
    peer, _, own = from_transformers(kind)
    state = peer.state_dict()
    family = detect_family(state)
    old = {hub_names(key): value for key, value in state.items()}
    assert old.keys() != state.keys() or kind == "swin v2"
    if kind.startswith("swin"):
        prefix = next(key for key in old if key.endswith("logit_scale") or key.endswith("bias_table")).rsplit(".", 1)[0]
        old[f"{prefix}.relative_position_index"] = torch.zeros(2, 2)
    expected = models.convert_state_dict(state, family)
    actual = models.convert_state_dict(old, detect_family(old))
    assert actual.keys() == expected.keys() == own.state_dict().keys()
    for key, value in expected.items():
        assert torch.equal(actual[key], value), key


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_checkpoints_of_the_authors_of_swin_load(name, tmp_path):
    """They merge patches at the end of a stage, call the head ``head``, and save index buffers."""
    source = randomise(models.create_model(name, **OWN_SWIN))
    theirs = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(2, 2),
        "layers.0.blocks.1.attn_mask": torch.zeros(2),
    }
    for key, value in source.state_dict().items():
        key = re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
        theirs[key.replace("head.fc", "head")] = value
    torch.save({"model": theirs}, tmp_path / "swin.pth")
    target = models.create_model(name, **OWN_SWIN, weights=tmp_path / "swin.pth")
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_unknown_names_are_not_dropped():
    state = randomise(models.create_model("vit_tiny_patch16_224", **OWN_VIT)).state_dict()
    for family in FAMILIES:
        with pytest.raises(ValueError, match=f"these are no names of {family}: got .*, \\.\\.\\.; expected"):
            models.convert_state_dict(state, family)
    with pytest.raises(ValueError, match="unknown family: got 'jax'; expected one of transformers_vit, "):
        models.convert_state_dict(state, "jax")
    with pytest.raises(ValueError, match=r"a projection is missing: got no source of blocks\.0\.attn\.k\.weight"):
        models.convert_state_dict({"vit.layers.0.attention.q_proj.weight": torch.zeros(2, 2)}, "transformers_vit")


def test_what_would_be_dropped_or_guessed_is_refused():
    zeros, names = torch.zeros, "vit.layers.0.attention.{}_proj.weight".format
    for state, family, message in (
        ({names("k"): zeros(2, 2)}, "transformers_vit", r"is missing: got no source of blocks\.0\.attn\.q\.weight"),
        (
            {names("q"): zeros(2, 2), names("k"): zeros(2, 3), names("v"): zeros(2, 2)},
            "transformers_vit",
            r"does not join: got \(2, 2\) float32, \(2, 3\) float32",
        ),
        (
            {"vit.layernorm.bias": zeros(2), "layernorm.bias": zeros(2)},
            "transformers_vit",
            r"two names mean one tensor of transformers_vit: got layernorm\.bias",
        ),
        ({"features.1.0.attn.qkv.bias": zeros(4)}, "torchvision_swinv2", r"a bias does not split: got \(4,\)"),
        ({0: zeros(2)}, "transformers_vit", "these are no names of transformers_vit: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            models.convert_state_dict(state, family)
    assert detect_family({0: zeros(2)}) is None
