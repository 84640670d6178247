"""``python -m vitkern strec``: the commands one after another, and one line for bad input."""

import argparse
import json
import os
import shutil

import pytest
import torch

from vitkern.cli import main
from vitkern.commands import strec
from vitkern.report import BadInput
from vitkern.strec import checkpoint

TINY = ["--dim", "16", "--layers", "2", "--max-len", "8", "--batch", "64", "--epochs", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A log and a pre-trained run, by the commands themselves."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("strec")
    log = str(folder / "log.csv")
    assert main(["strec", "synthetic", log, "--users", "60", "--items", "30", "--events", "8"]) == 0
    assert main(["strec", "train", log, "--stage", "pretrain", "--out", str(folder / "pre"), *TINY]) == 0
    return folder


def command(*arguments):
    return main(["strec", *map(str, arguments)])


def test_from_pretraining_to_recommendations(folder, capsys):
    log, run = folder / "log.csv", folder / "fine"
    assert command("train", log, "--init", folder / "pre", "--out", run, *TINY) == 0
    trained = json.loads((run / "metrics.json").read_text())
    assert {"test", "valid", "history", "settings", "parameters"} <= trained.keys()
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG" or "matplotlib" in capsys.readouterr().err
    assert command("evaluate", log, "--run", run, "--json", folder / "again.json") == 0
    again = json.loads((folder / "again.json").read_text())
    assert {name: again[name] for name in trained["test"]} == pytest.approx(trained["test"], rel=1e-6)
    capsys.readouterr()
    assert command("recommend", log, "--run", run, "--user", "u1", "u2", "-k", 3) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["u1", "u2"] and [len(rows) for rows in found.values()] == [3, 3]
    assert command("train", log, "--out", run, "--resume", *TINY, "--epochs", 2) == 0
    assert len(json.loads((run / "metrics.json").read_text())["history"]) == 2


def test_unseen_items_at_evaluation(folder, capsys):
    log = folder / "new.csv"
    log.write_text((folder / "log.csv").read_text() + "u1,brand new,1800000000\n")
    last = len(log.read_text().splitlines())
    assert command("evaluate", log, "--run", folder / "pre") == 2
    assert f"row {last}: an item that the model does not know: 'brand new'" in capsys.readouterr().err
    assert command("evaluate", log, "--run", folder / "pre", "--unseen", "skip") == 0
    assert f"row {last}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train none.csv --out new", "cannot be read"),
        ("train log.csv --out pre", "holds a run already"),
        ("train log.csv --out new --resume", "no checkpoint"),
        ("train log.csv --out new --init none", "there is no model.safetensors"),
        ("train log.csv --out new --init pre --max-len 8 --layers 2 --dim 32", "has d 16, not 32"),
        ("train log.csv --out new --ks 8 --layers 2 --max-len 8", "one k a layer"),
        ("train log.csv --out new --ks 4 8 --layers 2 --max-len 8", "ks grows"),
        ("train log.csv --out new --ks 9 1 --layers 2 --max-len 8", "max_len = 8"),
        ("train log.csv --out new --dim 15 --layers 2", "do not split into heads"),
        ("train log.csv --out new --dropout 1.0", "dropout"),
        ("train log.csv --out new --attention-dropout -1", "attention_dropout is -1"),
        ("train log.csv --out new --decay 2", "decay is 2.0"),
        ("train log.csv --out new --batch 0", "batch is 0"),
        ("train log.csv --out new --heads 0", "heads is 0"),
        ("train log.csv --out new --hidden -1", "hidden is -1"),
        ("train log.csv --out new --seed -1", "seed is -1"),
        ("train log.csv --out new --weight-decay nan", "weight_decay is nan"),
        ("train log.csv --out new --clip nan", "clip is nan"),
        ("train log.csv --out new --checkpoint-every -1", "--checkpoint-every is -1"),
        ("train log.csv --out log.csv --dim 8 --layers 2", "cannot be written"),
        ("train log.csv --out new --split ratio --ratio 0.8 0.2", "three parts"),
        ("train log.csv --out new --item-column thing", "no item column"),
        ("evaluate log.csv --run none", "there is no model.safetensors"),
        ("recommend log.csv --run pre --user u", "no user 'u'. Near: u"),
        ("recommend log.csv --run pre --user u1 -k 0", "k is 0"),
        ("recommend log.csv --run pre --user u1 -k 31", "k is 31"),
        ("synthetic new --users 0", "--users is 0"),
        ("synthetic new --seed -1", "--seed is -1"),
        ("synthetic new --memory inf", "--memory is inf"),
        ("demo --seed -1", "--seed is -1"),
        ("demo --out log.csv", "log.csv is no empty folder"),
        ("speed --heads 0", "a size is below 1"),
        ("speed --budget nan", "--budget is nan"),
        ("speed --ks 50 60", "STRec"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert command(*arguments.split()) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(error) == 1 and error[0].startswith("vitkern strec: ") and message in error[0], error
    assert not (folder / "new").exists()


SMALL = "--max-len 12 --layers 2 --dim 16 --heads 2 --batch 8 --items 50 --budget 0.1"


@pytest.mark.parametrize("mode", ["", "--train", "--graph", "--padded", "--train --padded"])
def test_speed(capsys, tmp_path, mode):
    assert command("speed", *SMALL.split(), *mode.split(), "--save", tmp_path / "speed.json") == 0
    found = json.loads((tmp_path / "speed.json").read_text())["models"]
    published = [] if "padded" in mode else ["strec, as published", "dense, as published"]
    assert list(found) == ["strec", "dense", "dense, last row", *published]
    assert found["strec"]["ks"] == [12, 1] and found["dense"]["ks"] == [12, 12]
    assert found["dense"]["against"]["dense"]["memory"] == 1.0
    against = found["strec"]["against"]
    assert list(against) == ["dense", *published[1:]]
    assert against["dense"]["memory"] == found["strec"]["peak_bytes"] / found["dense"]["peak_bytes"]
    shown = capsys.readouterr().out
    assert "dense, last row" in shown and all(name in shown for name in published)


def test_demo(capsys):
    assert command("demo", "--users", 120) == 0
    assert "verdict: everything holds" in capsys.readouterr().out


def test_a_checkpoint_of_another_kind_is_refused(folder, tmp_path, capsys):
    shutil.copy(folder / "pre" / checkpoint.WEIGHTS, tmp_path / checkpoint.STATE)
    assert command("train", folder / "log.csv", "--out", tmp_path, "--resume", *TINY) == 2
    assert "is no checkpoint of a run: it lacks groups, log, processes, state." in capsys.readouterr().err


def test_resuming_on_another_log_leaves_the_run_as_it_was(folder, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "other.csv"
    shutil.copytree(folder / "pre", run)
    assert command("synthetic", other, "--users", 30, "--seed", 5) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert command("train", other, "--out", run, "--resume", "--stage", "pretrain", *TINY) == 2
    assert "was trained on another log" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("action", strec.ACTIONS)
def test_help_says_what_each_option_is(action):
    parser = argparse.ArgumentParser()
    strec.ACTIONS[action][1](parser)
    assert not [a.dest for a in parser._actions if not a.help or a.help.startswith("the default")]
    assert parser.format_help()


def test_users_of_one_event_get_recommendations(folder, capsys):
    item = (folder / "log.csv").read_text().splitlines()[1].split(",")[1]
    (folder / "one.csv").write_text(f"user,item,timestamp\nnew,{item},1800000000\n")
    assert command("recommend", folder / "one.csv", "--run", folder / "pre", "--user", "new", "-k", 2) == 0
    assert len(json.loads(capsys.readouterr().out)["new"]) == 2
    assert command("evaluate", folder / "one.csv", "--run", folder / "pre") == 2
    assert "every user has one event (row 2)" in capsys.readouterr().err


def test_weights_without_a_checkpoint_are_not_said_to_resume(folder, tmp_path, capsys):
    shutil.copy(folder / "pre" / checkpoint.WEIGHTS, tmp_path)
    assert command("train", folder / "log.csv", "--out", tmp_path, *TINY) == 2
    error = capsys.readouterr().err
    assert "holds a run already" in error and "--resume" not in error


def test_an_interrupted_write_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    (tmp_path / "x.json.tmp").write_text("of a process that was killed")
    checkpoint.write_json(path, {"a": 1})
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(BadInput, match="cannot be written: no space"):
        checkpoint.write_json(path, {"a": 2})
    assert checkpoint.read_json(path) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
