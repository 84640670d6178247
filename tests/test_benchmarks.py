"""The benchmarks verify before they time, save what they measured, and compare runs. No figure is asserted."""

import json

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import measure, results, roofline
from benchmarks.cases import CASES, OPS, QUICK, Attention, LayerNorm, Window, batch_for

CPU = torch.device("cpu")


@pytest.fixture
def run(capsys):
    """run(*arguments) -> (exit code, stdout, stderr)"""

    def call(*arguments):
        code = command.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def recorded(tmp_path):
    """A saved run of one quick case, made from rows that were never measured: times are 1 s."""
    path = tmp_path / "run.json"
    case = next(case for case in QUICK if case.op == "layernorm")
    row = measure.Row("layernorm", str(case), "forward", "float32", 1, measure.OURS, 1.0, 0.01, 9)
    results.save(path, [row], results.environment(CPU))
    return path


def test_quick_run_saves_and_compares(run, tmp_path):
    path = tmp_path / "run.json"
    code, out, err = run("layernorm", "--quick", "--backward", "--device", "cpu", "--save", path)
    assert code == 0, out + err
    assert "no GPU: the operators run in PyTorch" in out and "n/a" in out
    assert "[1/1] layernorm: ViT-S" in err
    saved = json.loads(path.read_text())
    assert saved["environment"]["versions"]["torch"] == torch.__version__
    ours = [row for row in saved["results"] if row["contender"] == measure.OURS]
    assert {row["mode"] for row in ours} == {"forward", "backward"}
    assert all(row["seconds"] > 0 and row["samples"] > 1 for row in ours)
    assert {row["contender"] for row in saved["results"]} == {measure.OURS, "eager"}

    for result in saved["results"]:
        result["seconds"] *= 1000
    path.write_text(json.dumps(saved))
    code, out, _ = run("layernorm", "--quick", "--device", "cpu", "--against", path)
    assert code == 0 and "time now over the recorded time" in out, out


def test_against_fails_on_a_slower_case(run, recorded, monkeypatch):
    monkeypatch.setattr(measure, "time_run", lambda run, device, quick: [1.2] * 5)
    code, out, _ = run("layernorm", "--quick", "--device", "cpu", "--against", recorded)
    assert code == 1
    assert "1.20  SLOWER" in out and "verdict: 0 wrong, 1 slower than recorded" in out


def test_against_allows_a_tenth(run, recorded, monkeypatch):
    monkeypatch.setattr(measure, "time_run", lambda run, device, quick: [1.09] * 5)
    code, out, _ = run("layernorm", "--quick", "--device", "cpu", "--against", recorded)
    assert code == 0 and "1.09  ok" in out


def test_against_another_device_is_bad_input(run, recorded):
    saved = json.loads(recorded.read_text())
    saved["environment"]["device"] = "an abacus"
    recorded.write_text(json.dumps(saved))
    code, out, err = run("layernorm", "--quick", "--device", "cpu", "--against", recorded)
    assert (code, out) == (2, "") and "an abacus" in err


@pytest.mark.parametrize("content", (None, "{}", "not json", '{"environment": {}, "results": [{"op": 1}]}'))
def test_against_a_bad_file_is_bad_input(run, tmp_path, content):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    code, out, err = run("layernorm", "--quick", "--against", path)
    assert (code, out) == (2, "") and str(path) in err and err.count("\n") == 1


def test_estimate_is_a_labelled_column_without_a_gpu(run):
    pytest.importorskip("triton", reason="it compiles kernels")
    arguments = ("layernorm", "--quick", "--backward", "--device", "cpu", "--dtype", "bf16")
    code, out, err = run(*arguments, "--estimate", "H200")
    assert code == 0, out + err
    header = next(line for line in out.splitlines() if line.startswith("operator"))
    assert header.endswith("H200 at least, uncalibrated")
    figures = [line.split()[-2:] for line in out.splitlines() if line.startswith("layernorm ")]
    assert len(figures) == 2 and all(float(value) > 0 and unit == "us" for value, unit in figures)
    assert figures[0] != figures[1]
    code, out, err = run(*arguments, "--estimate", "abacus")
    assert (code, out) == (2, "") and "--estimate knows no 'abacus'" in err


def test_unknown_operator_lists_near_matches(run):
    code, _, err = run("layer_norm")
    assert code == 2 and "Near: layernorm" in err


@pytest.mark.parametrize("broken", ("output", "gradient"))
def test_a_wrong_operator_gets_no_figure(run, monkeypatch, tmp_path, broken):
    from vitkern.ops import layernorm as module

    right = module.layernorm

    def wrong(x, weight, bias, eps, residual=None):
        if broken == "output":
            return right(x, weight, bias, eps * 1e4, residual)
        return right(x, weight, bias.detach() + (bias - bias.detach()) * 0.99, eps, residual)

    monkeypatch.setattr(module, "layernorm", wrong)
    monkeypatch.setattr(measure, "time_run", lambda *a, **k: pytest.fail("a wrong operator was timed"))
    path = tmp_path / "run.json"
    code, out, _ = run("layernorm", "--quick", "--device", "cpu", "--save", path)
    assert code == 1
    assert "WRONG" in out and "verdict: 1 wrong" in out
    assert [row["seconds"] for row in json.loads(path.read_text())["results"]] == [None]


def test_a_wrong_peer_gets_no_figure(monkeypatch):
    case = next(case for case in QUICK if case.op == "layernorm")
    peers = {"wrong": lambda x, weight, bias: x, "refusing": lambda x, weight, bias: 1 / 0}
    monkeypatch.setattr(measure, "peers_of", lambda *a, **k: peers)
    rows = measure.measure(case, torch.float32, CPU, batch=1, quick=True)
    assert [row.contender for row in rows] == [measure.OURS, "wrong", "refusing"]
    assert rows[0].seconds > 0 and rows[1].seconds is rows[2].seconds is None
    assert "differs" in rows[1].note and "ZeroDivisionError" in rows[2].note


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.op)
def test_every_operator_is_measured_with_its_peers(case, monkeypatch):
    monkeypatch.setattr(measure, "time_run", lambda run, device, quick: (run(), [1.0, 1.0])[1])
    rows = measure.measure(case, torch.float32, CPU, batch=1, modes=("forward", "backward"), quick=True, compiled=False)
    timed = {(row.contender, row.mode) for row in rows if row.seconds is not None}
    for mode in ("forward", "backward"):
        assert (measure.OURS, mode) in timed and ("eager", mode) in timed


@pytest.mark.parametrize(
    "case",
    (
        Attention("", 2, 20, 16, bias=True),
        Window("", 14, 32, 2, 7, 3),
        Window("", 16, 32, 2, 8, 4, cosine=True),
        LayerNorm("", 5, 64, residual=True),
    ),
    ids=str,
)
def test_peers_compute_the_same(case, monkeypatch):
    monkeypatch.setattr(measure, "time_run", lambda run, device, quick: [1.0, 1.0])
    monkeypatch.setattr(measure, "PEER_TOLERANCE", 1e-5)
    rows = measure.measure(case, torch.float32, CPU, batch=2, compiled=False)
    assert [row.note for row in rows if row.contender in (measure.OURS, "eager", "SDPA math", "SDPA on windows")] == [
        ""
    ] * (3 if case.op != "layernorm" and not getattr(case, "cosine", False) else 2)


def test_models_are_compared_and_timed_in_turn(run):
    code, out, err = run("models", "--model", "test_vit.r160_in1k", "--quick", "--seconds", "0.1", "--device", "cpu")
    assert code == 0, out + err
    assert "original" in out and "vitkern" in out and "MiB" in out
    assert "timed original and vitkern" in err


def test_a_wrong_model_gets_no_figure(run, monkeypatch):
    import vitkern

    def wrong(model):
        with torch.no_grad():
            model.head.bias.add_(0.1)

    monkeypatch.setattr(vitkern, "accelerate", wrong)
    code, out, _ = run("models", "--model", "test_vit.r160_in1k", "--quick", "--device", "cpu")
    assert code == 1 and "WRONG" in out


def test_time_limit_is_kept(run):
    code, _out, err = run("layernorm", "--quick", "--device", "cpu", "--minutes", "0.000001")
    assert code == 0 and "out of time: 1 of 1 cases not run" in err


# cases and counts


def test_cases_are_distinct_and_cover_the_operators():
    assert len({(case.op, str(case)) for case in CASES}) == len(CASES)
    assert {case.op for case in QUICK} == set(OPS)
    assert all(batch_for(case, gpu=False, quick=False) >= 1 for case in CASES)


def test_bytes_and_operations_are_those_of_the_layer():
    """Swin-T stage 1, batch 64, bf16: 154 MB forward; ViT-B: 4 B H N^2 D operations."""
    stage = next(case for case in CASES if case.op == "window_attention" and case.layer == "Swin-T stage 1")
    moved, flops = roofline.work(stage, 64, 2, "forward")
    assert moved == 4 * 64 * 56 * 56 * 96 * 2 and flops == 4 * 64 * 56 * 56 * 49 * 96
    vit = next(case for case in CASES if case.layer == "ViT-B/16 224")
    assert roofline.work(vit, 64, 2, "forward")[1] == 4 * 64 * 12 * 197**2 * 64
    assert roofline.work(vit, 64, 2, "backward")[1] == 2.5 * roofline.work(vit, 64, 2, "forward")[1]


def test_bound_is_the_larger_of_memory_and_arithmetic():
    peaks = roofline.PEAKS["H200"]
    stage = next(case for case in CASES if case.layer == "Swin-T stage 1" and case.op == "window_attention")
    moved, _ = roofline.work(stage, 64, 2, "forward")
    assert roofline.bound(stage, 64, torch.bfloat16, "forward", peaks) == moved / peaks.memory
    wide = next(case for case in CASES if case.layer == "ViT-H/14" and case.op == "layernorm_mlp")
    _, flops = roofline.work(wide, 64, 2, "forward")
    assert roofline.bound(wide, 64, torch.bfloat16, "forward", peaks) == flops / peaks.half
    assert roofline.peaks_of(CPU) is None
