"""Tuning: which choices a case asks, other answers for a block, the search, and the rows it prints."""

import pytest
import torch

import vitkern.kernels
from benchmarks import configured, search, timers, tune
from benchmarks.__main__ import main
from benchmarks.cases import CASES, chosen
from benchmarks.configured import Call, asked, config_of, neighbours, overridden
from benchmarks.search import Task, Trial
from vitkern.kernels.machine.blocks import Config
from vitkern.kernels.machine.choices import choices
from vitkern.kernels.rows.blocks import layernorm_config, matmul_config, pointwise_config
from vitkern.kernels.tile.blocks import short_forward_config
from vitkern.lab.compiling import workers

pytest.importorskip("triton", reason="kernels/ is imported with the kernels")

TILE_OF_QUERIES = Call(
    "local_tile", (("block", 1), ("halo", 3), ("ranks", 56), ("wraps", False), ("keys", False), ("arch", 90))
)
STAGE = chosen(["Swin-T stage 4"], tuple(case for case in CASES if case.op == "window_attention"))[0]
SHORT = Call("short_forward_config", (("rows", 64), ("columns", 64), ("itemsize", 2), ("arch", 90)))
PRESENT = short_forward_config(64, 64, 2, 90)


@pytest.fixture
def run(capsys):
    """run(*arguments) -> (exit code, stdout, stderr)"""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def task(**fields):
    defaults = dict(
        call=SHORT, present=PRESENT, case=STAGE, dtype=torch.bfloat16, batch=2, mode="forward", arch=90, gpu="H200"
    )
    return Task(**(defaults | fields))


@pytest.fixture
def compiler(monkeypatch):
    """compiler(function): in place of processes that compile, ``function(config)`` gives kernels or an exception."""

    def install(function):
        def cells(wanted, jobs, compiled):
            for cell in wanted:
                found = function(cell[0].config)
                failed = str(found) if isinstance(found, Exception) else ""
                yield workers.Done(cell, [] if failed else found, failed, 0.0)

        monkeypatch.setattr(workers, "compile_cells", cells)

    return install


class Kernel:
    """A compiled kernel of which the search asks this much; ``size`` makes its bound."""

    def __init__(self, config, size, problems=(), programs=4):
        self.config, self.size, self._problems = config, size, list(problems)
        self.machine = type("Machine", (), dict(registers=100))()
        self.programs, self.shared = programs, 1024

    def __eq__(self, other):
        return self.config == other.config

    def problems(self):
        return self._problems


@pytest.fixture
def bounds(monkeypatch):
    """The bound of a `Kernel` is its size in microseconds."""
    from vitkern.lab.compiling import estimate

    monkeypatch.setattr(estimate, "bound", lambda kernel, gpu: estimate.Bound(kernel.size * 1e-6, "issue", 0.0))


# what is asked, and other answers


def test_a_case_asks_for_its_kernels_configurations():
    assert asked(STAGE, torch.bfloat16, 2, "forward", 90) == {SHORT: PRESENT}
    backward = asked(STAGE, torch.bfloat16, 2, "backward", 90)
    assert [call.function for call in backward] == ["short_backward_config"]
    assert set(asked(STAGE, torch.bfloat16, 2, "training", 90)) == {SHORT, *backward}
    assert dict(next(iter(backward)).arguments)["head_dim"] == 32


def test_arguments_by_position_and_by_name_are_one_call():
    choices = {SHORT: PRESENT._replace(num_warps=1)}
    with overridden(choices):
        by_position = short_forward_config(64, 64, 2, 90)
        by_name = short_forward_config(rows=64, columns=64, arch=90, itemsize=2)
    assert by_position == by_name == choices[SHORT]


def test_other_configurations_reach_the_kernel_and_no_other():
    other = PRESENT._replace(block_m=16, num_warps=2)
    with overridden({SHORT: other}):
        assert asked(STAGE, torch.bfloat16, 2, "forward", 90) == {SHORT: other}
        assert asked(STAGE, torch.bfloat16, 2, "forward", 80) != {SHORT: other}
        assert short_forward_config(64, 64, 2, 90) == other
    assert short_forward_config(64, 64, 2, 90) == PRESENT
    with pytest.raises(RuntimeError), overridden({SHORT: other}):
        raise RuntimeError
    assert short_forward_config(64, 64, 2, 90) == PRESENT


def test_the_launch_gets_the_other_configuration():
    from benchmarks.static import kernels_of

    with overridden({SHORT: PRESENT._replace(num_warps=8)}):
        kernels, _ = kernels_of(STAGE, torch.bfloat16, 2, "forward", 90)
    assert {kernel.num_warps for kernel in kernels if kernel.name == "_short_fwd"} == {8}


def test_results_that_hold_more_than_a_configuration_keep_the_rest():
    with overridden({Call("layernorm_config", (("channels", 96), ("arch", 90))): Config(1, 128, 2, 1)}):
        assert layernorm_config(96, 90) == (128, Config(1, 128, 2, 1))
    call = Call("matmul_config", (("itemsize", 2), ("arch", 90), ("heavy", False)))
    with overridden({call: Config(128, 32, 4, 2)}):
        assert matmul_config(2, 90) == (Config(128, 32, 4, 2), 64)
        assert matmul_config(2, 90, heavy=True)[0].block_n == 64


def test_blocks_within_blocks_answer_for_both():
    warps, rows = PRESENT._replace(num_warps=2), PRESENT._replace(block_m=16)
    with overridden({SHORT: warps}):
        with overridden({Call("pointwise_config", (("arch", 90),)): rows}):
            assert (short_forward_config(64, 64, 2, 90), pointwise_config(90)) == (warps, rows)
        assert pointwise_config(90) != rows


def test_free_fields_are_those_of_choices_of_blocks():
    vitkern.kernels.modules()
    assert all(name in choices() and configured.gives_blocks(name) for name in (*configured.FREE, configured.TILE))


def test_neighbours_are_one_step_away():
    found = neighbours(SHORT, Config(64, 64, 4, 2))
    assert found == [
        Config(32, 64, 4, 2), Config(64, 64, 2, 2), Config(64, 64, 8, 2), Config(64, 64, 4, 1), Config(64, 64, 4, 3)
    ]  # fmt: skip
    stream = Call("stream_forward_config", ())
    assert Config(128, 64, 4, 3) in neighbours(stream, Config(64, 64, 4, 3))
    assert all(config.block_m >= 16 and config.block_n >= 16 for config in neighbours(stream, Config(16, 16, 1, 1)))
    assert {config.block_m for config in neighbours(Call("a_new_config", ()), Config(64, 64, 4, 2))} == {64}


# the search


def test_search_drops_what_fails_spills_or_changes_nothing(compiler, bounds):
    def kernels(config):
        if config.num_warps == 2:
            return RuntimeError("ptxas died")
        if config.num_warps == 8:
            return [Kernel(config, 1, ["spills: 8 loads, 8 stores, 4 bytes of stack"])]
        if config.block_m == 32:
            return [Kernel(PRESENT, 1)]
        if config.num_stages == 3:
            return [Kernel(config, 1, programs=0)]
        return [Kernel(config, 10 * config.num_stages)]

    compiler(kernels)
    found = search.search(task(), rounds=1, jobs=1, timed=False)
    assert [trial.config for trial in found[:2]] == [PRESENT._replace(num_stages=stages) for stages in (1, 2)]
    assert [trial.seconds for trial in found[:2]] == pytest.approx([1e-5, 2e-5])
    assert {trial.note for trial in found[2:]} == {
        "dropped: not one program fits a multiprocessor",
        "dropped: ptxas died", "dropped: spills: 8 loads, 8 stores, 4 bytes of stack", "dropped: it changes nothing"
    }  # fmt: skip


def test_the_present_configuration_stays_whatever_it_is(compiler, bounds):
    compiler(lambda config: [Kernel(config, 1, ["spills: 2 loads"] if config == PRESENT else [])])
    found = search.search(task(), rounds=1, jobs=1, timed=False)
    assert next(trial for trial in found if trial.config == PRESENT).seconds is not None


def test_further_rounds_go_on_from_the_best(compiler, bounds):
    compiler(lambda config: [Kernel(config, 100 - config.num_stages)])
    stages = [search.search(task(), rounds=rounds, jobs=1, timed=False)[0].config.num_stages for rounds in (1, 2, 3, 9)]
    assert stages == [3, 4, 5, 5]


def test_candidates_are_verified_then_timed_under_their_configuration(compiler, bounds, monkeypatch):
    seen = []

    def verify(case, dtype, device, images):
        assert images == 2
        config = short_forward_config(64, 64, 2, 90)
        seen.append(config)
        if config.num_warps == 8:
            raise RuntimeError("out of resource: shared memory")
        return ["out is off by 1"] if config.num_stages == 3 else []

    compiler(lambda config: [Kernel(config, 1)])
    monkeypatch.setattr(search, "verify", verify)
    monkeypatch.setattr(search, "_median", lambda task, device: short_forward_config(64, 64, 2, 90).num_warps)
    found = {trial.config: trial for trial in search.search(task(), rounds=1, jobs=1, timed=True)}
    assert set(seen) == set(found) and found[PRESENT].seconds == 4
    assert found[PRESENT._replace(num_warps=2)].seconds == 2
    assert found[PRESENT._replace(num_stages=3)].note == "dropped, WRONG: out is off by 1"
    assert "shared memory" in found[PRESENT._replace(num_warps=8)].note


def test_timing_runs_the_case(monkeypatch):
    monkeypatch.setattr(timers, "last_cache", lambda device: 1)
    monkeypatch.setattr(timers, "samples_of", lambda run, device, quick: (run(), [3.0, 1.0, 2.0])[1])
    for mode in ("forward", "backward"):
        assert search._median(task(dtype=torch.float32, mode=mode), torch.device("cpu")) == 2.0


# the command


def test_rows_are_python_for_the_function():
    trials = [Trial(PRESENT._replace(num_warps=8), 1e-5), Trial(PRESENT, 2e-5), Trial(Config(1, 1, 1, 1), None)]
    comment, *code = tune.row_of(task(), trials, timed=True)
    assert comment.startswith(f"# {SHORT}: 10 us, 2.00x over Config(64, 64, 4, 2): {STAGE} forward bfloat16")
    space = dict(rows=64, columns=64, itemsize=2, arch=90, Config=Config)
    body = "\n".join("    " + line for line in code)
    exec(f"def answer(rows, columns, itemsize, arch):\n{body}", space)
    assert space["answer"](64, 64, 2, 90) == Config(64, 64, 8, 2) and space["answer"](64, 64, 2, 80) is None
    assert tune.UNTIMED in tune.row_of(task(), trials, timed=False)[0]
    pair = task(call=Call("layernorm_config", (("channels", 96), ("arch", 90))), present=(128, PRESENT))
    assert tune.row_of(pair, trials, timed=True)[-1] == "    return 128, Config(64, 64, 8, 2)"
    tile = task(call=TILE_OF_QUERIES, present=8)
    assert tune.row_of(tile, [Trial(4, 1e-5), Trial(8, 2e-5)], timed=True)[-1] == "    return 4"


def test_a_small_gain_is_no_reason_for_a_row():
    trials = [Trial(PRESENT._replace(num_warps=8), 0.97e-5), Trial(PRESENT, 1e-5)]
    for found in (trials, [Trial(PRESENT, None, note="dropped")]):
        assert tune.row_of(task(), found, timed=True) == [
            f"# {SHORT}: nothing better than Config(64, 64, 4, 2) by 5%: {task()}"
        ]


def test_tune_without_a_gpu_ranks_by_the_estimate(run, compiler, bounds, tmp_path):
    compiler(lambda config: [Kernel(config, 10 * config.num_stages)])
    arguments = ("tune", "window_attention", "--case", "Swin-T stage 4", "--arch", "sm_90")
    code, out, err = run(*arguments, "--save", tmp_path / "rows.txt")
    assert code == 0, err
    assert out.startswith("H200, sm_90: uncalibrated estimate, nothing was timed")
    lines = [line for line in out.splitlines() if line.startswith("Config(")]
    assert lines[0].startswith("Config(64, 64, 4, 1)  ") and lines[1].split()[-1] == "present"
    assert "for kernels/*/blocks.py:" in out and "return Config(64, 64, 4, 1)" in (tmp_path / "rows.txt").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would be timed on")
def test_tune_without_a_gpu_or_an_architecture_is_bad_input(run):
    code, out, err = run("tune", "attention")
    assert (code, out) == (2, "") and "torch sees no GPU to time on. --arch sm_90 ranks" in err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("window_atention", "--arch", "sm_90"), "no operator is called 'window_atention'. Near: window_attention"),
        (("attention", "--arch", "sm90"), "unknown architecture 'sm90'. Near: sm_90"),
        (
            ("attention", "--arch", "sm_90", "--case", "ViT-S/16 225"),
            "no case is called 'ViT-S/16 225'. Near: ViT-S/16",
        ),
        (("attention", "--arch", "sm_90", "--rounds", "0"), "--rounds: got '0'; expected a whole number of 1 or more"),
    ],
)
def test_bad_input_is_one_line(run, arguments, said):
    code, out, err = run("tune", *arguments)
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1


def test_an_operator_that_starts_no_kernel_has_nothing_to_tune(run, monkeypatch):
    monkeypatch.setattr(configured, "asked", lambda *arguments: {})
    code, _, err = run("tune", "neighborhood_attention", "--arch", "sm_90")
    assert code == 2 and "neighborhood_attention starts no kernel in bf16: nothing is to tune" in err


def test_candidates_compile_in_a_process_of_their_own():
    """The one test that compiles: the present configuration, and one with half the rows."""
    pytest.importorskip("triton", reason="it compiles kernels")
    wanted = [search.Compilation(task(), config) for config in (PRESENT, PRESENT._replace(block_m=32))]
    done = search._compiled(wanted, 1)
    kernels = {one.config: {k.name: k for k in found.kernels}["_short_fwd"] for one, found in done.items()}
    assert "BLOCK_M=64" in kernels[PRESENT].constants
    assert "BLOCK_M=32" in kernels[PRESENT._replace(block_m=32)].constants
    assert config_of((1, PRESENT)) is PRESENT


# local attention


LOCAL = [case for case in CASES if case.operator == "local_attention"]


@pytest.mark.parametrize("case", LOCAL, ids=str)
def test_every_local_layer_can_be_tuned(case):
    """Its loop's blocks, and the tile where each token has a window of its own."""
    found = asked(case, torch.bfloat16, 1, "training", 90)
    functions = {call.function for call in found if neighbours(call, config_of(found[call]))}
    assert "ragged_config" in functions
    assert ("local_tile" in functions) == (case.op not in ("decomposed_attention", "local_attention", "vil_attention"))


def test_tiles_of_neighbours_double_and_halve():
    def near(tile, **changes):
        return neighbours(Call("local_tile", tuple((dict(TILE_OF_QUERIES.arguments) | changes).items())), tile)

    assert near(8) == [4, 16] and near(8, ranks=14) == [4] and near(1) == [2] and near(8, wraps=True, ranks=24) == [4]
    assert near(8, block=8, keys=True) == [4] and near(4, block=8, keys=True) == [8]
    assert near(8, block=8) == [] and near(7, block=7, halo=7, keys=True) == [] and near(9, block=9, keys=True) == []


def test_another_tile_reaches_the_kernel():
    """Neighbours of 28 x 28 tokens, compiled for a GPU: another tile is another kernel with as many programs."""
    from benchmarks.static import kernels_of

    case, compiled = chosen(["NAT-T stage 2"], tuple(LOCAL))[0], {}
    queries = next(call for call in asked(case, torch.bfloat16, 1, "forward", 90) if call.function == "local_tile")
    for tile in (4, 8):
        with overridden({queries: tile}):
            ((kernel,), _) = kernels_of(case, torch.bfloat16, 1, "forward", 90)
        compiled[tile] = kernel
    assert compiled[4].key != compiled[8].key
    assert compiled[4].work.programs == 7 * 7 * 4 and compiled[8].work.programs == 4 * 4 * 4


def test_a_search_among_tiles(compiler, bounds):
    compiler(lambda tile: [Kernel(tile, tile)])
    found = search.search(task(call=TILE_OF_QUERIES, present=8), rounds=2, jobs=1, timed=False)
    assert [trial.config for trial in found] == [2, 4, 8, 16]


def test_with_several_jobs_all_calls_compile_at_once(run, compiler, bounds, monkeypatch):
    asked = []
    compiler(lambda config: [Kernel(config, 10)])
    cells = workers.compile_cells

    def counted(wanted, jobs, compiled):
        asked.append((len(wanted), jobs))
        return cells(wanted, jobs, compiled)

    monkeypatch.setattr(workers, "compile_cells", counted)
    arguments = ("tune", "window_attention", "layernorm", "--quick", "--arch", "sm_90", "--mode", "forward", "backward")
    code, out, _ = run(*arguments, "--jobs", "3")
    assert code == 0 and len(asked) == 1 and asked[0][1] == 3
    assert {"short_forward_config", "short_backward_config", "layernorm_config", "layernorm_backward_config"} <= {
        line.split("(")[0] for line in out.splitlines()
    }


def test_tuning_goes_on_where_it_ended(run, compiler, bounds, tmp_path):
    compiler(lambda config: [Kernel(config, 10)])
    path = tmp_path / "rows.txt"
    arguments = ("tune", "window_attention", "--case", "Swin-T stage 4", "--arch", "sm_90", "--save", path, "--resume")
    assert run(*arguments)[0] == 0
    first = path.read_text()
    assert first.startswith(f"# {SHORT}: nothing better")
    code, _, err = run(*arguments, "--mode", "forward", "backward")
    assert code == 0 and path.read_text().startswith(first) and "short_backward_config" in path.read_text()
    assert f"{SHORT}: Swin-T" not in err
