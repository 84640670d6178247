"""Offsets beyond 2^31: every pointer has a case, cases notice a missing cast to int64, and memory stays free."""

import argparse
import fnmatch
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import triton
import triton.language as tl

from vitkern.lab.addressing import offsets
from vitkern.lab.addressing.offset_coverage import BOUNDED, Coverage, hooks, launched_kernels
from vitkern.lab.addressing.offsets import all_cases, check, note_extents
from vitkern.report import BadInput

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.unsanitized(reason="the cases open the sanitizer themselves"),
]
ROOT = Path(__file__).resolve().parents[2]
CASES = {str(case): case for case in all_cases()}
SAMPLE = (
    "_stream_fwd, batch",
    "_stream_bwd_dq, image row stride",
    "_stream_bwd_dkdv, keys",
    "_stream_bwd_bias, queries",
    "_short_fwd, heads",
    "_short_bwd, images",
    "_layernorm_bwd, rows, each with partial sums of its own",
    "_norm_linear_fwd, rows",
    "_mlp_fwd, rows",
    "_matmul, stride of the inner dimension",
    "_pointwise, rows, scale_gradient",
    "_expand_table, head stride",
    "_reduce_table, heads",
)


@pytest.fixture(scope="module")
def extents():
    coverage = Coverage()
    for case in CASES.values():
        note_extents(case, coverage)
    return coverage


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name):
    assert check(CASES[name], Coverage()) == []


def test_a_case_records_how_far_it_goes():
    coverage = Coverage()
    check(CASES["_reduce_table, heads"], coverage)
    assert coverage.farthest["_reduce_table.tile"] >= 2**31 > coverage.farthest["_reduce_table.dtable"] > 0
    assert coverage.gaps({"_reduce_table": launched_kernels()["_reduce_table"]}) == []


def test_every_pointer_of_every_kernel_has_a_case_or_a_reason(extents):
    kernels = launched_kernels()
    assert {case.kernel for case in CASES.values()} == set(kernels)
    assert extents.gaps(kernels) == []


def test_reasons_are_used(extents):
    known = [*extents.farthest, *(f"{name}.{hook}" for name, one in launched_kernels().items()
             for hook in hooks(one))]  # fmt: skip
    for pattern in BOUNDED:
        assert any(fnmatch.fnmatchcase(key, pattern) for key in known), pattern


@triton.jit
def _new_kernel(x, out, n, BLOCK: tl.constexpr):
    tl.store(out, tl.load(x))


def test_a_new_kernel_and_a_lost_reason_are_noticed(extents, monkeypatch):
    assert extents.gaps({"_new_kernel": _new_kernel}) == [
        f"_new_kernel.{name}: no case gives it" for name in ("x", "out", "n")
    ]
    monkeypatch.delitem(BOUNDED, "*.padding")
    monkeypatch.delitem(BOUNDED, "*.WEIGH=dropout")
    lines = extents.gaps(launched_kernels())
    assert any(line.startswith("_stream_fwd.padding is touched up to element") for line in lines)
    assert any(line.startswith("_stream_fwd.WEIGH=dropout: no case gives it") for line in lines)


def test_memory_stays_free():
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < offsets.MEMORY_LIMIT


def test_a_missing_cast_is_caught(tmp_path):
    """In a copy of the package whose LayerNorm, and RMSNorm, counts 32 bits."""
    right, wrong = "pointer + rows.to(tl.int64)[:, None]", "pointer + rows[:, None]"
    for folder in ("kernels", "vitkern"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "kernels" / "rows" / "tiles.py"
    assert right in path.read_text()
    path.write_text(path.read_text().replace(right, wrong))
    done = subprocess.run(
        [sys.executable, "-m", "vitkern", "lab", "offsets", "_layernorm_fwd", "--all"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "int32 overflow in mul" in done.stdout and "verdict: 2 failures" in done.stdout


def test_unknown_kernel():
    with pytest.raises(BadInput, match=r"no kernel is called '_stream_forward'\. Near: _stream_fwd"):
        offsets.run(argparse.Namespace(kernel=["_stream_forward"]))
