"""Mutation operators make what they say, once each, and the names of mutants hold still."""

from collections import Counter
from pathlib import Path

import pytest

from vitkern.lab.breaking.launcher_operators import LAUNCHER
from vitkern.lab.breaking.mutation_operators import KERNEL
from vitkern.lab.breaking.mutations import NoMutant, all_mutants, checked, kernel_files

HEAD = "import triton\nimport triton.language as tl\nfrom .tiles import LOG2E\n\n\n"
KERNEL_SOURCE = (
    HEAD
    + '''@triton.jit
def _kernel(x, y, out, x_strides, y_strides, head, heads, N, M):
    """Not < this."""
    i = tl.program_id(0) * 16 + tl.arange(0, 16)
    acc = tl.zeros([16], tl.float32)
    for n in range(0, N, 16):
        value = tl.load(x + (head.to(tl.int64) * x_strides[0] + n), mask=(i < N) & (i < M), other=0.0).to(tl.float32)
        acc += tl.exp2(value - tl.max(value[:, None], 1)) * LOG2E
    acc = tl.where(acc > 0.5, tl.maximum(acc, value // N), 0.0)
    acc = tl.dot(acc, tl.load(y + i), input_precision=PRECISION)
    if N:
        helper(acc, N, M)
    tl.store(out + i, acc, mask=i < N)
'''
)
LAUNCHER_SOURCE = """def launcher(q, k, v, out, rows, heads):
    delta = torch.empty(rows, heads, dtype=torch.float32)
    launch(_k, (rows * heads,), q.tensor, k, q.over(a), rows, q.stride(0), BLOCK_M=config.block_m, EVEN_N=rows == 8)
    return delta.sum(0) * LOG2_OF_E
"""


def mutants_of(source, name="sample"):
    return all_mutants(Path(f"{name}.py"), source)


@pytest.mark.parametrize(
    ("operator", "change"),
    [
        ("drop-mask-term", "(i < N) & (i < M) -> (i < M)"),
        ("drop-mask", "tl.store(out + i, acc, mask=i < N) -> tl.store(out + i, acc)"),
        ("drop-other", "tl.load(x + (head.to(tl.int64) * x_strides[0] + n), mask=(i < N) & (i < M), other=0.0) -> "
         "tl.load(x + (head.to(tl.int64) * x_strides[0] + n), mask=(i < N) & (i < M))"),
        ("compare", "acc > 0.5 -> (acc >= 0.5)"),
        ("shift-index", "tl.arange(0, 16) -> (tl.arange(0, 16) + 1)"),
        ("swap-stride", "x_strides -> y_strides"),
        ("swap-stride", "x_strides[0] -> x_strides[1]"),
        ("swap-pointer", "x -> y"),
        ("wrong-index", "head -> (head * 0)"),
        ("flip-sign", "acc += tl.exp2(value - tl.max(value[:, None], 1)) * LOG2E -> "
         "acc -= tl.exp2(value - tl.max(value[:, None], 1)) * LOG2E"),
        ("swap-division", "value // N -> (value % N)"),
        ("wrong-product", "tl.program_id(0) * 16 -> (tl.program_id(0) + 16)"),
        ("drop-statement", "tl.store(out + i, acc, mask=i < N) -> pass"),
        ("wrong-constant", "LOG2E -> (LOG2E * 1.0009765625)"),
        ("narrow-accumulator", "tl.float32 -> tl.float16"),
        ("drop-float32", "tl.load(x + (head.to(tl.int64) * x_strides[0] + n), mask=(i < N) & (i < M), other=0.0)"
         ".to(tl.float32) -> tl.load(x + (head.to(tl.int64) * x_strides[0] + n), mask=(i < N) & (i < M), other=0.0)"),
        ("drop-int64", "head.to(tl.int64) -> head"),
        ("swap-extreme", "tl.maximum -> tl.minimum"),
        ("other-base", "tl.exp2 -> tl.math.exp"),
        ("tf32", 'PRECISION -> "tf32"'),
        ("wrong-axis", "1 -> 0"),
        ("skip-block", "0 -> 0 + 16"),
        ("swap-branches", "tl.where(acc > 0.5, tl.maximum(acc, value // N), 0.0) -> "
         "tl.where(acc > 0.5, 0.0, tl.maximum(acc, value // N))"),
        ("negate", "N -> not (N)"),
        ("transpose", "value[:, None] -> value[None, :]"),
        ("swap-arguments", "helper(acc, N, M) -> helper(acc, M, N)"),
    ],
)  # fmt: skip
def test_kernel_operators_make_what_they_say(operator, change):
    made = {mutant.change for mutant in mutants_of(KERNEL_SOURCE) if mutant.operator == operator}
    assert change in made, "\n".join(sorted(made))


@pytest.mark.parametrize(
    ("operator", "change"),
    [
        ("grid", "rows * heads -> (rows * heads) - 1"),
        ("grid", "rows * heads -> rows"),
        ("count", "rows -> rows + 1"),
        ("other-tensor", "q -> k"),
        ("other-strides", "q -> k"),
        ("other-strides", "0 -> 1"),
        ("shape", "heads -> (heads) + 1"),
        ("half-allocation", "torch.float32 -> torch.float16"),
        ("wrong-block", "config.block_m -> config.block_n"),
        ("always-even", "rows == 8 -> True"),
        ("first-partial", "delta.sum(0) -> delta[0]"),
        ("no-scale", "delta.sum(0) * LOG2_OF_E -> delta.sum(0)"),
    ],
)
def test_launcher_operators_make_what_they_say(operator, change):
    made = {mutant.change for mutant in mutants_of(LAUNCHER_SOURCE) if mutant.operator == operator}
    assert change in made, "\n".join(sorted(made))


def test_every_operator_is_tested_and_applies_somewhere():
    made = Counter(mutant.operator for source in (KERNEL_SOURCE, LAUNCHER_SOURCE) for mutant in mutants_of(source))
    assert set(made) == {*KERNEL, *LAUNCHER}
    used = {mutant.operator for path in kernel_files().values() for mutant in all_mutants(path)}
    assert used == {*KERNEL, *LAUNCHER}


def test_a_mutant_is_one_change_of_one_line_outside_docstrings():
    for mutant in mutants_of(KERNEL_SOURCE):
        lines = zip(KERNEL_SOURCE.splitlines(), mutant.source.splitlines(), strict=True)
        changed = [number for number, (before, after) in enumerate(lines, 1) if before != after]
        assert changed == [mutant.line], mutant.name
        assert "Not < this." in mutant.source


def test_names_hold_still():
    names = [mutant.name for mutant in mutants_of(KERNEL_SOURCE)]
    assert len(set(names)) == len(names)
    assert "sample._kernel:drop-mask-term:2" in names
    other = KERNEL_SOURCE.replace(HEAD, HEAD + "@triton.jit\ndef another(i, N):\n    return i < N\n\n\n")
    kept = {mutant.name: mutant.change for mutant in mutants_of(other)}
    assert all(kept[mutant.name] == mutant.change for mutant in mutants_of(KERNEL_SOURCE))


def test_the_original_is_refused_and_so_is_what_is_no_python():
    with pytest.raises(NoMutant, match="is the original"):
        checked(KERNEL_SOURCE + "\n# a comment changes nothing\n", KERNEL_SOURCE)
    with pytest.raises(NoMutant, match="no Python"):
        checked(KERNEL_SOURCE + "def", KERNEL_SOURCE)
