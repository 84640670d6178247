"""The report, the comparison of two runs and the scaling sweeps: figures from rows, pictures from figures."""

import json
import math

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import compare, results, scale
from benchmarks.cases import CASES
from benchmarks.measure import OURS, Row

CPU = torch.device("cpu")
CASE = next(case for case in CASES if case.op == "attention")


@pytest.fixture
def run(capsys):
    """run(*arguments) -> (exit code, stdout, stderr)"""

    def call(*arguments):
        code = command.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def row(contender=OURS, seconds=1.0, op="attention", case=str(CASE), **fields):
    defaults = dict(mode="forward", dtype="float16", batch=2, spread=0.02, samples=9, peak=2**20)
    return Row(op=op, case=case, contender=contender, seconds=seconds, **(defaults | fields))


def saved(path, rows, device="NVIDIA H200"):
    results.save(path, rows, dict(device=device, threads=2, versions=dict(torch="2.0")))
    return path


def sweep_rows(power, contender=OURS):
    sizes = (64, 128, 256, 512, 1024)
    return [
        row(contender, seconds=1e-6 * size**power, op="scale-attention", case=f"attention-tokens {size}", peak=size * 8)
        for size in sizes
    ]


def test_report_holds_every_part_and_its_pictures(run, tmp_path):
    wrong = row(seconds=None, case=str(CASES[1]), note="WRONG: out is off")
    models = [row("original", 2.0, "models", "vit"), row(OURS, 1.6, "models", "vit", note="1.25x (1.20 .. 1.30)")]
    rows = [row(seconds=1e-4), row("sdpa", 1.5e-4), row("eager", 4e-4), wrong, *models, *sweep_rows(2)]
    path = saved(tmp_path / "run.json", rows)
    code, _, err = run("report", path, "--out", tmp_path / "out")
    assert code == 0, err
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| attention | " + str(CASE) in page and "| sdpa | 1.50x |" in page
    assert "WRONG: out is off" in page
    assert "| vit | forward | float16 | vitkern | 1.6 s \u00b1 2% | 1.2 | 1.0 MiB | 1.25x (1.20 .. 1.30) |" in page
    assert "| attention-tokens | vitkern | 2.00 | 1.00 | 1024 |" in page
    pictures = {name.name for name in (tmp_path / "out").glob("*.png")}
    assert len(pictures) == 5 and all(f"]({name})" in page for name in pictures)
    assert all((tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)


def test_report_of_a_device_without_peaks_has_no_roofline(run, tmp_path):
    path = saved(tmp_path / "run.json", [row(), row("eager", 2.0)], device="an abacus")
    assert run("report", path, "--out", tmp_path)[0] == 0
    assert "n/a" in (tmp_path / "report.md").read_text()
    assert [name.name for name in tmp_path.glob("*.png")] == [f"{tmp_path.name.replace('_', '-')}-run-speed.png"]


def test_report_refuses_what_it_cannot_read(run, tmp_path):
    (tmp_path / "bad.json").write_text("{}")
    assert run("report", tmp_path / "bad.json", "--out", tmp_path)[0] == 2
    assert run("report", tmp_path / "none.json", "--out", tmp_path)[0] == 2
    path = saved(tmp_path / "run.json", [row()])
    code, _, err = run("report", path, "--out", path)
    assert code == 2 and "--out is no folder" in err


def test_another_schema_is_refused(run, tmp_path):
    path = saved(tmp_path / "run.json", [row()])
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(schema=99)))
    code, _, err = run("compare", path, path)
    assert code == 2 and "schema 99" in err


@pytest.mark.parametrize(
    "before, after, spread, said",
    [(1.0, 1.04, 0.0, "same"), (1.0, 1.06, 0.0, "SLOWER"), (1.0, 1.06, 0.1, "same"), (1.0, 1.2, 0.1, "SLOWER"),
     (1.0, 0.9, 0.02, "faster"), (1.0, 0.96, 0.0, "same")],
)  # fmt: skip
def test_a_change_counts_beyond_noise(before, after, spread, said):
    assert compare.verdict(row(seconds=before, spread=spread), row(seconds=after, spread=0.0)) == said


def test_compare_two_runs(run, tmp_path):
    before = saved(tmp_path / "a.json", [row(seconds=1.0), row("eager", 1.0), row(seconds=1.0, mode="backward")])
    after = saved(tmp_path / "b.json", [row(seconds=1.3), row("eager", 9.0), row(seconds=1.0, mode="backward")])
    code, out, _ = run("compare", before, after)
    assert code == 1 and "SLOWER" in out and "verdict: 1 of 2 slower beyond noise" in out and "eager" not in out
    code, out, _ = run("compare", before, after, "--all")
    assert code == 1 and "verdict: 2 of 3 slower beyond noise" in out
    assert run("compare", before, before)[0] == 0


def test_compare_refuses_other_devices_and_disjoint_runs(run, tmp_path):
    one = saved(tmp_path / "a.json", [row()])
    code, _, err = run("compare", one, saved(tmp_path / "b.json", [row()], device="an abacus"))
    assert code == 2 and "times of two devices are not comparable" in err
    code, _, err = run("compare", one, saved(tmp_path / "c.json", [row(case="another")]))
    assert code == 2 and "no case in common" in err


@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_exponents_are_fitted(power):
    time, memory = scale.fitted(sweep_rows(power))[OURS]
    assert math.isclose(time, power, rel_tol=1e-6) and math.isclose(memory, 1.0, rel_tol=1e-6)


def test_the_fit_looks_at_the_upper_half():
    """Overhead flattens the beginning of a sweep."""
    assert math.isclose(scale.exponent([1, 2, 4, 8, 16, 32], [1, 1, 1, 4, 16, 64]), 2.0, rel_tol=1e-6)


def test_scale_measures_until_a_call_takes_too_long(run, tmp_path, monkeypatch):
    sweep = scale.Sweep("attention-tokens", CASE, "tokens", (8, 16, 32, 64))
    monkeypatch.setattr(scale, "SWEEPS", (sweep,))
    times = {8: 0.1, 16: 0.2, 32: 0.9, 64: 5.0}
    asked = []

    def timed(call, device, quick):
        call()
        asked.append(next(n for n in times if asked.count(n) < 2))
        return [times[asked[-1]]]

    monkeypatch.setattr(scale, "time_run", timed)
    path = tmp_path / "scale.json"
    code, out, _ = run("scale", "--limit", "0.5", "--save", path)
    assert code == 0 and "largest 32" in out
    rows = results.load(path)["results"]
    assert [scale.size_of(row) for row in rows] == [8, 8, 16, 16, 32, 32]
    assert all(row.peak is not None for row in rows)


def test_scale_names_sweeps_that_are_like_it(run):
    code, _, err = run("scale", "attention-tokns")
    assert code == 2 and "attention-tokens" in err


def test_scale_says_where_memory_ended(run, monkeypatch):
    sweep = scale.Sweep("attention-tokens", CASE, "tokens", (8, 16))
    monkeypatch.setattr(scale, "SWEEPS", (sweep,))

    def timed(call, device, quick):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(scale, "time_run", timed)
    code, out, _ = run("scale")
    assert code == 0 and out.count("out of memory") == 2
