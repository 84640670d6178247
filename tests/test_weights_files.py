"""Files load as a whole, and a failed load says why and changes nothing."""

import pytest
import torch
from test_weights import OWN_VIT, randomise

import vitkern.models as models


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


def test_a_checkpoint_of_another_variant_names_it(tmp_path):
    with torch.device("meta"):
        shapes = models.create_model("vit_small_patch16_224").state_dict()
    save("plain", {key: torch.zeros(value.shape) for key, value in shapes.items()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"mis-shaped \(cls_token .*They are those of vit_small_patch16_224, "):
        models.create_model("vit_tiny_patch16_224", weights=tmp_path / "w.pth")
