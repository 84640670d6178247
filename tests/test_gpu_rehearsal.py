"""What runs on a GPU, tried on one that is a CPU (`fake_cuda`), before any is lent: the tests and the benchmarks are
the same code. Only the kernels are not there: where they are asked for, PyTorch runs."""

import contextlib

import fake_cuda
import pytest
import torch
from test_benchmark_plan import loaded

from benchmarks import ceilings, measure, results, timers
from benchmarks.__main__ import main
from vitkern import dispatch
from vitkern.interop.capture import CudaBackend

pytest.importorskip("triton", reason="tests on a GPU need Triton")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(dispatch, "use_backend", lambda name: contextlib.nullcontext())
    monkeypatch.setattr(CudaBackend, "device_type", "cpu")
    monkeypatch.setattr(dispatch, "is_eager", lambda *tensors: True)  # although the GPU is a mode
    with fake_cuda.installed(monkeypatch):
        yield monkeypatch


OP = "rmsnorm"
OF_AN_OPERATOR = (
    "test_mean_errors_stay_near_the_ideal", "test_runs_are_equal_to_the_bit", "test_every_element_is_written",
    "test_cuda_graph_replays_on_new_inputs", "test_runs_on_the_current_stream",
)  # fmt: skip


@pytest.mark.parametrize("name", OF_AN_OPERATOR)
def test_the_tests_of_an_operator_run(gpu, name):
    tests = loaded("test_ops_gpu")
    gpu.setattr(tests, "SHARE", tests.MOST[OP].batch)  # one sample
    getattr(tests, name)(OP)


def test_every_problem_meets_float64(gpu):
    """In float32; on a GPU in all dtypes."""
    tests = loaded("test_ops_gpu")
    for index in range(len(tests.PROBLEMS)):
        tests.test_meets_float64(index, torch.float32)


def test_a_graph_that_keeps_its_first_inputs_is_found(gpu):
    tests = loaded("test_ops_gpu")
    gpu.setattr(tests, "SHARE", tests.MOST[OP].batch)
    gpu.setattr(fake_cuda.Tape, "replay", lambda tape: None)
    with pytest.raises(AssertionError):
        tests.test_cuda_graph_replays_on_new_inputs(OP)


VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"
TWO_BLOCKS = {VIT: dict(depth=2), SWIN: dict(depths=(1, 1), embed_dim=16, num_heads=(1, 2))}


@pytest.fixture
def of_graphs(gpu):
    """The tests of CUDA graphs, of models of two blocks."""
    pytest.importorskip("timm", reason="timm is not installed")
    tests = loaded("test_graphs_gpu")
    built = tests.built
    gpu.setattr(tests, "built", lambda name: built(name, **TWO_BLOCKS[name]))
    return tests


@pytest.mark.parametrize("name, autocast", ((VIT, True), (SWIN, False)))
def test_the_tests_of_replayed_models_run(of_graphs, name, autocast):
    of_graphs.test_a_replay_is_the_forward_to_the_bit(name, autocast)


def test_the_tests_of_streams_run(of_graphs):
    of_graphs.test_streams_and_dropped_graphs_do_not_mix()


def test_the_tests_of_what_cannot_be_captured_run(of_graphs):
    of_graphs.test_control_flow_on_values_runs_plain()


def test_the_tests_of_a_captured_training_step_run(of_graphs):
    of_graphs.test_a_captured_training_step_is_the_step_to_the_bit(SWIN)


def test_the_benchmarks_run_and_record_the_machine(gpu, tmp_path, capsys):
    clock = iter(range(10**6))
    gpu.setattr(fake_cuda.Event, "clock", lambda self: next(clock) * 1e-3)  # a millisecond between two events
    gpu.setattr(timers, "COLD", 2**10)
    gpu.setattr(ceilings, "SIDE", dict(cuda=256))
    gpu.setattr(ceilings, "COPIED", dict(cuda=2**20))
    timers.last_cache.cache_clear()
    path = tmp_path / "operators.json"
    options = ("--quick", "--dtype", "fp32", "--mode", "forward", "backward", "--no-compile")
    assert main([OP, *options, "--save", str(path)]) == 0, capsys.readouterr()
    timers.last_cache.cache_clear()
    found = results.load(path)
    assert found["environment"]["device"] == fake_cuda.NAME and found["environment"]["clock"] == "CUDA events"
    assert {"torch", "triton"} <= set(found["environment"]["versions"]) and "nvidia-smi" in found["environment"]
    ours = [row for row in found["results"] if row.contender == measure.OURS]
    assert {row.mode for row in ours} == {"forward", "backward"}
    assert all(row.seconds == pytest.approx(1e-3) and row.host > 0 and row.latency > 0 for row in ours)
