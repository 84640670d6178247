"""What a first session on a GPU would run, tried here: the plan, its processes, the files it leaves, the GPU tests."""

import argparse
import importlib.util
import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import command, plan, results
from benchmarks.__main__ import main
from benchmarks.cases import CASES, OPS, chosen
from vitkern import dispatch
from vitkern.lab.specimens import specimens

ROOT = Path(__file__).resolve().parents[1]


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "gpu" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def started(monkeypatch):
    """started(*codes): in place of processes, whose exit codes those are in turn; returns what was to be started."""

    def install(*codes):
        asked, left = [], list(codes)
        monkeypatch.setattr(plan, "started", lambda arguments, quiet=False: (asked.append(arguments), arguments)[1])
        monkeypatch.setattr(plan, "ended", lambda processes, seconds: [left.pop(0) if left else 0 for _ in processes])
        return asked

    return install


def run(*arguments):
    return main(["plan", *map(str, arguments)])


def test_each_part_has_its_share_of_the_time_and_goes_on_with_its_file(started, tmp_path):
    asked = started()
    assert run("--minutes", "10", "--folder", tmp_path) == 0
    parts = [arguments for arguments in asked if "--warm" not in arguments]
    assert [arguments[arguments.index("--save") + 1] for arguments in parts] == [
        str(tmp_path / part.file) for part in plan.PLAN
    ]
    for arguments, part in zip(parts, plan.PLAN, strict=True):
        assert "--resume" in arguments and 0 < float(arguments[-1]) <= 10 * part.share
    warm = ["--warm" in arguments for arguments in asked]
    ahead = [len(list(run)) for is_warm, run in itertools.groupby(warm) if is_warm]
    assert ahead and all(count >= 1 for count in ahead) and warm[0]  # before the parts that follow one another
    assert sum(part.warm for part in plan.PLAN) > len(ahead)


def test_what_has_no_time_left_is_named(started, tmp_path, capsys):
    asked = started()
    assert run("--minutes", "0.001", "--folder", tmp_path) == 0
    assert not [arguments for arguments in asked if "--warm" not in arguments]
    assert capsys.readouterr().err.count("out of time: not run: ") == len(plan.PLAN)


def test_a_part_that_is_not_there_is_bad_input(started, tmp_path, capsys):
    asked = started()
    assert run("--folder", tmp_path, "--parts", 99) == 2 and not asked
    assert "--parts: got '99'; expected a whole number from 1 to 9" in capsys.readouterr().err


def test_a_part_whose_process_dies_goes_on_in_another(started, tmp_path):
    part = next(i for i, part in enumerate(plan.PLAN, 1) if not part.warm)
    for codes, runs, code in (
        ((3, -9, 0), 3, 0),
        ((1,), 1, 1),
        ((3, 3, 3, 3), plan.TRIES, 3),
        ((-11, -11, -11), 3, 11),
    ):
        asked = started(*codes)
        assert run("--folder", tmp_path, "--parts", part) == code and len(asked) == runs


def test_what_was_written_is_copied_part_by_part(started, tmp_path):
    started()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / plan.PLAN[0].file).write_text("{}")
    assert run("--folder", tmp_path / "here", "--copy", tmp_path / "there") == 0
    assert [path.name for path in (tmp_path / "there").iterdir()] == [plan.PLAN[0].file]
    assert len({part.file for part in plan.PLAN}) <= 8


@pytest.mark.parametrize("part", plan.PLAN, ids=str)
@pytest.mark.parametrize("quick", (False, True))
def test_the_plan_is_of_arguments_and_cases_that_exist(part, quick):
    options = [*part.command(quick), "--save", "file", "--resume", "--minutes", "1"]
    if part.arguments[0] in command.COMMANDS:
        parser = argparse.ArgumentParser()
        command.COMMANDS[part.arguments[0]].add_arguments(parser)
        found = parser.parse_args(options[1:])
    else:
        found = command.parser().parse_args(options)
        assert set(found.op) <= set(command.NAMES) and command.jobs_of(found)
    for pattern in part.cases:
        assert chosen([pattern], CASES)


def test_the_plan_has_every_operator():
    bf16 = next(part for part in plan.PLAN if part.file == "operators-bf16.json" and not part.cases)
    assert set(OPS) <= set(bf16.arguments)
    tuned = next(part for part in plan.PLAN if part.arguments[0] == "tune")
    assert {case.op for case in chosen(list(tuned.cases), CASES)} >= {
        "window_attention", "attention", "layernorm", "layernorm_mlp", "neighborhood_attention", "halo_attention",
        "decomposed_attention",
    }  # fmt: skip


def sleeper(seconds, on_interrupt="raise"):
    code = f"import signal, time\nif {on_interrupt!r} == 'ignore': signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += f"try:\n    print('ready', flush=True)\n    time.sleep({seconds})\n"
    code += "except KeyboardInterrupt:\n    raise SystemExit(7)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, preexec_fn=plan._alone)
    assert process.stdout.readline()
    return process


def test_processes_are_interrupted_and_then_ended(monkeypatch):
    assert plan.ended([sleeper(0.01), sleeper(0.02)], 30) == [0, 0]
    start = time.monotonic()
    assert plan.ended([sleeper(60), sleeper(60, "ignore")], 0.1) == [7, -signal.SIGKILL]
    assert time.monotonic() - start < 20


def test_no_process_outlives_an_interrupted_plan(monkeypatch):
    process = sleeper(60)

    def interrupted(processes, end, wait=plan._wait):
        monkeypatch.setattr(plan, "_wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plan.ended([process], 60)
    assert process.returncode == 7


@pytest.mark.walk(3)
def test_the_plan_runs_here_as_a_whole(tmp_path, monkeypatch, capsys):
    """In processes of their own, small: what each leaves can be read, and the next one goes on with it."""
    options = ("--mode", "forward", "--no-compile")
    parts = (
        plan.Part("operators.json", 1.0, ("layernorm", *options), warm=True),
        plan.Part("operators.json", 1.0, ("layernorm", "rmsnorm", *options)),
        plan.Part("tune.txt", 1.0, ("tune", "layernorm", "--arch", "sm_90")),
    )
    monkeypatch.setattr(plan, "PLAN", parts[: 3 if importlib.util.find_spec("triton") else 2])
    monkeypatch.setattr(plan, "AT_ONCE", 1)
    assert run("--folder", tmp_path / "results", "--copy", tmp_path / "copy", "--quick") == 0, capsys.readouterr()
    assert "compiled ahead in" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == sorted({part.file for part in plan.PLAN})
    found = results.load(tmp_path / "copy" / "operators.json")["results"]
    ours = [(row.op, row.mode) for row in found if row.contender == "vitkern"]
    assert sorted(ours) == [(op, "forward") for op in ("layernorm", "rmsnorm")]  # none of them twice
    assert all(row.seconds > 0 for row in found if row.contender == "vitkern")


# the tests on a GPU


@pytest.mark.parametrize("op", specimens())
def test_the_large_cases_are_calls_that_exist(op, monkeypatch):
    """On one sample of each, in PyTorch."""
    gpu = loaded("test_ops_gpu")
    monkeypatch.setattr(gpu, "SHARE", gpu.MOST[op].batch)
    inputs = gpu.large(op, torch.float32, "cpu")
    with dispatch.use_backend("torch"):
        results_ = gpu.forward_and_backward(op, inputs)
    assert len(results_) == 1 + len(gpu.graded(inputs)) >= 2
    assert all(torch.isfinite(result).all() for result in results_)


def test_a_copy_can_be_read(tmp_path):
    """The record is written in one step: a reader never sees half of it."""
    results.save(tmp_path / "a.json", [], dict(device="", versions={}))
    assert json.loads((tmp_path / "a.json").read_text())["results"] == [] and len(list(tmp_path.iterdir())) == 1
