"""Each rule about golden figures trips, and the command says so; damaged files and unknown names are one line."""

import dataclasses
import json

import pytest

from tests.compiler.rows import ARCH, NAME, scale_rows
from vitkern.lab import records
from vitkern.lab.compiling import compile as lab
from vitkern.lab.compiling import exceptions, figures, golden, workers
from vitkern.lab.compiling.exception import Excuse

pytestmark = pytest.mark.compiler


@pytest.fixture(scope="module")
def kernel():
    (one,) = lab.compile_launches(scale_rows, ARCH)
    return one


def _worse(kernel, **changes):
    """``kernel`` with other figures of its machine code."""
    return dataclasses.replace(kernel, machine=dataclasses.replace(kernel.machine, **changes))


def _holding(*cells):
    """A golden file with cells that have no kernels."""
    return golden.Golden(golden.installed(), {cell: golden.sealed(cell, "", {}) for cell in cells})


def test_equal_figures_pass(kernel):
    assert figures.regressions(figures.figures(kernel), figures.figures(kernel)) == []
    assert kernel.machine.loop > 20 and kernel.widest_load == 128 and kernel.work.turns == 1


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(spill_loads=3), "3 spilled accesses, golden 0"),
        (dict(stack=16), "16 bytes of stack, golden 0"),
        (dict(loads={64: 2}), "widest global load is 64 bits, golden 128"),
        (dict(loads={}), "widest global load is 0 bits, golden 128"),
        (dict(tensor={"HMMA": 4}), "no HGMMA instruction any more"),
        (dict(tensor={}), "no HGMMA instruction any more"),
    ],
    ids=str,
)
def test_what_is_worse_is_a_regression(kernel, changes, says):
    good = _worse(kernel, tensor={"HGMMA": 4})
    assert figures.regressions(figures.figures(good), figures.figures(good)) == []
    assert figures.regressions(figures.figures(_worse(good, **changes)), figures.figures(good)) == [says]


def test_registers_may_grow_by_eight(kernel):
    before = figures.figures(_worse(kernel, registers=64))
    assert figures.regressions(figures.figures(_worse(kernel, registers=72)) | dict(programs=99), before) == []
    found = figures.regressions(figures.figures(_worse(kernel, registers=73)) | dict(programs=99), before)
    assert found == ["73 registers, golden 64"]


def test_fewer_programs_on_a_multiprocessor_are_a_regression(kernel):
    before, now = (figures.figures(_worse(kernel, registers=count)) for count in (128, 129))
    assert figures.regressions(now, before) == ["3 programs on a multiprocessor, golden 4"]


@pytest.mark.parametrize("loop, fails, warns", [(105, 0, 0), (106, 0, 1), (110, 0, 1), (111, 1, 0), (90, 0, 0)])
def test_a_loop_may_grow_by_a_tenth(kernel, loop, fails, warns):
    before, now = (figures.figures(_worse(kernel, loop=count)) for count in (100, loop))
    assert (len(figures.regressions(now, before)), len(figures.drifts(now, before))) == (fails, warns)


def test_shapes_of_mfma_are_one_kind(kernel):
    before = figures.figures(_worse(kernel, tensor={"v_mfma_f32_32x32x8_bf16": 4}))
    now = figures.figures(_worse(kernel, tensor={"v_mfma_f32_16x16x16_bf16": 8}))
    assert figures.regressions(now, before) == []


def test_update_then_compare(command):
    code, out, err = command("--update")
    assert code == 0 and "[1/1] rows sm_80" in err
    assert "verdict: passed: 1 cells (1 compiled, 0 recorded), 1 kernels (1 distinct)" in out
    assert "uncalibrated" in out and "A100" in out
    path = golden.path_of(golden.minor())
    written = path.read_bytes()
    assert set(json.loads(written)["cells"]) == {NAME}
    assert command()[0] == 0
    assert "passed" in command()[1] and records.read("compile")["passed"]
    assert command("--update")[0] == 0 and path.read_bytes() == written
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "planted, says",
    [
        (
            dict(columns=4100),
            ["! problem: _scale w4 s1: widest global load is ", "! regression: _scale: widest global"],
        ),
        (dict(times=6), ["! regression: _scale: ", " instructions in the loop, golden "]),
        (dict(block=16384, columns=16384, num_warps=1), ["! regression: _scale: ", " registers, golden "]),
    ],
    ids=("narrower load", "longer loop", "more registers"),
)
def test_a_planted_regression_fails_the_command(command, planted, says):
    assert command("--update")[0] == 0
    code, out, _ = command(run=lambda: scale_rows(**planted))
    assert code == 1 and "verdict: FAILED" in out
    assert all(text in out for text in says), out
    assert not records.read("compile")["passed"]


def test_a_kernel_without_golden_figures_is_unlisted(command):
    assert command("--update")[0] == 0
    path = golden.path_of(golden.minor())
    path.write_text(path.read_text().replace("_scale", "_other"))
    code, out, _ = command()
    assert code == 1 and "2 unlisted" in out
    assert "! unlisted: _scale has no golden figures" in out
    assert "! unlisted: _other has golden figures, and is not launched" in out


def test_without_a_golden_file_problems_are_checked(command):
    code, out, _ = command()
    assert code == 0 and f"no golden figures for Triton {golden.minor()}" in out
    code, out, _ = command(run=lambda: scale_rows(columns=4100))
    assert code == 1 and "1 problems" in out


def test_a_file_of_one_architecture_says_nothing_of_the_others(command):
    golden.store(_holding(("else", 90)))
    code, out, _ = command()
    assert code == 0 and f"0 unrecorded; no golden figures for Triton {golden.minor()} of sm_80; " in out
    code, out, _ = command("--arch", "sm_80")
    assert code == 1 and "1 unlisted" in out and "! unlisted: _scale has no golden figures" in out
    golden.store(_holding(("else", 80), ("else", 90)))
    assert command("--arch", "sm_80", "--update")[0] == 0  # all launches of it: what is launched no more is gone
    found = golden.load(golden.minor())
    assert set(found.entries) == {("else", 90), (NAME, ARCH)} and found.architectures == {80, 90}


def test_a_part_of_the_matrix_is_not_recorded_and_updates_its_own(command):
    golden.store(_holding(("else", 80)))
    assert command("row", "--arch", "sm_80", "--update")[0] == 0
    assert set(golden.load(golden.minor()).entries) == {("else", 80), (NAME, ARCH)}
    assert records.read("compile") is None
    assert command("--update")[0] == 0
    assert set(golden.load(golden.minor()).entries) == {(NAME, ARCH)}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"schema": 2', '"schema": 1'),
        lambda text: text.replace(f'"triton": "{golden.installed()}"', '"triton": "1.0"'),
        lambda text: text.replace('"seal"', '"zeal"'),
        lambda text: text.replace('"sm_80"', '"sm_70"'),
        lambda text: text.replace('"registers": ', '"registers": "many", "x": '),
        lambda text: text.replace('"loop": ', '"pool": '),
        lambda text: "\0",
    ],
)
def test_a_damaged_golden_file_is_one_line(command, spoil):
    assert command("--update")[0] == 0
    path = golden.path_of(golden.minor())
    path.write_text(spoil(path.read_text()))
    code, out, err = command()
    assert (code, out, err.count("\n")) == (2, "", 1) and str(path) in err and "damaged" in err


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["colums"], "no launch is called 'colums'"),
        (["row", "colums"], "no launch is called 'colums'"),
        (["--arch", "sm_75"], "unknown architecture: got 'sm_75'; expected sm_80, sm_90"),
        (["--jobs", "-1"], "--jobs is negative"),
    ],
)
def test_bad_input_is_one_line(command, arguments, says):
    code, out, err = command(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and says in err


def test_exceptions_excuse_and_are_reported_when_not_needed(kernel, monkeypatch):
    spilling = _worse(kernel, spill_loads=3)
    cell, reason = (NAME, "_scale", ARCH), "a reason that says why"

    def listed(**excuses):
        monkeypatch.setattr(exceptions, "merged", lambda field: {cell: Excuse(**excuses)})

    assert exceptions.unexcused(NAME, ARCH, [spilling]) == ["_scale w4 s1: spills: 3 accesses, 0 bytes of stack"]
    listed(begins="spills:", reason=reason)
    assert exceptions.unexcused(NAME, ARCH, [spilling]) == []
    assert exceptions.unexcused(NAME, ARCH, [kernel]) == ["_scale: the exception 'spills:' is no longer needed"]
    assert exceptions.unexcused(NAME, 90, [kernel]) == []
    listed(begins="spills:", reason=reason, tritons=("3.1",))
    assert exceptions.unexcused(NAME, ARCH, [kernel]) == [] != exceptions.unexcused(NAME, ARCH, [spilling])
    listed(begins="spills:", reason=reason, tritons=("3.1", golden.minor()))
    assert exceptions.unexcused(NAME, ARCH, [spilling]) == []
    narrow = _worse(spilling, loads={16: 1})
    assert exceptions.unexcused(NAME, ARCH, [narrow]) == ["_scale w4 s1: widest global load is 16 bits"]
    listed(begins=("spills: ", "widest global load is 16 bits"), reason=reason)
    assert exceptions.unexcused(NAME, ARCH, [narrow]) == []


def _compiler(name, arch):
    """Stands in for a compiler that fails, or ends its process."""
    if name == "aborts":
        import os

        os.abort()
    if name == "raises":
        raise ValueError("two\nlines")
    return []


def test_a_compiler_that_aborts_fails_its_cell_only():
    cells = [("fine", 80), ("aborts", 80), ("raises", 90), ("fine", 90)]
    found = {done.cell: done.failed for done in workers.compile_cells(cells, 1, _compiler)}
    assert set(found) == set(cells)
    assert found["fine", 80] == found["fine", 90] == "" and found["raises", 90] == "ValueError: two"
    assert found["aborts", 80].startswith("the compiler ended its process (exit code ")
