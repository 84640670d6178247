"""Sizes that no machine has, names that no file has, numbers that are none: each one line and exit code 2."""

from dataclasses import replace

import pytest
import torch
from strec_run import ALONE, OPTIONS, TINY, lasting, log, path, refused, run, whole

from vitkern.cli import main
from vitkern.report import BadInput
from vitkern.strec import checkpoint
from vitkern.strec.serve import load_run, recommend
from vitkern.strec.settings import Settings, build_model
from vitkern.strec.train import Run

__all__ = ["log", "path", "run", "whole"]  # fixtures

NAMES = ["a\0b", "x" * 300, "/".join(["x" * 200] * 30), "a\nb", "\udcff"]


@pytest.mark.parametrize("name", NAMES, ids=["NUL", "long name", "long path", "two lines", "no text"])
def test_names_of_folders(path, tmp_path, capsys, name):
    for arguments in (
        ("evaluate", path, "--run", tmp_path / name),
        ("recommend", path, "--run", tmp_path / name, "--user", "u1"),
        ("train", path, "--out", tmp_path / name, "--resume"),
        ("train", path, "--out", tmp_path / "new", "--init", tmp_path / name),
        ("train", tmp_path / name, "--out", tmp_path / "new"),
    ):
        refused(capsys, *arguments)
    settled = ("--model", "popularity", *OPTIONS)
    if name != "a\nb":
        refused(capsys, "train", path, "--out", tmp_path / name, *settled)
        if name != "\udcff":
            refused(capsys, "synthetic", tmp_path / name, "--users", 1)
        assert not list(tmp_path.iterdir())
    else:
        assert main(["strec", "train", str(path), "--out", str(tmp_path / name), *settled]) == 0
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--dim 1000000000", "the model does not fit this machine"),
        ("--dim 99999999999999999999", "d is 99999999999999999999; expected at most 2,147,483,647"),
        ("--max-len 2000000000 --ks 1 1", "the model does not fit this machine"),
        ("--layers 1000000", "layers is 1000000; expected at most 1,000"),
        ("--batch 99999999999", "batch is 99999999999; expected at most"),
        ("--loss bpr --negatives 99999999999", "negatives is 99999999999; expected at most"),
        ("--seed 18446744073709551616", "seed is 18446744073709551616; expected less than 2^64"),
        ("--model gru4rec --hidden 2000000000", "the model does not fit this machine"),
        ("--epochs 99999999999", "epochs is 99999999999; expected at most"),
    ],
)
def test_sizes_that_no_machine_has(path, tmp_path, capsys, options, message):
    assert message in refused(capsys, "train", path, "--out", tmp_path / "new", *OPTIONS, *options.split())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "command",
    ["synthetic new --items 99999999999", "demo --seed 18446744073709551616 --out new", "demo --users 99999999999",
     "speed --dim 1000000000", "speed --items 99999999999", "speed --layers 100000", "speed --batch 99999999999"],
)  # fmt: skip
def test_sizes_of_the_other_commands(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    refused(capsys, *command.split())
    assert not list(tmp_path.iterdir())


def test_memory_that_is_refused_later(path, tmp_path, capsys, monkeypatch):
    def step(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nStack:\n...")

    monkeypatch.setattr(Run, "_step", step)
    assert "there is not enough memory" in refused(capsys, "train", path, "--out", tmp_path / "new", *OPTIONS)


def test_the_largest_seed(log, tmp_path):
    settings = replace(TINY, seed=2**64 - 1, epochs=1)
    first, second = (Run(settings, log, tmp_path / name, ALONE).train() for name in "ab")
    assert lasting(first) == lasting(second)


def test_settings_are_of_their_kinds():
    for name, value in dict(d=8.0, lr="1", exclude_seen=1, model=3, ks=[1], alphas=(1, "2"), dropout=True).items():
        with pytest.raises(BadInput, match=f"{name} is "):
            Settings(**{name: value})
    assert Settings(dropout=0, alphas=(1, 2.5)).dropout == 0
    state = torch.get_rng_state()
    build_model(replace(TINY, model="popularity"), 20)
    assert torch.equal(torch.get_rng_state(), state)  # a model that is only counted draws nothing


def test_an_item_that_is_no_number_is_not_recommended(log, run):
    model = load_run(run)[0]
    assert len(recommend(model, log, 0, 3)) == 3
    with torch.no_grad():
        model.item_embedding.weight[7] = float("nan")
    seq = torch.tensor([[1, 2, 3]])
    with pytest.raises(BadInput, match="not finite"):
        recommend(model, log, 0, 3)
    with pytest.raises(ValueError, match="scores are not usable: got NaN"):
        model.topk(seq, seq, 3)


def test_json_has_no_nan(tmp_path):
    for value in (float("nan"), [float("inf")]):
        with pytest.raises(BadInput, match="a number in it is not finite"):
            checkpoint.write_json(tmp_path / "x.json", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK"])
@pytest.mark.parametrize("value", ["abc", "-1", "1_0", "9" * 30])
def test_environments_that_torchrun_did_not_make(path, tmp_path, capsys, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert name in refused(capsys, "train", path, "--out", tmp_path / "new", *OPTIONS)


def test_processes_that_cannot_be_joined(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert "cannot be joined" in refused(capsys, "train", path, "--out", tmp_path / "new", *OPTIONS)
