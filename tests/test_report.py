"""The report, the comparison of two runs and the scaling sweeps: figures from rows, pictures from figures."""

import json
import math

import pytest
import torch

from benchmarks import compare, measure, plots, results, scale, timers
from benchmarks.__main__ import main
from benchmarks.cases import CASES
from benchmarks.rows import OURS, Row

CPU = torch.device("cpu")
CASE = next(case for case in CASES if case.op == "attention")


@pytest.fixture
def run(capsys):
    """run(*arguments) -> (exit code, stdout, stderr)"""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def row(contender=OURS, seconds=1.0, op="attention", case=str(CASE), **fields):
    defaults = dict(mode="forward", dtype="float16", batch=2, spread=0.02, samples=9, peak=2**20)
    return Row(op=op, case=case, contender=contender, seconds=seconds, **(defaults | fields))


def saved(path, rows, device="NVIDIA H200", ceilings=None, torch="2.0"):
    found = dict(device=device, threads=2, versions=dict(torch=torch))
    if ceilings:
        found["ceilings"] = dict(float16=dict(copy=ceilings[0], matmul=ceilings[1]))
    results.save(path, rows, found)
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
    models.append(row(OURS, None, "models", "huge", note="out of memory"))
    ours = row(seconds=1e-4, moved=10**6, flops=10**8, padded=2 * 10**8, estimates={"H200 bfloat16": 2e-6})
    cudnn = row("SDPA cuDNN", 1e-5, note="WRONG: known: NaN")
    refused = row("SDPA flash", None, note="RuntimeError: no")
    peers = [row("sdpa", 1.5e-4), row("eager", 4e-4), cudnn, refused]
    path = saved(tmp_path / "run.json", [ours, *peers, wrong, *models, *sweep_rows(2)], ceilings=(2e10, 2e12))
    code, out, err = run("report", path, "--out", tmp_path / "out")
    assert code == 0, err
    page = (tmp_path / "out" / "report.md").read_text()
    assert "NVIDIA H200, 2 threads, torch 2.0, copy 20.0 GB/s, float16 matrix product 2 TFLOP/s." in page
    line = next(line for line in page.splitlines() if line.startswith(f"| {CASE} | forward | float16 | 2 | 100 us"))
    cells = [cell.strip() for cell in line.strip("|").split("|")][5:]
    assert cells == [
        "50%",
        "10.0",
        "50%",
        "1",
        "50%",
        "0.1",
        "0.2",
        "1",
        "1.0 MiB",
        "n/a",
        "n/a",
        "sdpa",
        "1.50x",
        "2 us",
    ]
    assert "| H200 bfloat16 at least, uncalibrated |" in page
    assert f"- {CASES[1]}, forward, float16: WRONG: out is off" in page
    assert "| 100 us | 150 us | 400 us | **wrong** 10 us [1] | - [2] |" in page
    assert "1. WRONG: known: NaN\n2. RuntimeError: no" in page
    assert "| vit | forward | float16 | vitkern | 1.6 s \u00b1 2% | 1.2 | 1.0 MiB | 1.25x (1.20 .. 1.30) |" in page
    assert "| huge | forward | float16 | vitkern | - | - | - | out of memory |" in page
    assert "| attention-tokens | forward | vitkern | 2.00 | 1.00 | 1024 | the sweep's end |" in page
    pictures = {name.name for name in (tmp_path / "out").glob("*.png")}
    assert len(pictures) == 5 and all(f"]({name})" in page for name in pictures) and "and 5 pictures" in out
    assert all((tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)


def test_bars_leave_out_what_is_wrong():
    rows = [row(), row("slow", 3.0), row("wrong", 0.1, note="WRONG: it differs"), row("refused", None), row("b", 2.0)]
    assert plots.best_peers(rows) == {str(CASE): {"slow": 3.0, "b": 2.0}}
    assert plots.best_peers([*rows, row(mode="backward")]) == {f"{CASE}, forward": {"slow": 3.0, "b": 2.0}}


def test_long_pictures_are_cut_into_pages():
    bars = {f"case {i}": dict.fromkeys(("eager", "SDPA flash", "NATTEN"), 2.0) for i in range(50)}
    parts = plots.pages(bars)
    assert [len(part) for part in parts] == [17, 17, 16] and {n: b for part in parts for n, b in part.items()} == bars
    assert all(3 * len(part) <= plots.BARS for part in parts) and plots.pages({}) == []


def test_a_contender_looks_the_same_in_every_picture():
    names = {"SDPA math", "eager", "NATTEN", "Liger"}
    assert plots._styles(names) == {"eager": 0, "SDPA math": 6, "Liger": 7, "NATTEN": 8}
    looks = [(style % 8, (style + style // 8) % 8) for style in range(16)]
    assert len(set(looks)) == len(looks)
    drawn = [(plots.MARKERS[i % 11], plots.COLOURS[i % 8]) for i in range(88)]
    assert len(set(plots.MARKERS)) == 11 and len(set(drawn)) == len(drawn)


def test_models_are_drawn_against_their_first_contender():
    """The original, in the order of the table; what is wrong or was not timed has no bar."""
    cases = [row(name, time, "models", "a") for name, time in (("original", 2.0), (OURS, 1.0), ("compiled", 0.5))]
    cases += [row("original", 3.0, "models", "b"), row("wrong", 1.0, "models", "b", note="WRONG: it differs")]
    cases += [row("original", 3.0, "models", "c"), row(OURS, 6.0, "models", "c"), row("compiled", None, "models", "c")]
    found = plots.gains(cases)
    assert found == {"a": {OURS: 2.0, "compiled": 4.0}, "c": {OURS: 0.5}}


def test_report_without_ceilings_has_no_roofline(run, tmp_path):
    path = saved(tmp_path / "run.json", [row(moved=1, flops=1), row("eager", 2.0)], device="an abacus")
    assert run("report", path, "--out", tmp_path)[0] == 0
    prefix = tmp_path.name.replace("_", "-")
    assert [name.name for name in tmp_path.glob("*.png")] == [f"{prefix}-run-attention-forward-speed.png"]


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
    assert code == 2 and "has schema 99, and this version reads 2. Measure again." in err
    del (older := json.loads(path.read_text()))["schema"]
    path.write_text(json.dumps(older))
    assert "has schema 1" in run("compare", path, path)[2]


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
    assert code == 1 and "SLOWER" in out and "verdict: 1 of 2 slower beyond noise or gone" in out and "eager" not in out
    code, out, _ = run("compare", before, after, "--all")
    assert code == 1 and "verdict: 2 of 3 slower beyond noise or gone" in out
    assert run("compare", before, before)[0] == 0


@pytest.mark.parametrize("note", ("out of memory", "WRONG: out is off", "FAILED: ValueError: a bug"))
def test_compare_flags_what_has_no_time_any_more(run, tmp_path, note):
    before = saved(tmp_path / "a.json", [row(seconds=1.0), row(seconds=1.0, mode="backward")])
    after = saved(tmp_path / "b.json", [row(seconds=None, note=note), row(seconds=1.0, mode="backward")])
    code, out, _ = run("compare", before, after)
    assert code == 1 and f"GONE: {note}" in out and "verdict: 1 of 2 slower beyond noise or gone" in out
    assert run("compare", after, before)[0] == 0  # what had none before is no regression


def test_compare_names_what_else_changed(run, tmp_path):
    before, after = saved(tmp_path / "a.json", [row()]), saved(tmp_path / "b.json", [row()], torch="2.1")
    code, out, _ = run("compare", before, after)
    assert code == 0 and "torch was 2.0 and is 2.1" in out


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


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.setattr(scale, "SWEEPS", (scale.Sweep("attention-tokens", CASE, "tokens", (8, 16, 32, 64)),))


def test_scale_measures_until_a_call_takes_too_long(run, tmp_path, monkeypatch, sweep):
    times = {8: 0.1, 16: 0.2, 32: 0.9, 64: 5.0}
    asked = []

    def timed(call, device, quick):
        call()
        asked.append(next(n for n in times if asked.count(n) < 2))
        return [times[asked[-1]]]

    monkeypatch.setattr(timers, "samples_of", timed)
    path = tmp_path / "scale.json"
    code, out, _ = run("scale", "--limit", "0.5", "--save", path)
    assert code == 0 and "largest 32, the last that was tried" in out
    rows = results.load(path)["results"]
    assert [scale.size_of(row) for row in rows] == [8, 8, 16, 16, 32, 32]
    assert all(row.peak is not None for row in rows)


def test_scale_names_sweeps_that_are_like_it(run):
    code, _, err = run("scale", "attention-tokns")
    assert code == 2 and "attention-tokens" in err


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("out"), RuntimeError("can't allocate memory: 9 GB")])
def test_scale_says_where_memory_ended(run, monkeypatch, sweep, error):
    calls = []

    def timed(call, device, quick):
        calls.append(call)
        if len(calls) > 2:
            raise error
        return [0.1]

    monkeypatch.setattr(timers, "samples_of", timed)
    code, out, _ = run("scale")
    assert code == 0 and out.count("largest 8, out of memory") == 2 and len(calls) == 4


def test_scale_times_nothing_that_is_wrong(run, monkeypatch, sweep):
    monkeypatch.setattr(timers, "samples_of", lambda *a, **k: pytest.fail("a wrong operator was timed"))
    monkeypatch.setattr(scale, "verify", lambda case, dtype, device: [f"{case.tokens} are wrong"])
    code, out, _ = run("scale")
    assert code == 1 and "WRONG: 8 are wrong" in out


def test_scale_ends_when_time_does(run, capsys, sweep):
    code, _, err = run("scale", "--minutes", "0.0000001")
    assert code == 0 and "out of time: attention-tokens, forward is not run" in err
    assert list(scale.measure(scale.SWEEPS[0], torch.float32, CPU, "forward", 1.0, deadline=0.0)) == []
    assert "out of time: attention-tokens ends before tokens 8" in capsys.readouterr().err


def test_scale_goes_on_where_it_ended(run, tmp_path, monkeypatch, sweep):
    """Sweeps of a mode that the file has are kept; those of other sources are measured anew."""
    monkeypatch.setattr(timers, "samples_of", lambda call, device, quick: [0.1])
    arguments = ("scale", "--save", tmp_path / "scale.json", "--resume", "--quick")
    assert run(*arguments)[0] == 0
    monkeypatch.setattr(timers, "samples_of", lambda call, device, quick: [0.2])
    code, out, _ = run(*arguments, "--mode", "forward", "training")
    times = {(row.mode, row.seconds) for row in results.load(tmp_path / "scale.json")["results"]}
    assert code == 0 and times == {("forward", 0.1), ("training", 0.2)} and "attention-tokens, forward" not in out
    monkeypatch.setattr(results, "sources", lambda: "others")
    code, _, err = run(*arguments)
    assert code == 0 and "is of another run and is measured anew: other sources" in err
    assert {row.seconds for row in results.load(tmp_path / "scale.json")["results"]} == {0.2}


def test_a_fault_of_a_sweep_is_a_row(run, monkeypatch, sweep):
    def broken(call, device, quick):
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(timers, "samples_of", broken)
    code, out, _ = run("scale")
    assert code == 1 and "FAILED: RuntimeError: illegal memory access" in out


@pytest.mark.parametrize("sweep", scale.SWEEPS, ids=lambda sweep: sweep.name)
def test_sweeps_change_one_size(sweep):
    points = list(sweep.problems())
    assert [value for value, _, _ in points] == sorted(sweep.values)
    case, batch = points[-1][1:]
    assert (batch if sweep.size == "batch" else getattr(case, sweep.size)) == sweep.values[-1]
    assert case.work(batch, 4, "forward").flops > points[0][1].work(points[0][2], 4, "forward").flops


def test_scale_times_what_models_write(monkeypatch):
    """Both contenders of a sweep compute the same."""
    for mode in scale.MODES:
        ours, eager = (scale._call(CASE, 1, torch.float32, CPU, name, mode) for name in scale.CONTENDERS)
        ours, eager = ours(), eager()
        pairs = [(ours, eager)] if mode == "forward" else zip(ours, eager, strict=True)
        assert not any(measure.difference([a], [b]) for a, b in pairs)
