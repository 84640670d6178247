"""What is recorded as it is need not be compiled; what was doctored, or is of other sources, fails the command."""

import json

import pytest

from tests.compiler.rows import ARCH, NAME, scale_rows
from vitkern.lab import records
from vitkern.lab.compiling import digest, exceptions, golden
from vitkern.lab.compiling.exception import Excuse

pytestmark = pytest.mark.compiler


def _recorded(command):
    """The golden file of one command, and that a second one compiles nothing."""
    assert command("--update")[0] == 0
    code, out, err = command()
    assert code == 0 and "1 cells (0 compiled, 1 recorded), 1 kernels (1 distinct)" in out and "CPU s" not in err
    assert (records.read("compile")["compiled"], records.read("compile")["recorded"]) == (0, 1)
    return golden.path_of(golden.minor())


def test_what_is_recorded_is_compiled_when_asked(command):
    _recorded(command)
    code, out, _ = command("--all")
    assert code == 0 and "1 cells (1 compiled, 0 recorded)" in out


@pytest.mark.parametrize("name", ["registers", "load", "digest", "seal"])
def test_a_doctored_file_fails(command, name):
    path = _recorded(command)
    content = json.loads(path.read_text())
    cell = content["cells"][NAME]["sm_80"]
    holder = cell if name in cell else cell["kernels"]["_scale"]
    holder[name] = holder[name] + 1 if type(holder[name]) is int else "0" * 16
    path.write_text(json.dumps(content))
    code, out, _ = command()
    assert code == 1 and "1 unsealed" in out and "! unsealed: its golden figures or their digest" in out
    assert not records.read("compile")["passed"]
    assert command("--update")[0] == 0
    _recorded(command)


def test_other_sources_with_the_same_figures_are_to_be_recorded(command, monkeypatch):
    _recorded(command)
    monkeypatch.setattr(digest, "_readers", lambda: "others")
    code, out, _ = command()
    assert code == 1 and "1 cells (1 compiled, 0 recorded)" in out and "0 regressions" in out and "1 unrecorded" in out
    assert "\n1 cells are not recorded: python -m vitkern lab compile --update, and commit it\n" in out
    assert command()[0] == 1
    _recorded(command)


def test_another_patch_release_compiles_everything_and_judges_no_digest(command, monkeypatch):
    path = _recorded(command)
    path.write_text(path.read_text().replace(f'"triton": "{golden.installed()}"', f'"triton": "{golden.minor()}.77"'))
    code, out, _ = command()
    assert code == 0 and "1 cells (1 compiled, 0 recorded)" in out
    monkeypatch.setattr(digest, "_readers", lambda: "others")
    code, out, _ = command()
    assert code == 0 and "1 cells (1 compiled, 0 recorded)" in out and "0 unrecorded" in out
    code, out, _ = command(run=lambda: scale_rows(times=6))
    assert code == 1 and "1 regressions" in out


def test_recorded_figures_need_their_exceptions_and_problems_are_not_recorded(command, monkeypatch):
    def narrow():
        return scale_rows(columns=4100)

    def listed(*excuse):
        found = {(NAME, "_scale", ARCH): Excuse(*excuse)} if excuse else {}
        monkeypatch.setattr(exceptions, "merged", lambda field: found)

    code, out, _ = command("--update", run=narrow)
    assert code == 1 and "1 problems" in out and golden.load(golden.minor()).entries == {}
    listed("widest global load is ", "a reason that says why")
    assert command("--update", run=narrow)[0] == 0
    code, out, _ = command(run=narrow)
    assert code == 0 and "0 compiled" in out
    listed()
    code, out, _ = command(run=narrow)
    assert code == 1 and "0 compiled" in out and "! problem: _scale w4 s1: widest global load is " in out
    listed("spills", "never")
    code, out, _ = command(run=narrow)
    assert code == 1 and "2 problems" in out and "! problem: _scale: the exception 'spills' is no longer needed" in out


def test_a_cell_without_a_digest_fails(command, monkeypatch):
    def refuse(*_):
        raise TypeError("digest: no text")

    monkeypatch.setattr(digest.Sources, "value", refuse)
    code, out, _ = command("--update")
    assert code == 1 and "! failure: compiled, but has no digest: TypeError: digest: no text" in out
    assert golden.load(golden.minor()).entries == {}


@pytest.mark.parametrize("path", sorted(golden.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_seals_of_the_golden_files_fit(path):
    known = golden.load(path.stem.removeprefix("triton-"))
    assert known.entries and not [cell for cell in known.entries if golden.is_broken(known, cell)]
