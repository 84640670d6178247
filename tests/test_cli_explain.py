"""``python -m vitkern explain``: the picture that it writes, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

import vitkern
from vitkern.commands.images import sample_photographs
from vitkern.explaining.overlay import box_seen, overlay

TINY = "test_vit.r160_in1k"


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photograph.png"
    Image.fromarray((np.random.default_rng(0).random((90, 120, 3)) * 255).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("method", ["relevance", "lrp"])
def test_two_photographs(run, tmp_path, method):
    for path in sample_photographs()[:2]:
        out = tmp_path / f"{path.stem}.png"
        code, said, err = run("explain", TINY, "--image", str(path), "--method", method, "--out", str(out))
        assert code == 0, said + err
        assert f"{method} of 10 x 10 patches" in said and said.splitlines()[-1] == f"wrote {out}"
        assert "the weights are random" in said
        with Image.open(path) as before, Image.open(out) as after:
            assert before.size == after.size
            changed = np.abs(np.asarray(before.convert("RGB"), float) - np.asarray(after, float))
        assert changed.mean() > 5


def test_a_class_and_a_model_of_its_own(run, tmp_path, photograph):
    out = tmp_path / "heat.jpg"
    given = ("explain", "vit_tiny_patch16_224", "--library", "vitkern", "--image", str(photograph), "--out", str(out))
    weights = tmp_path / "weights.pth"
    torch.save(vitkern.create_model("vit_tiny_patch16_224").state_dict(), weights)
    code, said, err = run(*given, "--target", "7", "--weights", weights)
    assert code == 0 and "class 7, probability" in said and "14 x 14 patches" in said, said + err
    assert f"weights of {weights}" in said and "random" not in said and out.stat().st_size > 1000
    torch.save({"head.bias": torch.zeros(3)}, weights)
    code, _, err = run(*given, "--weights", weights)
    assert code == 2 and "the weights do not fit vit_tiny_patch16_224" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        (("--target", "1000"), "there is no such class: got target=1000; expected 0 to 999."),
        (("--method", "saliency"), "invalid choice: 'saliency'"),
        (("--out", "heat.txt"), "--out has no suffix of an image: heat.txt; expected one of .png"),
        (("--out", "/no/such/folder/heat.png"), "--out lies in no folder: /no/such/folder does not exist"),
        (("--image", "/no/such/photograph.png"), "the image does not exist: /no/such/photograph.png"),
        (("--image", __file__), "the image cannot be read"),
        (("--library", "vitkern"), "no model is called 'test_vit.r160_in1k' in vitkern."),
    ],
)
def test_what_is_refused(run, tmp_path, photograph, changes, message):
    given = dict(zip(("--image", "--out"), (str(photograph), str(tmp_path / "heat.png")), strict=True))
    given |= {changes[0]: changes[1]}
    code, said, err = run("explain", TINY, *(part for pair in given.items() for part in pair))
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1, said + err
    assert not (tmp_path / "heat.png").exists()


def test_models_without_attention(run, tmp_path, photograph):
    code, _, err = run("explain", "resnet18", "--image", str(photograph), "--out", str(tmp_path / "heat.png"))
    assert code == 2 and "attention cannot be read: got a model that calls none" in err


def test_models_of_tokens(run, tmp_path, photograph):
    given = ("--library", "vitkern", "--image", str(photograph), "--out", str(tmp_path / "heat.png"))
    code, _, err = run("explain", "bert_base", *given)
    assert code == 2 and "bert_base takes no image, but tokens (B, N), ids below 30522" in err


@pytest.mark.parametrize("size", [(120, 90), (90, 120), (64, 64)])
def test_the_part_that_a_model_sees(size):
    transforms = pytest.importorskip("torchvision.transforms")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    steps = [transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(mean, std)]
    found = box_seen(transforms.Compose(steps), size)
    half = 0.5 * 32 / 40 * min(size)
    expected = (size[0] / 2 - half, size[1] / 2 - half, size[0] / 2 + half, size[1] / 2 + half)
    assert found == pytest.approx(expected, abs=1.5)


def test_heat_is_red_where_it_is_hot_and_nowhere_else():
    heat = torch.zeros(4, 4)
    heat[1, 2] = 3.0
    grey = Image.new("RGB", (80, 40), (128, 128, 128))
    found = np.asarray(overlay(grey, heat, (20, 0, 60, 40)), int)
    hottest = found[15, 45]  # in the middle of that patch
    assert hottest[0] > 90 and hottest[0] > hottest[2] + 60
    cold = found[35, 25]
    assert np.abs(cold - 128).max() < 30
    assert (found[:, :20] == 51).all() and (found[:, 60:] == 51).all()  # outside
    assert (np.asarray(overlay(grey, torch.zeros(4, 4)))[0, 0] == cold).all()  # no heat at all
