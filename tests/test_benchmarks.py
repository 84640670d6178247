"""The benchmarks verify before they time, save what they measured, and compare runs. No figure is asserted."""

import json
import types

import pytest
import torch

from benchmarks import ceilings, command, measure, memory, results, rows, session, static, timers
from benchmarks.__main__ import LOST, main
from benchmarks.cases import CASES, OPS, QUICK, batch_for, chosen
from benchmarks.rows import OURS, Row
from vitkern.lab.compiling.layer import SCORES
from vitkern.report import BadInput, is_shortage

CPU = torch.device("cpu")


@pytest.fixture
def run(capsys):
    """run(*arguments) -> (exit code, stdout, stderr)"""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def recorded(tmp_path):
    """A saved run of one quick case, made from rows that were never measured: times are 1 s."""
    path = tmp_path / "run.json"
    case = next(case for case in QUICK if case.op == "layernorm")
    row = Row("layernorm", str(case), "forward", "float32", 1, OURS, 1.0, 0.01, 9)
    results.save(path, [row], results.environment(CPU))
    return path


def _say(monkeypatch, seconds):
    """Each call is run once, and said to take so long."""

    def samples_in_turn(runs, device, quick):
        return {name: (run(), [seconds] * 5)[1] for name, run in runs.items()}

    monkeypatch.setattr(timers, "samples_in_turn", samples_in_turn)


@pytest.fixture
def fast(monkeypatch):
    """Calls are run once, and said to take 1 s; ceilings are made up: 10 GB/s and 1 TFLOP/s."""
    _say(monkeypatch, 1.0)
    monkeypatch.setattr(ceilings, "measured", lambda device, dtype, quick: ceilings.Ceilings(1e10, 1e12))


@pytest.fixture
def short(monkeypatch):
    """Calls are timed, a few times each, on two copies of the tensors."""
    for name, value in dict(BLOCK=0.0, QUICK_SECONDS=0.0, LARGEST_ROTATION=2).items():
        monkeypatch.setattr(timers, name, value)


@pytest.mark.walk(4)
def test_quick_run_of_every_operator(run, tmp_path, short):
    path = tmp_path / "run.json"
    code, out, err = run("--quick", "--mode", "forward", "backward", "--device", "cpu", "--save", path)
    assert code == 0, out + err
    assert "no GPU: the operators run in PyTorch" in out
    assert "ceilings, measured now: copy" in out and f"/{len(OPS)}] attention: ViT-S" in err
    saved = json.loads(path.read_text())
    assert saved["environment"]["versions"]["torch"] == torch.__version__
    assert saved["environment"]["last_cache"] >= 2**20
    assert set(saved["environment"]["ceilings"]["float32"]) == {"copy", "matmul"}
    ours = [row for row in saved["results"] if row["contender"] == OURS]
    assert [(row["op"], row["mode"]) for row in ours] == [(op, mode) for op in OPS for mode in ("forward", "backward")]
    assert all(row["seconds"] > 0 and row["samples"] > 1 and row["peak"] > 0 and not row["note"] for row in ours)
    assert all(row["flops"] > 0 and row["moved"] > 0 for row in ours)
    for row in ours:
        others = {r["contender"] for r in saved["results"] if (r["op"], r["mode"]) == (row["op"], row["mode"])}
        assert "eager" in others


def test_against_compares_with_a_saved_run(run, recorded, monkeypatch, fast):
    for seconds, code, said in ((1.2, 1, "SLOWER"), (1.04, 0, "same"), (0.5, 0, "faster")):
        _say(monkeypatch, seconds)
        found, out, _ = run("layernorm", "--quick", "--device", "cpu", "--against", recorded)
        assert found == code and "time now over the recorded time" in out
        assert any(f"{seconds:.2f}" in line and said in line for line in out.splitlines()), out


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
    arguments = ("layernorm", "--quick", "--mode", "forward", "backward", "--device", "cpu", "--dtype", "bf16")
    code, out, err = run(*arguments, "--estimate", "H200")
    assert code == 0, out + err
    header = next(line for line in out.splitlines() if line.startswith("operator"))
    assert header.endswith("H200 bfloat16 at least, uncalibrated")
    figures = [line.split()[-2:] for line in out.splitlines() if line.startswith("layernorm ")]
    assert len(figures) == 2 and all(float(value) > 0 and unit == "us" for value, unit in figures)
    assert figures[0] != figures[1]
    code, out, err = run(*arguments, "--estimate", "H2000")
    assert (code, out) == (2, "") and "there are no figures of 'H2000'. Near: H200," in err


def test_unknown_names_list_near_matches(run):
    code, _, err = run("layer_norm")
    assert code == 2 and "Near: layernorm" in err and err.count("\n") == 1
    code, _, err = run("attention", "--case", "ViT-B/17 224")
    assert code == 2 and "no case is called 'ViT-B/17 224'. Near: ViT-B/16 224" in err and err.count("\n") == 1
    code, _, err = run("models", "--model", "swin_tiny_patch4_window8_224")
    assert code == 2 and "swin_tiny_patch4_window7_224" in err
    code, _, err = run("models", "--model", "deit_tiny_patch16_224:block.0", "--quick", "--device", "cpu")
    assert code == 2 and "no block 'block.0'. Near: blocks.0" in err


def test_a_batch_of_nothing_is_bad_input(run):
    code, _, err = run("layernorm", "--quick", "--batch", "0")
    assert code == 2 and "--batch: got '0'; expected a whole number of 1 or more" in err


@pytest.mark.parametrize(
    "arguments, name",
    [
        ((), "operators-fp32"),
        (("attention", "layernorm", "--mode", "forward", "backward"), "attention-layernorm-fp32-forward-backward"),
        (("--quick",), "operators-fp32-quick"),
        (("models", "--model", "vit*"), "models-fp32-part"),
        (("--case", "ViT-S"), "operators-fp32-part"),
    ],
)
def test_a_part_does_not_replace_the_record_of_the_whole(arguments, name):
    found = command.path_of(command.parser().parse_args([*arguments, "--save", "auto"]), CPU, "fp32")
    assert found == results.automatic_path(CPU, name) and found.is_relative_to(results.FOLDER)


def test_cases_are_chosen_by_part_and_by_glob(run):
    code, out, _ = run("window_attention", "--case", "swin-t stage 1", "*w24*", "--list")
    assert code == 0 and len(out.splitlines()) == 2 + 3
    assert run("--list")[1].count("\n") == len(CASES)
    with pytest.raises(BadInput):
        chosen(["ViT-B/16"], tuple(case for case in CASES if case.op == "layernorm"))


@pytest.mark.parametrize("broken", ("output", "gradient"))
def test_a_wrong_operator_gets_no_figure(run, monkeypatch, tmp_path, broken):
    from vitkern.ops import layernorm as module

    right = module.layernorm

    def wrong(x, weight, bias, eps, residual=None):
        if broken == "output":
            return right(x, weight, bias, eps * 1e4, residual)
        return right(x, weight, bias.detach() + (bias - bias.detach()) * 0.99, eps, residual)

    monkeypatch.setattr(module, "layernorm", wrong)
    monkeypatch.setattr(ceilings, "measured", lambda device, dtype, quick: ceilings.Ceilings(1e10, 1e12))
    monkeypatch.setattr(timers, "samples_in_turn", lambda *a, **k: pytest.fail("a wrong operator was timed"))
    path = tmp_path / "run.json"
    code, out, _ = run("layernorm", "--quick", "--device", "cpu", "--save", path)
    assert code == 1
    assert "WRONG" in out and "verdict: 1 wrong" in out
    assert [row["seconds"] for row in json.loads(path.read_text())["results"]] == [None]


def test_a_wrong_peer_is_marked_and_one_that_refuses_says_why(run, monkeypatch, fast):
    from benchmarks import peers

    wrong = {"wrong": lambda x, weight, bias: x + 0 * (weight.sum() + bias.sum())}
    wrong |= {"nan": lambda x, weight, bias: x * weight * bias * float("nan"), "refusing": lambda **inputs: 1 / 0}
    monkeypatch.setattr(peers, "peers_of", lambda *a, **k: wrong)
    case = next(case for case in QUICK if case.op == "layernorm")
    found = measure.measure(case, torch.float32, CPU, batch=1, quick=True)
    assert [row.contender for row in found] == [OURS, "wrong", "nan", "refusing"]
    assert found[0].counts and not any(row.counts for row in found[1:])
    assert found[1].seconds == 1.0 and found[1].note.startswith("WRONG: result 0 differs by")
    assert found[2].note == "WRONG: result 0 is not finite"
    assert found[3].seconds is None and "ZeroDivisionError" in found[3].note
    assert rows.peers_of_row(found[0], found) == []
    code, out, _ = run("layernorm", "--quick", "--device", "cpu")
    assert code == 0 and "marked: wrong (layernorm, first at ViT-S 197 x C384 forward): WRONG: result 0" in out
    assert "no figure for refusing" in out


def test_what_is_compiled_can_run_its_backward_again(monkeypatch, fast):
    """torch.compile gives the memory of saved tensors away unless it is told not to."""
    from benchmarks import peers
    from benchmarks.peers import dense

    seen = []

    def compiled(**tensors):
        seen.append(torch._functorch.config.donated_buffer)
        return dense.layernorm(**tensors, eps=1e-6)

    def samples_in_turn(runs, device, quick):
        seen.append(torch._functorch.config.donated_buffer)  # read when the backward runs, too
        return {name: [1.0] * 5 for name in runs}

    monkeypatch.setattr(peers, "peers_of", lambda *a, **k: {"torch.compile": compiled})
    monkeypatch.setattr(timers, "samples_in_turn", samples_in_turn)
    case = next(case for case in QUICK if case.op == "layernorm")
    measure.measure(case, torch.float32, CPU, batch=1, modes=("backward",), quick=True)
    assert len(seen) > 2 and not any(seen)


def test_a_wrong_gradient_of_a_peer_is_marked(monkeypatch, fast):
    from benchmarks import peers
    from benchmarks.peers import dense

    def half(x, **rest):
        return dense.layernorm((x + x.detach()) / 2, **rest, eps=1e-6)

    monkeypatch.setattr(peers, "peers_of", lambda *a, **k: {"half": half})
    case = next(case for case in QUICK if case.op == "layernorm")
    found = measure.measure(case, torch.float32, CPU, batch=1, modes=("forward", "training"), quick=True)
    assert [row.note for row in found if row.contender == "half" and row.mode == "forward"] == [""]
    assert [row.is_wrong for row in found if row.contender == "half"] == [False, True]


def test_on_a_gpu_contenders_have_the_device_to_themselves(monkeypatch):
    """One after the other, with host time and latency; one that fails while it is timed is left out."""
    groups = []

    def samples_in_turn(runs, device, quick):
        groups.append(list(runs))
        if "broken" in runs:
            raise RuntimeError("illegal memory access")
        return {name: [1.0] * 5 for name in runs}

    monkeypatch.setattr(timers, "samples_in_turn", samples_in_turn)
    monkeypatch.setattr(timers, "host_seconds", lambda run: (run(), 0.1)[1])
    monkeypatch.setattr(timers, "latency_seconds", lambda run: (run(), 0.2)[1])
    monkeypatch.setattr(measure, "peak_memory", lambda run, device: (run(), 7)[1])
    blank = Row("layernorm", "", "forward", "float32", 1, OURS, None)
    tensors = [dict(x=torch.ones(3))] * 2
    contenders = {OURS: torch.neg, "broken": torch.neg, "same": torch.neg, "other": torch.abs}
    contenders = {name: lambda x, f=function: f(x) for name, function in contenders.items()}
    found = measure._compared(QUICK[-1], blank, contenders, tensors, (), types.SimpleNamespace(type="cuda"), quick=True)
    assert groups == [[name] for name in contenders] and [row.contender for row in found] == list(contenders)
    assert (found[0].seconds, found[0].host, found[0].latency, found[0].peak) == (1.0, 0.1, 0.2, 7)
    assert found[1].seconds is None and found[1].note == "RuntimeError: illegal memory access"
    assert [row.is_wrong for row in found] == [False, False, False, True]


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is not there: calls that `gpu.run` issues take 1 ms there, issuing 3 ms here, by clocks that nothing
    else moves; returns what it was asked for."""

    class Gpu:
        now, host, waits, asked = 0.0, 0.0, [], []

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = Gpu.now

            def elapsed_time(self, other):
                return (other.at - self.at) * 1e3

        def run(self):
            Gpu.asked.append("call")
            Gpu.host += 3e-3
            Gpu.now += 1e-3

        def sleep(self, cycles):
            Gpu.waits.append(cycles)
            Gpu.now += cycles / timers.CYCLES

    found = Gpu()
    Gpu.waits.clear(), Gpu.asked.clear()
    monkeypatch.setattr(torch.cuda, "Event", Gpu.Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: None)
    monkeypatch.setattr(torch.cuda, "_sleep", found.sleep)
    monkeypatch.setattr(timers, "time", types.SimpleNamespace(perf_counter=lambda: Gpu.host))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **options: empty(1, **options))
    return found


def test_a_gpu_is_timed_by_events_that_wait_for_the_host(gpu):
    """The time of a call is the device's alone: what the wait covers does not count."""
    device = types.SimpleNamespace(type="cuda")
    found = timers.samples_in_turn(dict(a=gpu.run, b=gpu.run), device, quick=False)
    assert list(found) == ["a", "b"]
    for samples in found.values():
        assert 5 <= len(samples) <= timers.GPU_SECONDS / 6e-3 + 1 and samples == pytest.approx([1e-3] * len(samples))
    assert all(wait >= 2 * 3e-3 * timers.CYCLES for wait in gpu.waits)
    assert len(timers.samples_of(gpu.run, device, quick=True)) == 5


def test_host_time_and_latency_end_soon(gpu):
    for function in (timers.host_seconds, timers.latency_seconds):
        gpu.asked.clear()
        assert function(gpu.run) == pytest.approx(3e-3)
        assert 3e-3 * len(gpu.asked) < 2 * timers.GPU_SECONDS


def test_what_takes_too_long_on_a_gpu_is_timed_once(monkeypatch):
    monkeypatch.setattr(timers, "samples_in_turn", lambda runs, device, quick: {name: [1.0] * 5 for name in runs})
    monkeypatch.setattr(timers, "host_seconds", lambda run: 0.0)
    monkeypatch.setattr(timers, "latency_seconds", lambda run: 0.0)
    monkeypatch.setattr(measure, "peak_memory", lambda run, device: (run(), 7)[1])
    contenders = {OURS: torch.neg, "slow": lambda x: (timers.time.sleep(0.06), -x)[1]}
    contenders = {name: lambda x, f=function: f(x) for name, function in contenders.items()}
    blank = Row("layernorm", "", "forward", "float32", 1, OURS, None)
    arguments = QUICK[-1], blank, contenders, [dict(x=torch.ones(3))], (), types.SimpleNamespace(type="cuda")
    ours, slow = measure._compared(*arguments, quick=True, limit=0.05)
    assert ours.samples == 5 and slow.samples == 1 and slow.seconds >= 0.06 and slow.peak == 7


def test_operators_that_met_a_fault_say_that_pytorch_ran(monkeypatch, fast):
    from vitkern import faults

    met = [("layernorm", "the kernel could not be started"), ("attention", "another's")]
    monkeypatch.setattr(faults, "faulted", lambda device: met)
    case = next(case for case in QUICK if case.op == "layernorm")
    found = measure.measure(case, torch.float32, CPU, batch=1, quick=True, compiled=False)
    assert found[0].note == "in PyTorch: the kernel could not be started" and not found[1].note


def test_out_of_memory_skips_the_case_and_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ceilings, "measured", lambda device, dtype, quick: ceilings.Ceilings(1e10, 1e12))

    def full(case, dtype, device, images):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 120 GiB")

    monkeypatch.setattr(measure, "verify", full)
    code, out, _ = run("layernorm", "--quick", "--device", "cpu", "--save", tmp_path / "run.json")
    assert code == 0 and "layernorm: ViT-S 197 x C384 forward float32: out of memory" in out
    assert results.load(tmp_path / "run.json")["results"][0].note == "out of memory"


def test_a_batch_that_no_memory_holds_says_so(run):
    """250,000 GB of inputs: the allocation itself fails."""
    arguments = ("layernorm", "--quick", "--device", "cpu", "--no-compile", "--limit", "1e12", "--batch", 10**11)
    code, out, _ = run(*arguments)
    assert code == 0 and "layernorm: ViT-S 197 x C384 forward float32: out of memory" in out


def test_memory_that_ends_while_timing_is_no_crash(monkeypatch):
    case = next(case for case in QUICK if case.op == "layernorm")
    for error, found in ((MemoryError(), "out of memory"), (ValueError("a bug"), None)):

        def full(runs, device, quick, error=error):
            raise error

        monkeypatch.setattr(timers, "samples_in_turn", full)
        if found is None:
            with pytest.raises(ValueError, match="a bug"):
                measure.measure(case, torch.float32, CPU, batch=1, compiled=False)
            continue
        for row in measure.measure(case, torch.float32, CPU, batch=1, compiled=False):
            assert row.seconds is None and row.note == found


def test_a_cpu_runs_out_of_memory_before_the_system_does():
    with memory.bounded(CPU), pytest.raises((RuntimeError, MemoryError)) as raised:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_shortage(raised.value)
    assert not is_shortage(RuntimeError("shapes do not fit in memory order"))
    assert torch.empty(2**20).numel() == 2**20


def test_memory_that_is_there_but_not_to_be_had_is_refused(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # reserved is not yet used
    available = memory._kilobytes("/proc/meminfo", "MemAvailable:")
    if available is None:
        pytest.skip("the bound needs Linux's /proc")
    with memory.bounded(CPU), pytest.raises((RuntimeError, MemoryError)):
        torch.empty(int(available * 1024 * (1 + memory.SHARE) / 2), dtype=torch.uint8)


def test_what_takes_too_long_is_skipped(run, monkeypatch, fast):
    """ViT-S 224: 0.06 GFLOP forward, 0.15 backward."""
    monkeypatch.setattr(ceilings, "measured", lambda device, dtype, quick: ceilings.Ceilings(1e9, 0.1e9))
    arguments = ("attention", "--quick", "--device", "cpu", "--mode", "forward", "backward", "--limit", "1")
    code, out, _ = run(*arguments)
    assert code == 0 and "backward float32: skipped: 1.49 s at least here" in out
    assert "forward float32: skipped" not in out


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


# runs that go on


def recorded_cases(path):
    return [(row.op, row.mode, row.note, row.seconds) for row in results.load(path)["results"] if row.contender == OURS]


def test_a_run_goes_on_where_it_ended(run, tmp_path, monkeypatch, fast):
    path = tmp_path / "run.json"
    arguments = ("--quick", "--device", "cpu", "--save", path, "--resume")
    assert run("layernorm", *arguments)[0] == 0
    _say(monkeypatch, 2.0)
    code, _, err = run("layernorm", "sparse_attention", *arguments)
    assert code == 0 and "[1/1] sparse_attention" in err
    assert recorded_cases(path) == [("layernorm", "forward", "", 1.0), ("sparse_attention", "forward", "", 2.0)]
    monkeypatch.setattr(results, "sources", lambda: "others")
    code, _, err = run("layernorm", *arguments)
    assert code == 0 and "measured anew: other sources" in err
    assert recorded_cases(path) == [("layernorm", "forward", "", 2.0)]


def test_what_did_not_finish_is_run_again_after_the_others(run, tmp_path, monkeypatch, fast):
    path, order, right = tmp_path / "run.json", [], session.measure

    def dies(case, *arguments, **options):
        order.append(case.op)
        if len(order) == 1:
            raise KeyboardInterrupt
        return right(case, *arguments, **options)

    monkeypatch.setattr(session, "measure", dies)
    arguments = ("layernorm", "sparse_attention", "--quick", "--device", "cpu", "--save", path, "--resume")
    code, _, error = run(*arguments)
    assert code == 130 and "interrupted" in error
    assert recorded_cases(path) == [("layernorm", "forward", session.UNFINISHED, None)]
    assert run(*arguments)[0] == 0 and order == ["layernorm", "sparse_attention", "layernorm"]
    assert {row[2] for row in recorded_cases(path)} == {""}


def test_a_case_that_fails_ends_no_run(run, tmp_path, monkeypatch, fast):
    def broken(case, *arguments, **options):
        raise ValueError("a bug")

    monkeypatch.setattr(session, "measure", broken)
    code, out, err = run("layernorm", "--quick", "--device", "cpu", "--save", tmp_path / "run.json")
    assert code == 1 and "FAILED: ValueError: a bug" in out and "verdict: 1 wrong or failed" in out
    assert "Traceback" in err and recorded_cases(tmp_path / "run.json")[0][2] == "FAILED: ValueError: a bug"


def test_a_lost_gpu_ends_the_process_with_a_code_of_its_own(run, tmp_path, monkeypatch, fast):
    lost = iter((True, False))
    monkeypatch.setattr(session, "_is_alive", lambda: next(lost))
    monkeypatch.setattr(
        session, "measure", lambda case, *a, **k: [Row(case.op, str(case), "forward", "float32", 1, OURS, 1.0)]
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        results,
        "environment",
        lambda device: dict(device="", versions=dict(torch="", triton=""), threads=1, **{"nvidia-smi": ""}),
    )
    monkeypatch.setattr(static, "added", lambda row, *rest: row)
    code, _, _ = run("--quick", "--dtype", "fp32", "--save", tmp_path / "run.json")
    assert code == LOST == 3 and len(recorded_cases(tmp_path / "run.json")) == 2


def test_warming_runs_everything_once_and_times_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(timers, "samples_in_turn", lambda *a, **k: pytest.fail("it was timed"))
    monkeypatch.setattr(ceilings, "measured", lambda *a, **k: pytest.fail("it was timed"))
    code, out, _ = run("layernorm", "--quick", "--device", "cpu", "--warm", "--mode", "forward", "backward")
    assert code == 0 and "ceilings" not in out


def test_a_share_is_every_nth_case(run):
    whole = run("window_attention", "--list")[1].splitlines()
    assert run("window_attention", "--list", "--share", "1/5")[1].splitlines() == whole[1::5]
    code, _, err = run("window_attention", "--list", "--share", "5/5")
    assert code == 2 and "--share is no share: got '5/5'" in err


def test_a_recorded_run_gets_what_its_kernels_tell(run, recorded):
    pytest.importorskip("triton", reason="it compiles kernels")
    code, out, err = run("estimate", recorded, "--gpu", "H200")
    assert code == 0 and "1 rows of kernels" in out, err
    (row,) = results.load(recorded)["results"]
    assert row.seconds == 1.0 and row.padded == 0 and 0 < row.estimates["H200 bfloat16"] < 1e-4
    code, _, err = run("estimate", recorded, "--gpu", "H20")
    assert code == 2 and "Near: H200" in err


# cases and counts


def test_cases_are_distinct_and_cover_the_operators():
    assert len({(case.op, str(case)) for case in CASES}) == len(CASES)
    assert [case.op for case in QUICK] == list(OPS)
    assert all(batch_for(case, gpu=False, quick=False) >= 1 for case in CASES)


@pytest.mark.parametrize(
    "part",
    (
        "ViT-Ti", "ViT-S", "ViT-B", "ViT-L", "ViT-H", "DINOv2-g", "Swin-T stage 4", "Swin-B 384", "SwinV2-T w8",
        "SwinV2-T w16", "SwinV2-B w24", "SAM-B global", "SAM-B local", "PVT-S stage 1", "pixel ViT", "N50176", "NAT-T",
        "DiNAT-T", "HaloNet-H1", "HaloNet-26-T", "SASA", "ViTDet-B, SAM-B local", "SAM-H 64x64", "MaxViT-T*grid 7",
        "ViL-T stage 1", "ViL-T stage 2", "Twins", "DaViT", "STRec", "key mask", "learned bias",
    ),
)  # fmt: skip
def test_the_families_of_layers_are_there(part):
    assert chosen([part])


def test_widths_of_the_mlp():
    widths = {case.channels for case in CASES if case.op == "layernorm_mlp"}
    assert widths >= {96, 128, 192, 256, 384, 512, 768, 1024, 1280}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}: {case}")
def test_work_counts_both_passes_and_grows_with_the_batch(case):
    forward, backward, training = (case.work(2, 2, mode) for mode in ("forward", "backward", "training"))
    assert training == (forward.moved + backward.moved, forward.flops + backward.flops)
    assert forward.flops * 2 == case.work(4, 2, "forward").flops > 0
    assert case.work(2, 4, "forward").moved == 2 * forward.moved


def test_bytes_and_operations_are_those_of_the_layer():
    """Swin-T stage 1, batch 64, bf16: 154 MB forward; ViT-B: 4 B H N^2 D operations; PVT reads few keys."""
    stage = next(case for case in CASES if case.op == "window_attention" and case.layer == "Swin-T stage 1")
    assert stage.work(64, 2, "forward") == (4 * 64 * 56 * 56 * 96 * 2, 4 * 64 * 56 * 56 * 49 * 96)
    vit = next(case for case in CASES if case.layer == "ViT-B/16 224" and not case.bias)
    assert vit.work(64, 2, "forward") == (4 * 64 * 12 * 197 * 64 * 2, 4 * 64 * 12 * 197**2 * 64)
    assert vit.work(64, 2, "backward").flops == 2.5 * vit.work(64, 2, "forward").flops
    assert vit.work(64, 2, "backward").moved == 7 * 64 * 12 * 197 * 64 * 2
    pvt = next(case for case in CASES if case.layer == "PVT-S stage 1")
    assert pvt.work(1, 2, "forward") == (2 * (3136 + 49) * 64 * 2, 4 * 3136 * 49 * 64)


def test_the_bound_is_the_larger_of_memory_and_arithmetic():
    best = ceilings.Ceilings(copy=100.0, matmul=1000.0)
    blank = Row("layernorm", "", "forward", "float32", 1, OURS, 1.0)
    assert best.bound(blank) is None
    assert best.bound(Row(*_key(blank), 1.0, moved=500, flops=100)) == 5.0
    assert best.bound(Row(*_key(blank), 1.0, moved=500, flops=9000)) == 9.0


def _key(row):
    return row.op, row.case, row.mode, row.dtype, row.batch, row.contender


def test_ceilings_are_measured(monkeypatch):
    monkeypatch.setattr(timers, "samples_of", lambda run, device, quick: (run(), [2.0, 0.5, 9.0])[1])
    monkeypatch.setattr(ceilings, "SIDE", dict(cpu=64))
    monkeypatch.setattr(ceilings, "COPIED", dict(cpu=1024))
    assert ceilings.measured(CPU, torch.bfloat16) == (2 * 1024 / 2.0, 2 * 64**3 / 2.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}: {case}")
def test_a_case_is_verified_within_what_float64_holds(case):
    """Very long sequences by one head and fewer queries, with all their keys; every other case whole."""
    problem = case.checked(2)
    if case.op == "decomposed_attention" and not case.window:
        heads = problem.options["num_heads"]
        assert heads == case.heads or 1 <= heads <= SCORES // case.side**4
    if case.op != "attention":
        assert problem.name == case.layer
        return
    long = case.heads * case.tokens * (case.keys or case.tokens) > SCORES
    if case.tokens > 2000 and not case.keys:
        assert long
    inputs = problem.inputs(torch.Generator().manual_seed(0)) if not long or case.tokens > 40000 else None
    if inputs is not None:
        (batch, heads, queries, _), keys = inputs["q"].shape, inputs["k"].shape[2]
        assert keys == (case.keys or case.tokens) and batch * heads * queries * keys <= 2 * SCORES
        assert (heads, queries) == ((1, SCORES // keys) if long else (case.heads, case.tokens))


def test_many_images_are_verified_where_float64_has_room():
    """16 images take the kernels that 64 do, which are specialised for sizes that 16 divides."""
    stage, large = chosen(["Swin-T stage 1 56x56"])[0], chosen(["SAM-H global"])[0]
    assert [measure.verified(stage, batch, torch.bfloat16) for batch in (64, 15, 1)] == [16, 2, 1]
    assert measure.verified(stage, 64, torch.float32) == 2  # where the order of a long sum is seen
    assert measure.verified(large, 64, torch.bfloat16) == 2 and stage.scores == 3 * 3136 * 49


def test_copies_exceed_the_cache():
    tensors = dict(x=torch.zeros(1000, requires_grad=True), index=torch.zeros(10, dtype=torch.long))
    size = 4000 + 80
    copies = timers.copies_of(tensors, cache=3 * size)
    assert len(copies) == 6 and len(timers.copies_of(tensors, cache=1)) == 2
    assert len(timers.copies_of(tensors, cache=10**9)) == timers.LARGEST_ROTATION
    assert len({copy["x"].data_ptr() for copy in copies}) == 6 and copies[0]["x"] is tensors["x"]
    assert all(copy["x"].is_leaf and copy["x"].requires_grad for copy in copies)
    calls = []
    run = timers.in_turn([lambda i=i: calls.append(i) for i in range(3)])
    for _ in range(7):
        run()
    assert calls == [0, 1, 2, 0, 1, 2, 0]


def test_samples_are_taken_in_turn(monkeypatch):
    """A clock that only the calls move: "slow" by 8 ms, "quick" by 1 ms; blocks are of 5 ms at least."""
    now, order = [0.0], []

    def call(name, seconds):
        order.append(name)
        now[0] += seconds

    monkeypatch.setattr(timers, "clock", lambda: lambda: now[0])
    runs = dict(slow=lambda: call("slow", 8e-3), quick=lambda: call("quick", 1e-3))
    found = timers.samples_in_turn(runs, CPU, quick=True)
    assert found["slow"] == pytest.approx([8e-3] * 8) and found["quick"] == pytest.approx([1e-3] * 8)
    assert order[:4] == ["slow", "slow", "quick", "quick"]  # how long each takes
    assert order[4:16] == ["slow", *["quick"] * 5, *["quick"] * 5, "slow"]
    assert len(timers.samples_of(lambda: call("", 1.0), CPU, quick=True)) == 5


def test_one_thread_is_timed_by_the_processor(monkeypatch):
    """A sleep takes none of its time."""
    for threads, slept in ((1, False), (2, True)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert (timers._block(lambda: timers.time.sleep(0.05), 1) > 0.04) == slept
        assert results.environment(CPU)["clock"] == ("perf_counter" if slept else "process_time")


@pytest.mark.parametrize("mode", rows.MODES)
def test_kernels_multiply_at_least_what_is_useful(mode):
    """197 tokens in tiles of 64 queries and 256 keys: 1.69 times the work, forward."""
    pytest.importorskip("triton", reason="it compiles kernels")
    case = next(case for case in QUICK if case.op == "attention")
    found = static.figures_of(case, torch.bfloat16, 2, mode, "H200")
    useful = case.work(2, 2, mode).flops
    assert 1.0 < found.flops / useful < 3.0 and found.seconds > 0
    if mode == "forward":
        assert found.flops == 4 * 2 * 6 * 64 * 256 * 256


def test_products_that_are_left_to_cublas_count():
    pytest.importorskip("triton", reason="it compiles kernels")
    case = next(case for case in CASES if case.op == "layernorm_mlp" and case.channels == 768)
    assert static.figures_of(case, torch.bfloat16, 2, "forward", "H200").flops == case.work(2, 2, "forward").flops


def test_an_operator_without_a_kernel_has_no_estimate(monkeypatch):
    monkeypatch.setattr(static, "kernels_of", lambda *arguments: ([], 10))
    assert static.figures_of(QUICK[0], torch.bfloat16, 1, "forward", "H200") is None
