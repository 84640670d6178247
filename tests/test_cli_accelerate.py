"""``python -m vitkern accelerate``: what it prints, its exit codes, and the comparison and timing under it."""

import sys

import pytest
import torch

from vitkern.commands import equality, images, peers, timing
from vitkern.commands.steps import logits

TINY = "test_vit.r160_in1k"
FAST = ("--seconds", "0")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_accelerate_reports_compares_and_passes(run):
    code, out, err = run("accelerate", TINY, "--train", *FAST)
    assert code == 0, out + err
    assert "swapped" in out and "logits" in out
    assert "gradients of parameters: all" in out and "loss:" in out
    assert "china.jpg" in out and "top-1: the same class for 2 of 2 images" in out
    assert out.splitlines()[-1] == "verdict: the same results"


def test_accelerate_times_both_in_one_run(run):
    code, out, err = run("accelerate", TINY, "--seconds", "0.2", "--batch", "2")
    assert code == 0, out + err
    assert "forward, before" in out and "forward, after" in out and "MiB" in out
    assert "times as fast" in out.splitlines()[-1]
    assert "timed before and after" in err and "timed" not in out.split("verdict")[0].split("\n\n")[0]


@pytest.mark.parametrize("dtype", ("bf16", "fp16"))
def test_accelerate_in_half_precision(run, dtype):
    code, out, err = run("accelerate", TINY, "--dtype", dtype, *FAST)
    assert code == 0, out + err


def test_accelerate_notices_a_different_result(run, monkeypatch):
    import vitkern

    right = vitkern.accelerate

    def wrong(model):
        with torch.no_grad():
            next(parameter for name, parameter in model.named_parameters() if "qkv.bias" in name).add_(0.01)
        return right(model)

    monkeypatch.setattr(vitkern, "accelerate", wrong)
    code, out, _ = run("accelerate", TINY, *FAST)
    assert code == 1
    assert "DIFFERS" in out and out.splitlines()[-1] == "verdict: RESULTS DIFFER"


def test_accelerate_finds_the_library_and_lists_near_matches(run):
    code, out, err = run("accelerate", "swin_tiny_patch4_window7_223")
    assert (code, out) == (2, "")
    assert "Near: swin_tiny_patch4_window7_224" in err


def test_accelerate_unknown_hub_id_lists_near_matches(run):
    code, _, err = run("accelerate", "google/vit-base-patch16-225")
    assert code == 2
    assert "google/vit-base-patch16-224" in err and "--pretrained" in err


@pytest.mark.parametrize("library", ("timm", "torchvision"))
def test_accelerate_names_the_library_that_does_not_know_the_model(run, library):
    code, _, err = run("accelerate", "vit_b_17", "--library", library)
    assert code == 2 and f"no model is called 'vit_b_17' in {library}" in err


def test_accelerate_without_the_library_is_one_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    code, _, err = run("accelerate", TINY, "--library", "timm")
    assert code == 2
    assert "timm is not installed" in err and "pip install timm" in err and err.count("\n") == 2


def test_accelerate_bad_images_are_one_line(run, tmp_path):
    text = tmp_path / "notes.jpg"
    text.write_text("no image")
    for path, message in ((tmp_path / "none.jpg", "does not exist"), (text, "cannot be read")):
        code, out, err = run("accelerate", TINY, "--image", path)
        assert (code, out) == (2, "")
        assert message in err and str(path) in err and err.count("\n") == 1


def test_accelerate_bad_weights_are_one_line(run, tmp_path):
    corrupt, other = tmp_path / "corrupt.pth", tmp_path / "other.safetensors"
    corrupt.write_bytes(b"PK\x03\x04 no archive")
    from safetensors.torch import save_file

    save_file({"nothing.weight": torch.zeros(2)}, other)
    for path, message in (
        (tmp_path / "none.pth", "no such file"),
        (corrupt, "cannot be read"),
        (other, "do not fit the model"),
    ):
        code, out, err = run("accelerate", TINY, "--weights", path)
        assert (code, out) == (2, ""), path
        assert message in err and "Traceback" not in err
        assert len([line for line in err.splitlines() if line.startswith("vitkern")]) == 1


def test_accelerate_loads_weights(run, tmp_path):
    import timm

    path = tmp_path / "weights.pth"
    torch.manual_seed(3)
    torch.save(timm.create_model(TINY).state_dict(), path)
    code, out, err = run("accelerate", TINY, "--weights", path, *FAST)
    assert code == 0, err
    assert f"weights of {path}" in out


def test_accelerate_bad_batch(run):
    code, _, err = run("accelerate", TINY, "--batch", "0")
    assert code == 2 and "--batch" in err


def test_weights_and_pretrained_exclude_each_other(run, tmp_path):
    code, _, err = run("accelerate", TINY, "--weights", tmp_path / "a.pth", "--pretrained")
    assert code == 2 and "not allowed with" in err


def test_accelerate_of_transformers_from_a_directory(run, tmp_path, offline):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = dict(
        image_size=56, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[1, 2], window_size=7, num_labels=5
    )
    transformers.SwinForImageClassification(transformers.SwinConfig(**sizes)).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size=dict(height=56, width=56)).save_pretrained(tmp_path)
    code, out, err = run("accelerate", tmp_path, "--library", "transformers", "--train", *FAST)
    assert code == 0, out + err
    assert "SwinLayer" in out


def test_hub_ids_are_built_offline(offline, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from vitkern.models import hub

    small = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    for name in ("google/vit-base-patch16-224", "facebook/deit-tiny-distilled-patch16-224"):
        monkeypatch.setitem(hub.CONFIGS, name, hub.CONFIGS[name] | small)
        peer = peers.build(name)
        picture = images.read_images(images.sample_photographs()[:1])[0]
        pixels = peer.preprocess(picture)
        assert peer.library == "transformers" and pixels.shape == (3, 224, 224)
        assert any("offline" in note for note in peer.notes)
        assert logits(peer.model, pixels[None]).shape == (1, 1000)
        assert pixels.std() > 0.1, "the photograph is not blank"


def test_random_tables_are_not_zero():
    peer = peers.build("swin_tiny_patch4_window7_224", "timm")
    tables = [p for name, p in peer.model.named_parameters() if "bias_table" in name]
    assert len(tables) == 12 and all(table.std() > 0.3 for table in tables)
    assert not any((p == p.flatten()[0]).all() for p in peer.model.parameters() if p.numel() > 1), (
        "a constant hides what it multiplies"
    )


def test_peak_memory_counts_tensors_alive_at_once():
    x = torch.randn(1024, 1024)
    megabytes = timing.peak_memory(lambda: (x + 1).relu_().mul_(2), torch.device("cpu")) / 2**20
    assert megabytes == pytest.approx(4, abs=0.1)
    megabytes = timing.peak_memory(lambda: (x + 1, x + 2, x + 3), torch.device("cpu")) / 2**20
    assert megabytes == pytest.approx(12, abs=0.1)


def test_side_by_side_takes_turns():
    order = []
    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    timed = timing.side_by_side(runs, torch.device("cpu"), budget=0, minimum=6, memory=False)
    assert order[6:] == ["a", "b", "b", "a"] * 3
    assert len(timed["a"].samples) == len(timed["b"].samples) == 6


def test_ratio_is_of_medians():
    before, after = timing.Timing([2.0, 4.0, 3.0, 3.0], None), timing.Timing([1.0, 2.0, 1.5, 1.5], None)
    assert timing.ratio(before, after) == (2.0, 2.0, 2.0)
    assert before.spread > 0


def test_equality_sees_one_wrong_gradient():
    class Wrong(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight, 0.5 * self.bias + 0.5 * self.bias.detach())

    def model(kind):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8), torch.nn.GELU(), kind(8, 4))

    x = torch.randn(3, 3, 2, 2)
    assert equality.compare_models(model(torch.nn.Linear), model(torch.nn.Linear), x, train=True).passed
    result = equality.compare_models(model(torch.nn.Linear), model(Wrong), x, train=True)
    assert [name for name, comparison, _, _ in result.rows if not comparison.passed] == ["d 3.bias"]
