"""Other libraries' checkpoints give the same logits, files load as a whole, and a failed load changes nothing."""

import re

import pytest
import torch

import vitkern.models as models
from vitkern.models.convert import FAMILIES, detect_family

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


@pytest.fixture
def model():
    return randomise(models.create_model("vit_tiny_patch16_224", **OWN_VIT))


def save(kind, state, path):
    if kind == ".safetensors":
        pytest.importorskip("safetensors.torch", reason="it writes the file").save_file(state, path)
    elif kind == "model":
        torch.save({"model": state, "epoch": 3}, path)
    elif kind == "state_dict":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize(
    "kind, name", [(".safetensors", "w.safetensors"), ("model", "w.pth"), ("state_dict", "w.pt"), ("plain", "w.bin")]
)
def test_files_load(model, tmp_path, kind, name):
    save(kind, model.state_dict(), tmp_path / name)
    other = models.create_model("vit_tiny_patch16_224", **OWN_VIT, weights=str(tmp_path / name))
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


class Opaque:
    pass


def broken(tmp_path, model):
    state = model.state_dict()
    good = tmp_path / "good.pth"
    torch.save(state, good)
    raw = good.read_bytes()

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return path

    few = dict(list(state.items())[:-4])
    wide = {**state, "head.weight": torch.zeros(9, 48), "head.bias": torch.zeros(9)}
    opaque = {"model": {**state, "extra": Opaque()}}
    return [
        (tmp_path / "absent.pth", FileNotFoundError, "there is no such file: got '.*absent.pth'"),
        (tmp_path, FileNotFoundError, "there is no such file"),
        (
            write("weights.npz", b"x"),
            ValueError,
            r"unknown kind of file: got 'weights.npz'; expected \.safetensors, \.pth",
        ),
        (write("empty.pth", b""), ValueError, "cannot be read: got 'empty.pth'"),
        (write("cut.pth", raw[: len(raw) // 2]), ValueError, "cannot be read: got 'cut.pth'"),
        (write("noise.bin", b"\x00\x01 not a checkpoint" * 9), ValueError, "cannot be read: got 'noise.bin'"),
        (
            write("noise.safetensors", b"\x00\x01 not a checkpoint" * 9),
            ValueError,
            "cannot be read: got 'noise.safetensors'",
        ),
        (
            write("code.pth", opaque),
            ValueError,
            "cannot be read: got 'code.pth' .it holds Python objects beside tensors",
        ),
        (write("list.pt", [torch.zeros(2)]), ValueError, "no state dict inside: got list in 'list.pt'"),
        (write("none.pt", {}), ValueError, "no state dict inside: got a mapping of nothing"),
        (write("mixed.pt", {"a": torch.zeros(2), "b": 3}), ValueError, "no state dict inside: got a mapping of a, b"),
        (
            write("few.pth", few),
            ValueError,
            r"does not fit VisionTransformer: got 4 missing \(norm\.weight, norm\.bias, head\.weight, \.\.\.\)",
        ),
        (
            write("more.pth", {**state, "head_dist.weight": torch.zeros(2)}),
            ValueError,
            r"got 1 unexpected \(head_dist\.weight\) in 'more\.pth'",
        ),
        (write("wide.pth", wide), ValueError, r"got 2 mis-shaped \(head\.weight \(9, 48\) for \(5, 48\), head\.bias"),
        (
            write("both.pth", {**few, "head.weight": torch.zeros(9, 48)}),
            ValueError,
            r"got 3 missing .*; 1 mis-shaped \(head\.weight",
        ),
    ]


def test_a_failed_load_says_why_in_one_line_and_changes_nothing(model, tmp_path):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    target = randomise(models.create_model("vit_tiny_patch16_224", **OWN_VIT))
    with torch.no_grad():
        for p in target.parameters():
            p.add_(1.0)
    unchanged = {key: value.clone() for key, value in target.state_dict().items()}
    for path, kind, message in broken(tmp_path, model):
        with pytest.raises(kind, match=message) as caught:
            models.load_weights(target, path)
        assert "\n" not in str(caught.value)
        for key, value in target.state_dict().items():
            assert torch.equal(value, unchanged[key]), f"{path.name} changed {key}"
    models.load_weights(target, tmp_path / "good.pth")
    for key, value in before.items():
        assert torch.equal(target.state_dict()[key], value)


def test_safetensors_is_asked_for_by_name(model, tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        models.load_weights(model, tmp_path / "w.safetensors")


def test_a_model_without_memory_is_refused(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with torch.device("meta"):
        target = models.create_model("vit_tiny_patch16_224", **OWN_VIT)
    with pytest.raises(ValueError, match="parameters on the meta device"):
        models.load_weights(target, tmp_path / "w.pth")


def test_values_take_the_dtype_of_the_model(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    target = models.create_model("vit_tiny_patch16_224", **OWN_VIT).half()
    models.load_weights(target, tmp_path / "w.pth")
    assert target.head.weight.dtype == torch.float16 and torch.equal(target.head.weight, model.head.weight.half())


def test_the_image_size_of_a_checkpoint_matters(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ValueError,
        match=r"1 mis-shaped \(pos_embed \(1, 10, 48\) for \(1, 17, 48\)\).*Check the name, num_classes and img_size",
    ):
        models.create_model("vit_tiny_patch16_224", **{**OWN_VIT, "img_size": 64}, weights=tmp_path / "w.pth")
