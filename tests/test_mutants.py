"""Mutants are chosen from every kernel, and the runner tells the living from the dead."""

import ast
import json

import pytest

from vitkern.cli import main
from vitkern.lab import records
from vitkern.lab.breaking import mutants as part
from vitkern.lab.breaking.breaks import BREAKS, Break, broken_sources
from vitkern.lab.breaking.mutations import (
    LAUNCHERS_PER_FILE,
    PER_FILE,
    all_mutants,
    chosen,
    file_of,
    kernel_files,
    kernels_folder,
)
from vitkern.lab.breaking.nursery import Job, Verdict, judged
from vitkern.lab.specimens import merged

SURVIVORS = merged("survivors")


def test_every_file_gives_its_share_spread_over_functions_and_operators():
    launchers = 0
    for file, path in kernel_files().items():
        mutants = all_mutants(path)
        picked = chosen(path)
        kernels = [mutant for mutant in picked if not mutant.launcher]
        assert len(kernels) == min(PER_FILE, sum(not mutant.launcher for mutant in mutants)), file
        assert len(picked) - len(kernels) <= LAUNCHERS_PER_FILE
        launchers += len(picked) - len(kernels)
        for mutant in picked:
            ast.parse(mutant.source)
        if kernels:
            operators = {mutant.operator for mutant in mutants if not mutant.launcher}
            assert len({mutant.operator for mutant in kernels}) >= min(len(operators), 8), file
            functions = {mutant.function for mutant in mutants if not mutant.launcher}
            assert len({mutant.function for mutant in kernels}) >= min(len(functions), 8), file
    jitted = {file_of(path) for path in kernels_folder().rglob("*.py") if "@triton.jit" in path.read_text()}
    assert jitted <= set(kernel_files())
    assert launchers >= 12


def test_listed_survivors_are_mutants_with_that_very_change():
    found = {mutant.name: mutant.change for path in kernel_files().values() for mutant in all_mutants(path)}
    for name, entry in SURVIVORS.items():
        assert found.get(name) == entry.change, f"{name} is no longer what was listed"
        assert len(entry.reason) > 20


def test_the_runner_tells_the_living_from_the_dead():
    source = (kernels_folder() / "rows/layernorm.py").read_text()
    scaled = "out = normalised * load_channels(weight, 1.0, channels, BLOCK_C, EVEN_C)[None, :]"
    assert scaled in source
    jobs = {
        "unchanged": source,
        "equivalent": source.replace(scaled, scaled + " * 1.0"),
        "wrong": source.replace(scaled, scaled + " * 1.01"),
        "unreadable": source.replace(scaled, "out = nothing"),
        "crashing": source.replace(scaled, "import os; os.abort()"),
        "broken": source + "\nraise RuntimeError('while importing')\n",
    }
    before = (kernels_folder() / "rows/layernorm.py").read_bytes()
    found = judged([Job(name, "rows/layernorm", {"rows/layernorm": text}, first=2) for name, text in jobs.items()], 1)
    by = {verdict.name: verdict.by for verdict in found}
    assert by["unchanged"] == by["equivalent"] == ""
    assert "rule (a): out" in by["wrong"]
    assert "NameError" in by["unreadable"]
    assert by["crashing"].startswith("crash")
    assert "while importing" in by["broken"]
    assert (kernels_folder() / "rows/layernorm.py").read_bytes() == before


def fake(by):
    """A nursery in which ``by(job)`` finds the fault."""
    return lambda jobs, parallel: (Verdict(job.name, by(job) if job.sources else "", 0.1) for job in jobs)


def lab(capsys, *arguments):
    code = main(["lab", "mutants", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def here(monkeypatch, tmp_path):
    """The command in this process: nothing is interpreted when the nursery is a fake."""
    monkeypatch.setattr("vitkern.dispatch.INTERPRETED", True)
    monkeypatch.setenv("VITKERN_LAB_RECORDS", str(tmp_path))


def test_what_lives_must_be_listed_and_what_is_listed_must_live(capsys, monkeypatch, here):
    dies = fake(lambda job: "" if job.name in SURVIVORS else "rule (a): out")
    monkeypatch.setattr(part, "judged", dies)
    code, out, _ = lab(capsys)
    gaps = [name for name, one in SURVIVORS.items() if not one.equivalent]
    assert code == 0 and ("100.0%" in out.splitlines()[-1]) == (not gaps)
    record = json.loads((records.folder() / "mutants.json").read_text())
    assert record["passed"] and record["files"]["rows/layernorm"]["kernel"] == PER_FILE

    monkeypatch.setattr(part, "judged", fake(lambda job: "rule (a): out"))
    code, out, _ = lab(capsys)
    assert code == (1 if SURVIVORS else 0) and ("is listed and killed" in out) == bool(SURVIVORS)

    monkeypatch.setattr(part, "judged", fake(lambda job: ""))
    code, out, _ = lab(capsys, "layernorm", "--limit", "2")
    assert code == 1 and "survives and is not listed" in out and "FAILED" in out.splitlines()[-1]
    assert json.loads((records.folder() / "mutants.json").read_text())["passed"] == (not SURVIVORS), (
        "a part of the files writes no record"
    )


def test_a_broken_original_is_named(capsys, monkeypatch, here):
    fails = lambda jobs, parallel: iter([Verdict("original layernorm", "rule (a): out", 0.1)])  # noqa: E731
    monkeypatch.setattr(part, "judged", fails)
    code, _, err = lab(capsys, "layernorm")
    assert code == 2 and "original layernorm fails unbroken" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layernrom"], "got 'layernrom'; Near: layernorm"),
        (["--only", "layernorm.statistics:flip-sing:1"], "Near: layernorm.statistics:flip-sign:1"),
        (["--jobs", "0"], "--jobs is too small: got 0; expected 1 or more"),
        (["--limit", "-1"], "--limit is too small"),
    ],
)
def test_bad_input_is_one_line(capsys, here, arguments, message):
    code, _, err = lab(capsys, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1


def test_list_names_lines_and_changes(capsys, here):
    code, out, _ = lab(capsys, "stream.py", "--list")
    assert code == 0 and len(out.splitlines()) == 1 + PER_FILE + LAUNCHERS_PER_FILE
    name = out.splitlines()[1].split()[0]
    assert lab(capsys, "--list", "--only", name)[1].splitlines()[1].split()[0] == name


def test_breaks_stand_in_the_sources():
    assert len(BREAKS) == 10
    for name, one in BREAKS.items():
        (source,) = broken_sources(name).values()
        assert one.after in source


@pytest.mark.parametrize(
    ("before", "said"), [("no such line", "in no file: got "), ("import triton", "in .*attention, ")]
)
def test_a_break_without_one_place_is_refused(monkeypatch, before, said):
    monkeypatch.setitem(BREAKS, "misplaced", Break(before, "x"))
    with pytest.raises(ValueError, match=f"breaks: misplaced: what it replaces stands {said}.*expected once in all"):
        broken_sources("misplaced")
