"""Folders of runs that are damaged, of another kind or hostile: each one line and exit code 2."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from strec_run import (
    ALONE,
    OPTIONS,
    TINY,
    changed,
    log,
    path,
    refused,
    resume,
    run,
    whole,
    with_counter,
    with_found,
    with_tensor,
    without,
)

from vitkern.cli import main
from vitkern.report import BadInput
from vitkern.strec import checkpoint
from vitkern.strec.lock import LOCK
from vitkern.strec.serve import weights_for
from vitkern.strec.train import Run

__all__ = ["log", "path", "run", "whole"]  # fixtures
STATE, WEIGHTS, ITEMS = checkpoint.STATE, checkpoint.WEIGHTS, checkpoint.ITEMS
ROW = {"epoch": 1, "loss": 1.0, "ndcg@10": 0.5}
TABLE = "model/model.item_embedding.weight"
BROKEN_STATES = {
    "no model": without("model/"),
    "a part of the model": without(TABLE),
    "no optimizer": without("optimizer/"),
    "a part of the optimizer": without("optimizer/model.LayerNorm.weight/exp_avg_sq"),
    "no generators": without("random/"),
    "generators of two": with_tensor("random/cpu", lambda t: torch.cat([t, t])),
    "generators that are none": with_tensor("random/cpu", lambda t: torch.full_like(t, 255)),
    "shape": with_tensor(TABLE, lambda t: t[:-1].clone()),
    "dtype": with_tensor(TABLE, lambda t: t.to(torch.int8)),
    "more": lambda tensors, found: tensors.update(more=torch.zeros(1)),
    "no groups": with_found(groups=[]),
    "groups of another kind": with_found(groups=3),
    "group of another kind": with_found(groups=[3]),
    "group without parameters": lambda tensors, found: found["groups"][0].pop("params") and None,
    "group of other parameters": lambda tensors, found: found["groups"][0]["params"].pop() and None,
    "rate": lambda tensors, found: found["groups"][0].update(lr="fast"),
    "decay": lambda tensors, found: found["groups"][0].update(weight_decay=0.5),
    "header is a list": lambda tensors, found: [1],
    "state is a list": with_found(state=[]),
    "no counters": with_found(state={}),
    "settings are a list": with_found(settings=[1]),
    "settings are empty": with_found(settings={}),
    "setting of another kind": lambda tensors, found: found["settings"].update(d="8"),
    "log is a number": with_found(log=3),
    "processes are a list": with_found(processes=[1]),
    "step is text": with_counter(step="3"),
    "step below 0": with_counter(step=-1),
    "epoch is a fraction": with_counter(epoch=1.5),
    "loss is NaN": with_counter(loss=float("nan")),
    "best is nothing": with_counter(best=None),
    "history is text": with_counter(history="xx"),
    "history of another length": with_counter(history=[ROW]),
    "rows of other keys": with_counter(history=[ROW, {"epoch": 2}]),
    "rows of text": with_counter(history=[ROW, ROW | {"loss": "1"}]),
    "best epoch to come": with_counter(best_epoch=7),
}


@pytest.mark.parametrize("case", BROKEN_STATES)
def test_a_state_that_lacks_a_part_is_not_resumed(path, run, capsys, case):
    changed(run / STATE, BROKEN_STATES[case])
    before = {each.name: each.read_bytes() for each in run.iterdir()}
    assert str(run) in refused(capsys, *resume(path, run))
    assert {each.name: each.read_bytes() for each in run.iterdir()} == before


def test_a_whole_state_is_resumed(path, log, run, tmp_path, capsys):
    assert main(["strec", *map(str, resume(path, run))]) == 0
    three = Run(replace(TINY, epochs=3), log, tmp_path / "three", ALONE).train()
    assert json.loads((run / checkpoint.METRICS).read_text())["test"] == three["test"]


BROKEN_WEIGHTS = {
    "settings are a list": (with_found(settings=[1]), "does not hold the settings of a run"),
    "no settings": (lambda tensors, found: found.pop("settings") and None, "does not hold the settings of a run"),
    "width is text": (lambda tensors, found: found["settings"].update(d="8"), "d is '8'; expected a whole number"),
    "heads are true": (lambda tensors, found: found["settings"].update(heads=True), "heads is True"),
    "rows are text": (lambda tensors, found: found["settings"].update(ks="ab"), "ks is 'ab'; expected a list of whole"),
    "rows are halves": (lambda tensors, found: found["settings"].update(ks=[6.5, 1]), "expected a list of whole"),
    "ratio is a list of lists": (lambda tensors, found: found["settings"].update(ratio=[[1]]), "ratio is ([1],)"),
    "a rate beyond floats": (lambda tensors, found: found["settings"].update(lr=10**400), "lr is 1000"),
    "width beyond memory": (lambda tensors, found: found["settings"].update(d=2**30), "does not fit this machine"),
    "another count": (with_found(n_items=7), "mixes two runs: 7 items in the weights, 21 in the list"),
    "a count of another kind": (with_found(n_items=[7]), "mixes two runs: [7] items"),
    "header is text": (lambda tensors, found: "x", "its header holds a str"),
    "a part": (without("item_embedding"), "it lacks item_embedding.weight"),
    "dtype": (with_tensor("LayerNorm.weight", lambda t: t.to(torch.complex64)), "LayerNorm.weight is (8,) complex64"),
    "shape": (with_tensor("LayerNorm.weight", lambda t: t[:4].clone()), "is (4,) float32, not (8,) float32"),
    "more": (lambda tensors, found: tensors.update(more=torch.zeros(1)), "it has 'more' beside them"),
    "NaN": (with_tensor("item_embedding.weight", lambda t: t * float("nan")), "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_WEIGHTS)
def test_weights_that_are_none_are_not_served(path, run, capsys, case):
    edit, message = BROKEN_WEIGHTS[case]
    changed(run / WEIGHTS, edit)
    assert message in refused(capsys, "recommend", path, "--run", run, "--user", "u1")
    refused(capsys, "evaluate", path, "--run", run)


@pytest.mark.parametrize(
    "text", ["{}", "3", "[1, 2]", '["a", "b"]', '["", "a", "a"]', "[]", "[" * 99999, "null", "\xff"]
)
def test_items_that_are_none(path, run, capsys, text):
    (run / ITEMS).write_bytes(text.encode("latin-1"))
    assert f"{ITEMS} is damaged" in refused(capsys, "recommend", path, "--run", run, "--user", "u1")
    refused(capsys, "train", path, "--out", run.parent / "new", "--init", run, *OPTIONS)
    assert not (run.parent / "new").exists()


def a_folder(place):
    place.mkdir()


def a_pipe(place):
    os.mkfifo(place)


def a_circle(place):
    place.symlink_to(place.name)


@pytest.mark.parametrize("name", [STATE, WEIGHTS, ITEMS])
@pytest.mark.parametrize("make", [a_folder, a_pipe, a_circle])
def test_what_stands_where_a_file_should(path, run, capsys, name, make):
    (run / name).unlink()
    make(run / name)
    if name == STATE:
        refused(capsys, *resume(path, run))
    else:
        refused(capsys, "recommend", path, "--run", run, "--user", "u1")
    refused(capsys, "train", path, "--out", run, *OPTIONS)


@pytest.mark.parametrize("name", [checkpoint.METRICS, STATE + ".tmp", LOCK])
def test_folders_where_files_are_written(path, tmp_path, capsys, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    assert "cannot be written" in refused(capsys, "train", path, "--out", tmp_path / "run", *OPTIONS, "--epochs", 1)


def test_files_that_may_not_be_read(path, run, capsys, monkeypatch):
    """Modes do not bind the superuser, so the refusal is played."""
    plain = Path.stat

    def stat(self, **options):
        if self.name in (STATE, WEIGHTS):
            raise PermissionError(13, "Permission denied")
        return plain(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert "cannot be read: Permission denied" in refused(capsys, "evaluate", path, "--run", run)
    assert "cannot be read: Permission denied" in refused(capsys, *resume(path, run))


def test_weights_to_start_from_are_of_the_same_sizes(log, run):
    changed(run / WEIGHTS, with_tensor("LayerNorm.weight", lambda t: t[:4].clone()))
    with pytest.raises(BadInput, match="the weights do not fit the model"):
        Run(TINY, log, run.parent / "new", ALONE).initialise(weights_for(TINY, log, run))
