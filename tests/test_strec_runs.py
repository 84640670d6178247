"""One run at a time in a folder, and none that cannot go on, at whatever moment it is killed."""

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from strec_run import ALONE, OPTIONS, TINY, changed, lasting, log, path, refused, resume, run, whole, with_found

from vitkern.cli import main
from vitkern.report import BadInput
from vitkern.strec import checkpoint
from vitkern.strec.lock import LOCK, alone_in
from vitkern.strec.train import Run

__all__ = ["log", "path", "run", "whole"]  # fixtures
ROOT = Path(__file__).resolve().parent.parent


def test_two_runs_in_one_folder(path, log, tmp_path, capsys):
    with alone_in(tmp_path / "run"):
        assert "another run is at work in" in refused(capsys, "train", path, "--out", tmp_path / "run", *OPTIONS)
        assert [each.name for each in (tmp_path / "run").iterdir()] == [LOCK]
        with pytest.raises(BadInput, match="another run is at work"):
            Run(TINY, log, tmp_path / "run", ALONE).train()
    assert main(["strec", "train", str(path), "--out", str(tmp_path / "run"), *OPTIONS, "--epochs", "1"]) == 0
    with alone_in(tmp_path / "run"):
        refused(capsys, *resume(path, tmp_path / "run"))
    assert main(["strec", *map(str, resume(path, tmp_path / "run", 2))]) == 0


def test_a_run_that_came_first_is_not_overwritten(path, log, tmp_path, capsys, monkeypatch):
    """It began and ended while the other read its log."""
    folder, spread = tmp_path / "run", Run.__init__

    def slowly(self, *arguments):
        monkeypatch.setattr(Run, "__init__", spread)
        Run(TINY, log, folder, ALONE).train()
        spread(self, *arguments)

    monkeypatch.setattr(Run, "__init__", slowly)
    assert "holds a run already" in refused(capsys, "train", path, "--out", folder, *OPTIONS)


def test_a_killed_run_leaves_no_lock(log, tmp_path):
    code = f"""
import time
from pathlib import Path
from vitkern.strec.lock import alone_in
with alone_in(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    held = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert held.stdout.readline() == "held\n"
    with pytest.raises(BadInput, match="another run is at work"), alone_in(tmp_path):
        pass
    held.kill()
    held.wait()
    with alone_in(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    from vitkern.strec import lock

    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with alone_in(tmp_path):
        assert "cannot be locked there" in capsys.readouterr().err


class Killed(BaseException):
    pass


@pytest.mark.parametrize("model", ["strec", "popularity"])
@pytest.mark.parametrize("last", range(6))
def test_killed_between_any_two_files_a_run_goes_on_or_starts_anew(path, log, tmp_path, monkeypatch, model, last):
    """After ``last`` of them: items, state, weights, state again, metrics."""
    settings, folder = replace(TINY, model=model, epochs=1), tmp_path / "run"
    expected = Run(settings, log, tmp_path / "whole", ALONE).train()
    left, write = [last], checkpoint.write_bytes

    def until(place, content):
        if not left[0]:
            raise Killed
        left[0] -= 1
        write(place, content)

    monkeypatch.setattr(checkpoint, "write_bytes", until)
    with contextlib.suppress(Killed):
        Run(settings, log, folder, ALONE).train()
    monkeypatch.setattr(checkpoint, "write_bytes", write)
    options = ["--model", model, *OPTIONS, "--epochs", "1"]
    anew = main(["strec", "train", str(path), "--out", str(folder), *options])
    again = main(["strec", "train", str(path), "--out", str(folder), "--resume", *options])
    assert again == 0 and anew == (0 if last < 2 else 2)
    assert lasting(json.loads((folder / checkpoint.METRICS).read_text())) == lasting(json.loads(json.dumps(expected)))


def test_best_weights_of_another_run_are_not_taken(log, run):
    changed(run / checkpoint.WEIGHTS, with_found(epoch=9))
    with pytest.raises(BadInput, match=r"is of epoch 9, and the best is \d of the checkpoint's 2"):
        Run(TINY, log, run, ALONE).train(proceed=True)
    (run / checkpoint.WEIGHTS).unlink()
    with pytest.raises(BadInput, match=r"there is no model\.safetensors"):
        Run(TINY, log, run, ALONE).train(proceed=True)
