"""A small run and its folder, and what commands say of them: shared by the tests of run folders."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vitkern.cli import main
from vitkern.strec.distributed import Group
from vitkern.strec.log import read_log
from vitkern.strec.settings import Settings
from vitkern.strec.synthetic import write_planted_log
from vitkern.strec.train import Run

ALONE = Group(0, 1, torch.device("cpu"))
TINY = Settings(d=8, layers=2, heads=2, max_len=6, batch=64, epochs=2, patience=0)
OPTIONS = ["--dim", "8", "--layers", "2", "--heads", "2", "--max-len", "6", "--batch", "64", "--patience", "0"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.csv"
    write_planted_log(path, users=40, items=20, events=8, seed=3)
    return path


@pytest.fixture(scope="module")
def log(path):
    return read_log(path)


@pytest.fixture(scope="module")
def whole(log, tmp_path_factory):
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("whole")
    Run(TINY, log, folder, ALONE).train()
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "run")


def lasting(metrics):
    return {name: value for name, value in metrics.items() if name != "seconds"}


def refused(capsys, *arguments):
    """The one line."""
    capsys.readouterr()
    assert main(["strec", *map(str, arguments)]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("note: ", "epoch "))]
    assert len(error) == 1 and error[0].startswith("vitkern strec: ") and len(error[0]) < 1100, error
    return error[0]


def resume(path, run, epochs=3):
    return "train", path, "--out", run, "--resume", *OPTIONS, "--epochs", epochs


def changed(path, edit):
    """Rewrite a file of tensors after ``edit(tensors, found)``, which may return other JSON."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        found = json.loads(file.metadata()["json"])
    other = edit(tensors, found)
    save_file(tensors, path, metadata={"json": json.dumps(found if other is None else other)})


def without(prefix):
    def edit(tensors, found):
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return edit


def with_tensor(name, change):
    def edit(tensors, found):
        tensors[name] = change(tensors[name])

    return edit


def with_found(**values):
    return lambda tensors, found: found.update(values)


def with_counter(**values):
    return lambda tensors, found: found["state"].update(values)
