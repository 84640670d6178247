"""What is recorded as proved stands for the sources that it was proved of, and for no others."""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from vitkern.lab import proofs, records
from vitkern.lab.specimens import specimens
from vitkern.report import BadInput

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    """A record of its own."""
    monkeypatch.setattr(proofs, "FILE", tmp_path / "proofs.jsonl")
    forget = proofs.digest.cache_clear
    yield
    forget()


@pytest.fixture
def digests(monkeypatch):
    """digests(file of the repository, old, new) -> those of all operators where the file has ``new`` for ``old``."""
    read = Path.read_text

    def get(name="", old="", new=""):
        def planted(path, *arguments, **options):
            text = read(path, *arguments, **options)
            if name and path == ROOT / name:
                assert old in text
                text = text.replace(old, new, 1)
            return text

        proofs.digest.cache_clear()
        if name:
            proofs._module.cache_clear()
            monkeypatch.setattr(Path, "read_text", planted)
        return {operator: proofs.digest(operator) for operator in proofs.operators()}

    yield get
    if Path.read_text is not read:
        proofs._module.cache_clear()


LOCAL = {
    "local_attention", "halo_attention", "standalone_attention", "neighborhood_attention", "decomposed_attention",
}  # fmt: skip
COMPOSED = "nadaraya_watson"  # of attention

MLPS = {"layernorm_glu", "layernorm_mlp", "token_mixing"}
NORMED = "qk_norm_attention"  # on both
NORMS = {"layernorm", "rmsnorm", NORMED} | MLPS
DENSE = {"attention", "gated_positional_attention", COMPOSED, NORMED}


@pytest.mark.parametrize(
    "name, old, new, expected",
    [
        ("kernels/loop/stream.py", "tl.program_id(0)", "tl.program_id(1)", {"window_attention"} | DENSE | LOCAL),
        ("kernels/rows/layernorm.py", "tl.program_id(0)", "tl.program_id(1)", NORMS),
        ("kernels/rows/activations.py", "0.5", "0.25", MLPS),
        ("vitkern/ops/attention/softmax.py", "import math", "import cmath", DENSE),
        ("vitkern/ops/halo_attention.py", "import torch", "import torch as t", {"halo_attention"}),
        ("vitkern/reference/sparse_attention.py", "import torch", "import torch as t", {"sparse_attention"}),
        ("kernels/loop/stream.py", "import triton", "\n\n# As below.\nimport triton", set()),
        ("vitkern/reference/halo_attention.py", '"""', '"""Halo. ', set()),
        ("vitkern/nn/attention.py", "import torch", "import torch as t", set()),
    ],
)
def test_a_changed_file_changes_the_digests_of_what_is_made_of_it(digests, name, old, new, expected):
    before, after = digests(), digests(name, old, new)
    assert {operator for operator in before if before[operator] != after[operator]} == expected


def test_versions_are_part_of_a_digest_by_their_minor(digests, monkeypatch):
    versions = records.environment() | dict(triton="3.9.0", torch="2.15.0")
    found = []
    for other in (dict(), dict(triton="3.9.1", torch="2.15.3+cpu"), dict(triton="3.8.0"), dict(torch="2.16.0")):
        monkeypatch.setattr(records, "environment", lambda other=other: versions | other)
        found.append(digests()["attention"])
    assert found[0] == found[1] and len(set(found)) == 3


def test_another_process_finds_the_same():
    code = "from vitkern.lab import proofs; print(proofs.digest('layernorm'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.strip() == proofs.digest("layernorm")


def test_the_operators_are_those_of_ops_and_their_kernels_are_found():
    for operator in proofs.operators():
        found = proofs.sources(operator)
        assert {f"vitkern.ops.{operator}", f"vitkern.reference.{operator}"} <= set(found)
        assert any(module.startswith("vitkern.kernels.machine.") for module in found)
    assert set(specimens()) | LOCAL | {COMPOSED} == set(proofs.operators())


def test_a_specimen_is_a_part(tmp_path, monkeypatch):
    before = proofs.digest("layernorm")
    real = proofs._file

    def file(module):
        return tmp_path / "layernorm.py" if module == "vitkern.lab.specimens.layernorm" else real(module)

    (tmp_path / "layernorm.py").write_text("from vitkern.reference import dropout\n")
    monkeypatch.setattr(proofs, "_file", file)
    proofs.digest.cache_clear()
    assert {"vitkern.lab.specimens.layernorm", "vitkern.reference.dropout"} <= set(proofs.sources("layernorm"))
    assert proofs.digest("layernorm") != before


def test_without_a_record_everything_runs():
    assert proofs.load() == {} and proofs.changed("attention", "fuzz")
    assert proofs.portion("attention", "fuzz", 333) == 333


def test_what_passed_runs_to_a_tenth_unless_asked():
    proofs.write("fuzz", {"attention": (333, True)})
    assert not proofs.changed("attention", "fuzz") and proofs.portion("attention", "fuzz", 333) == 34
    assert [proofs.portion("attention", "fuzz", full) for full in (0, 1, 9, 10, 11)] == [0, 1, 1, 1, 2]
    assert proofs.portion("attention", "fuzz", 333, everything=True) == 333
    assert proofs.portion("attention", "fuzz", 334) == 334  # more cases than were recorded
    assert proofs.changed("attention", "edges") and proofs.changed("layernorm", "fuzz")


def test_what_failed_runs_in_full():
    proofs.write("edges", {"attention": (50, True), "layernorm": (7, False)})
    assert proofs.changed("layernorm", "edges") and proofs.portion("layernorm", "edges", 7) == 7
    proofs.write("edges", {"attention": (5, False)})
    assert proofs.changed("attention", "edges")
    proofs.write("edges", {"attention": (50, True)})
    assert not proofs.changed("attention", "edges")


def test_a_smaller_run_leaves_a_larger_record():
    proofs.write("fuzz", {"attention": (333, True)})
    before = proofs.FILE.read_text()
    proofs.write("fuzz", {"attention": (34, True)})
    assert proofs.FILE.read_text() == before


def test_other_sources_need_all_parts_again(monkeypatch):
    for part in proofs.PARTS:
        proofs.write(part, {"attention": (10, True), "layernorm": (10, True)})
    real = proofs.digest
    monkeypatch.setattr(proofs, "digest", lambda operator: "0" * 16 if operator == "attention" else real(operator))
    assert all(proofs.changed("attention", part) and not proofs.changed("layernorm", part) for part in proofs.PARTS)
    proofs.write("fuzz", {"attention": (10, True)})
    assert not proofs.changed("attention", "fuzz")
    assert all(proofs.changed("attention", part) for part in proofs.PARTS if part != "fuzz")


def test_a_line_for_each_operator():
    proofs.write("gradients", {"window_attention": (12, True)})
    proofs.write("edges", {"attention": (3, True), "window_attention": (4, True)})
    lines = [json.loads(line) for line in proofs.FILE.read_text().splitlines()]
    assert [line["operator"] for line in lines] == ["attention", "window_attention"]
    assert list(lines[1]) == ["operator", "digest", "edges", "gradients"]
    assert lines[1]["gradients"]["count"] == 12 and lines[1]["gradients"]["passed"] is True
    assert lines[0]["digest"] == proofs.digest("attention")
    assert [file.name for file in proofs.FILE.parent.iterdir()] == [proofs.FILE.name]


def test_chosen_cases_are_some_of_each_operator_in_their_order():
    cases = [(operator, i) for i in range(50) for operator in ("attention", "layernorm")]
    assert proofs.chosen("edges", cases, lambda case: case[0], False, 1) == cases
    proofs.write("edges", {"attention": (50, True)})
    found = proofs.chosen("edges", cases, lambda case: case[0], False, 1)
    counts = Counter(operator for operator, _ in found)
    assert counts == {"attention": 5, "layernorm": 50} and found == sorted(found, key=cases.index)
    assert proofs.chosen("edges", cases, lambda case: case[0], False, 1) == found
    assert proofs.chosen("edges", cases, lambda case: case[0], False, 2) != found
    assert proofs.chosen("edges", cases, lambda case: case[0], True, 1) == cases
    said = proofs.explain("edges", counts, 1)
    assert said == "attention 5 (recorded: 50), layernorm 50; drawn with --seed 1"


def test_seeds_are_new():
    assert len({proofs.new_seed() for _ in range(8)}) == 8 and 0 <= proofs.new_seed() < 10**9


def test_all_parts_have_the_same_words():
    parser = argparse.ArgumentParser()
    proofs.add_arguments(parser)
    assert vars(parser.parse_args(["--all", "--update"])) == dict(all=True, update=True)
    assert vars(parser.parse_args([])) == dict(all=False, update=False)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"operator": "attention"}', '{"operator": "a", "digest": "0", "fuzz": {"count": 1}}',
     '{"operator": "a", "digest": "0", "fuzz": {"count": "1", "date": "", "passed": true}}',
     '{"operator": "a", "digest": "0", "fuzz": {"count": 1, "date": "", "passed": 1}}'],
)  # fmt: skip
def test_a_damaged_record_is_one_line(text):
    proofs.FILE.write_text(f"{text}\n")
    with pytest.raises(BadInput, match="the record of proofs is damaged") as caught:
        proofs.changed("attention", "fuzz")
    assert "\n" not in str(caught.value)


def test_unknown_names():
    with pytest.raises(BadInput, match=r"unknown operator: got 'atention'.* Near: attention"):
        proofs.digest("atention")
    with pytest.raises(ValueError, match="unknown part: got 'fuz'"):
        proofs.changed("attention", "fuz")


def test_the_committed_record_is_readable(monkeypatch):
    monkeypatch.setattr(proofs, "FILE", ROOT / "vitkern/lab/proofs.jsonl")
    assert set(proofs.load()) <= set(proofs.operators())
