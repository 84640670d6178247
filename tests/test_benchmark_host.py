"""``python -m benchmarks host``: what a call costs the host, on a GPU that is not there."""

import re

import pytest

pytest.importorskip("triton", reason="its kernels are started")

from benchmarks import __main__ as benchmarks
from benchmarks import host
from vitkern import plans


def test_a_row(capsys):
    assert benchmarks.main(["host", "rmsnorm", "--calls", "20"]) == 0
    unit, _, header, row = capsys.readouterr().out.splitlines()
    assert unit.startswith("start of a kernel with three arguments: ") and header.split("  ")[0] == "case"
    times = [float(text) for text in re.findall(r"([0-9.]+) \([0-9.]+x\)", row)]
    assert len(times) == 4 and min(times) > 0
    assert re.findall(r"\)\s+([0-9]+)(?:\s|$)", row) == ["1", "2"]  # launches
    assert plans.enabled.value


def test_an_unknown_operator(capsys):
    assert benchmarks.main(["host", "rmsnrm"]) == 2
    assert "no operator is called 'rmsnrm'. Near: rmsnorm" in capsys.readouterr().err


def test_every_operator_has_a_row():
    assert {case.op for case in host.QUICK} >= {"attention", "window_attention", "layernorm_mlp", "sparse_attention"}
