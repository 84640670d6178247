"""`make gpu` on a machine that is not one: the same stages, commands and records, with a clock and a GPU that are made
up, and processes that end as they are told to or run here."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_benchmark_plan import loaded

from benchmarks import plan

ROOT = Path(__file__).resolve().parents[1]
gpu = loaded("run")


class Rehearsal(gpu.Machine):
    """``ends``: name of a stage's command -> (seconds it takes, how it ends); its limit at most."""

    def __init__(self, folder, ends=None):
        self.folder, self.ends, self.now, self.asked = folder, ends or {}, 100.0, []

    def clock(self):
        return self.now

    def obstacle(self):
        return None

    def environment(self):
        return dict(device="a GPU that is not there", versions={"torch": torch.__version__}), self.folder

    def run(self, command, seconds):
        self.asked.append((command, seconds))
        key = "benchmarks" if command[0] == "benchmarks" else command[-1]
        takes, problem = self.ends.get(key, (seconds / 2, None))
        self.now += min(takes, seconds)
        return "ran out of time" if takes > seconds else problem


def stages_of(folder):
    environment, *stages = map(json.loads, (folder / "session.jsonl").read_text().splitlines())
    assert environment["device"] == "a GPU that is not there"
    return stages


def test_correctness_then_capture_then_timings_then_the_rest(tmp_path):
    machine = Rehearsal(tmp_path / "here")
    assert gpu.main(["--copy", str(tmp_path / "there")], machine) == 0
    assert [stage["stage"] for stage in stages_of(tmp_path / "here")] == [
        "every operator against float64", "CUDA graphs", "benchmarks", "other tests", "tests of large memory",
    ]  # fmt: skip
    assert stages_of(tmp_path / "here") == stages_of(tmp_path / "there")
    assert gpu.MINUTES == 12.0 and machine.now - 100.0 <= 12 * 60
    limits = [seconds for _, seconds in machine.asked]
    assert limits[0] == pytest.approx(0.25 * 720)
    assert limits[1] == pytest.approx(0.1 * 720 + limits[0] / 2)  # and what was left of the first
    benchmarks = next(command for command, _ in machine.asked if command[0] == "benchmarks")
    planned = argparse.ArgumentParser()
    plan.add_arguments(planned)
    found = planned.parse_args(benchmarks[2:])
    assert limits[2] - 60 * found.minutes == pytest.approx(gpu.GRACE, abs=1) and found.copy == tmp_path / "there"


def test_what_takes_too_long_takes_no_time_of_others(tmp_path, capsys):
    machine = Rehearsal(tmp_path, {gpu.STAGES[0].tests: (1e9, None), "benchmarks": (3.0, "failed with exit code 3")})
    assert gpu.main(["10"], machine) == 1
    assert machine.now - 100.0 <= 600.0
    limits = [seconds for _, seconds in machine.asked]
    assert limits[:2] == [pytest.approx(0.25 * 600), pytest.approx(0.1 * 600)]
    problems = {stage["stage"]: stage["problem"] for stage in stages_of(tmp_path)}
    assert problems["every operator against float64"] == "ran out of time" and problems["CUDA graphs"] is None
    assert "benchmarks failed with exit code 3" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("only, names", [("benchmarks", {"benchmarks"}), ("tests", {"pytest"})])
def test_a_part_of_it_has_all_the_time(only, names, tmp_path):
    machine = Rehearsal(tmp_path, {stage.tests or "benchmarks": (1e9, None) for stage in gpu.STAGES})
    assert gpu.main(["9", "--only", only], machine) == 1
    assert {command[0] for command, _ in machine.asked} == names and machine.now - 100.0 == pytest.approx(540.0)


COLLECT = """
import json, sys
import pytest

class Names:
    def pytest_collection_finish(self, session):
        self.found = [item.nodeid for item in session.items]

names = [Names() for _ in json.loads(sys.argv[2])]
for one, options in zip(names, json.loads(sys.argv[2])):
    pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *options], plugins=[one])
with open(sys.argv[1], "w") as file:
    json.dump([one.found for one in names], file)
"""


def collected(folder, *runs):
    """What pytest collects with the options of each run; all in one process, which imports the tests once."""
    path = folder / "collected.json"
    command = [sys.executable, "-c", COLLECT, str(path), json.dumps(runs)]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return json.loads(path.read_text())


def test_every_test_on_a_gpu_is_in_one_stage(tmp_path):
    pytest.importorskip("triton", reason="tests on a GPU need Triton")
    stages = [stage for stage in gpu.STAGES if stage.tests]
    runs = []
    for stage in stages:
        line = gpu.command(stage, 60.0, tmp_path / "report.xml")
        assert line[0] == "pytest" and line[-2:] == ["-k", stage.tests]
        runs.append([*line[1 : line.index("-p")], *line[-2:]])
    *of_stages, every = collected(tmp_path, *runs, ["-m", "gpu", "tests/gpu"])
    assert all(of_stages)
    assert sorted(name for found in of_stages for name in found) == sorted(every)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would run everything")
def test_processes_run_and_their_reports_are_read(tmp_path, monkeypatch):
    """Without a GPU its tests are skipped, each of them, and counted."""
    pytest.importorskip("triton", reason="tests on a GPU need Triton")
    stage = next(stage for stage in gpu.STAGES if stage.name == "CUDA graphs")
    monkeypatch.setattr(gpu, "AT_ONCE", 1)
    monkeypatch.setattr(gpu, "STAGES", (stage._replace(share=1.0),))
    machine = Rehearsal(tmp_path)
    monkeypatch.setattr(Rehearsal, "run", gpu.Machine.run)
    assert gpu.main(["2"], machine) == 0
    (found,) = stages_of(tmp_path)
    assert found["tests"] == found["skipped"] > 10 and found["failures"] == found["errors"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would run everything")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2 and "torch sees no GPU" in capsys.readouterr().out


def test_what_fails_or_takes_too_long_is_named(monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 5.0)
    machine = gpu.Machine()
    assert machine.run(["compileall", "-h"], 60) is None
    assert machine.run(["no_such_module"], 60) == "failed with exit code 1"
    assert machine.run(["timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"], 1.0) == "ran out of time"


def test_what_pytest_did_not_finish_is_not_counted(tmp_path):
    assert gpu.counted(tmp_path / "none.xml") == {}
    (tmp_path / "half.xml").write_text("")
    assert gpu.counted(tmp_path / "half.xml") == {}
