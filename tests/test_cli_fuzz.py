"""Command lines that nobody would type: each ends with a code that is documented, in at most three lines of error.

Options are those that the parsers have, values what is near to right and what is far from it. What takes long, or
would start processes, is replaced. The same examples are drawn each time; VITKERN_FUZZ=5000 draws so many others.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import folders
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import benchmarks.__main__
from benchmarks import ceilings, command, host, plan, results, scale, session, static, tune
from benchmarks.rows import OURS, Row
from vitkern import cli
from vitkern.commands import accelerate, check, lab, models, outcome
from vitkern.lab import proofs
from vitkern.lab.addressing import offsets
from vitkern.lab.breaking import mutants
from vitkern.lab.compiling import compile as compiling
from vitkern.lab.differentiating import gradients
from vitkern.lab.differentiating.gradient_check import Outcome
from vitkern.lab.fuzzing import edges, fuzz
from vitkern.models import registry

MORE = int(os.environ.get("VITKERN_FUZZ", 0))
TINY = "test_vit.r160_in1k"
LEFT_OVER = (".new", ".tmp", ".part")
NUMBERS = (
    "0", "1", "2", "3", "-1", "1e400", "nan", "inf", "-inf", "1_0", "0x10", "½", "1.5", "0/2", "2/2", "", " 1",
    "9" * 30, "9" * 5000,
)  # fmt: skip
FILES = (
    "run.json",
    "old.json",
    "bent.json",
    "list.json",
    "bytes",
    "pipe",
    "folder",
    "none.json",
    "folder/new.json",
    "x" * 300,
)
TEXTS = st.text(st.characters(exclude_characters="\0/"), max_size=8).filter(lambda text: text != "..")
VALUES = st.one_of(
    st.sampled_from(NUMBERS), st.sampled_from(FILES), st.sampled_from(("\udcff", "a\nb", "--", "-")), TEXTS
)
JSON = st.sampled_from((None, True, 0, -1, 3, 1.5, "x", [], [1, 2], {}, {"height": 0}, float("nan"), "gelu", 10**30))


def fuzzed(examples: int):
    return settings(
        max_examples=MORE or examples, derandomize=not MORE, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    pytest.importorskip("transformers", reason="transformers is not installed")
    return folders.write_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with files to name: a recorded run, damaged ones, a pipe, a folder."""
    row = Row("layernorm", "ViT-B 197 x C768", "forward", "float32", 1, OURS, 1.0)
    results.save(tmp_path / "run.json", [row], results.environment(torch.device("cpu")))
    whole = (tmp_path / "run.json").read_text()
    (tmp_path / "old.json").write_text('{"schema": 1}')
    (tmp_path / "bent.json").write_text(whole.replace('"seconds": 1.0', '"seconds": "long"'))
    (tmp_path / "list.json").write_text("[" * 10**5)
    (tmp_path / "bytes").write_bytes(b"PK\x03\x04\xff\xfe")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITKERN_LAB_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(proofs, "FILE", tmp_path / "proofs.jsonl")
    return tmp_path


@pytest.fixture
def idle(monkeypatch):
    """What takes long does nothing."""
    nothing_found = Outcome("", 0.0, 0.0, (), frozenset(), frozenset(), 0.0)
    described = registry.Description("a", "A", 1, "image 3 x 8 x 8", (3, 8, 8), 1, "", {})
    monkeypatch.setattr("vitkern.models.describe", lambda name: described)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for module, name, value in (
        (check, "_check", lambda *a, **k: 0),
        (check, "again", lambda argv, interpreted: 0),
        (lab, "again", _part_here),
        (fuzz, "verdicts_of", lambda chosen, jobs: []),
        (fuzz, "judge", lambda op, seed, case=None: fuzz.Verdict(op, seed, case, (), (), 0.0)),
        (fuzz, "_report", lambda *a: 0),
        (edges, "check", lambda edge: []),
        (gradients, "outcomes_of", lambda chosen, seed, jobs: [nothing_found] * len(chosen)),
        (gradients, "line", lambda case, outcome: ""),
        (gradients, "_conclude", lambda *a: 0),
        (offsets, "launched_kernels", lambda: {}),
        (offsets, "all_cases", lambda: []),
        (mutants, "_chosen", lambda files, limit: []),
        (mutants, "_judge", lambda *a, **k: 0),
        (mutants, "_breaks", lambda *a: 0),
        (compiling, "cells", lambda parts, archs: []),
        (compiling.golden, "store", lambda found: Path("golden")),
        (ceilings, "measured", lambda *a, **k: ceilings.Ceilings(1e10, 1e12)),
        (session, "_rows_of", lambda job, *a: [Row("layernorm", str(job), "forward", "float32", 1, OURS, 1.0)]),
        (static, "figures_of", lambda *a: None),
        (plan, "started", lambda *a, **k: None),
        (plan, "ended", lambda processes, seconds: [0 for _ in processes]),
        (scale, "measure", lambda *a: iter(())),
        (tune, "tasks_of", lambda *a: iter(())),
        (host, "_best", lambda *a: 1.0),
        (host, "_row", lambda *a: ("",) * len(host.HEADER)),
        (accelerate, "_time", lambda *a: {}),
    ):
        monkeypatch.setattr(module, name, value)


counts: Counter[tuple[str, int]] = Counter()  # (what was fuzzed, exit code) -> command lines


@pytest.fixture(scope="module", autouse=True)
def _counts(request):
    """What came of all command lines is said at the end."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        for what in sorted({what for what, _ in counts}):
            found = ", ".join(
                f"{counts[what, code]} ended with {code}" for code in (0, 1, 2, 130) if counts[what, code]
            )
            print(f"\n{what}: {found}", end="")
        print()


def _part_here(argv, interpreted):
    """The part of the laboratory, in this process."""
    arguments = cli.parser({"lab": lab}).parse_args(argv)
    return lab._part(arguments.part).run(arguments)


def ends_well(main, argv: list[str], place: Path, what: str) -> None:
    """What every command line has to do, whatever it is."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    said = err.getvalue()
    assert code in (outcome.GOOD, outcome.BAD, outcome.REFUSED, outcome.INTERRUPTED), (argv, code)
    assert "Traceback" not in said and "something in vitkern is wrong" not in said, (argv, said)
    if code == outcome.REFUSED:
        assert 1 <= len(said.splitlines()) <= 3, (argv, said)
    for path in place.rglob("*"):
        assert path.suffix not in LEFT_OVER and not path.name.startswith("tmp"), (argv, path)
        if path.suffix == ".json" and path.name not in FILES:
            json.loads(path.read_text())
    counts[what, code] += 1


def parsers(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()):
    """(words, parser) of each command."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield words, parser
    for action in inner:
        for name, found in action.choices.items():
            yield from parsers(found, (*words, name))


def command_lines(words: tuple[str, ...], parser: argparse.ArgumentParser, likely):
    """The words of a command, then options with values of any kind, and what stands alone, in any order."""
    parts = [st.lists(VALUES | likely, max_size=2)]
    for action in parser._actions:
        values = VALUES | likely
        if action.choices:
            values |= st.sampled_from([str(choice) for choice in action.choices])
        if not action.option_strings:
            parts.append(st.lists(values, max_size=2))
            continue
        if "--help" in action.option_strings:
            continue
        option = st.sampled_from(action.option_strings)
        if action.nargs == 0:
            parts.append(st.just([]) | option.map(lambda name: [name]))
        else:
            parts.append(
                st.just([]) | st.tuples(option, st.lists(values, max_size=2)).map(lambda one: [one[0], *one[1]])
            )
    chosen = st.lists(st.sampled_from(parts).flatmap(lambda part: part), max_size=4)
    return chosen.map(lambda found: [*words, *(word for part in found for word in part)])


LIKELY = st.sampled_from(("attention", "layernorm", "attention:17", "attention:17:{}", "vit*", "swin*", "H200", "cpu"))
MODULES = {"check": check, "lab": lab, "models": models}
ACCELERATE = dict(parsers(cli.parser({"accelerate": accelerate})))["accelerate",]


@fuzzed(120)
@given(
    argv=st.one_of(st.lists(VALUES, max_size=4), *(command_lines(*one, LIKELY) for one in parsers(cli.parser(MODULES))))
)
def test_the_command_line(place, idle, argv):
    ends_well(cli.main, argv, place, "commands")


@fuzzed(3)
@given(argv=st.lists(VALUES, max_size=2))
def test_info(place, argv):
    ends_well(cli.main, ["info", *argv], place, "info")


@fuzzed(100)
@given(data=st.data())
def test_the_benchmarks(place, idle, data):
    name = data.draw(st.sampled_from(("", *command.COMMANDS)))
    parser = command.parser()
    if name:
        parser = outcome.Parser()
        command.COMMANDS[name].add_arguments(parser)
    argv = data.draw(command_lines((name,) if name else (), parser, LIKELY | st.just("run.json")))
    ends_well(benchmarks.__main__.main, argv, place, "benchmarks")


@fuzzed(25)
@given(argv=command_lines(("accelerate",), ACCELERATE, st.sampled_from((TINY, "r3d_18", "folder"))))
def test_accelerate(place, idle, argv):
    ends_well(cli.main, argv, place, "accelerate")


@fuzzed(30)
@given(data=st.data())
def test_a_folder_with_anything_in_its_files(place, vit, idle, data):
    folder = Path(shutil.copytree(vit, vit.with_name("spoilt"), dirs_exist_ok=True))
    file = data.draw(st.sampled_from((folders.CONFIG, folders.PROCESSOR, folders.WEIGHTS)))
    if file != folders.WEIGHTS and data.draw(st.booleans()):
        fields = json.loads((folder / file).read_text())
        fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(JSON)
        (folder / file).write_text(json.dumps(fields))
    else:
        whole = (folder / file).read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        (folder / file).write_bytes(whole[:cut] + data.draw(st.binary(max_size=8)) + whole[cut + 8 :])
    ends_well(cli.main, ["accelerate", str(folder)], place, "accelerate of a damaged folder")
    shutil.rmtree(folder)
