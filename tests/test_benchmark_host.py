"""``python -m benchmarks host``: what a call costs the host, on a GPU that is not there."""

import re

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="its kernels are started")

from benchmarks import __main__ as benchmarks
from benchmarks import host
from benchmarks.tiny import Pair, pairs
from vitkern import plans


def test_a_row(capsys):
    assert benchmarks.main(["host", "rmsnorm", "--calls", "20"]) == 0
    unit, _, header, row = capsys.readouterr().out.splitlines()
    assert unit.startswith("start of a kernel with three arguments: ") and header.split("  ")[0] == "case"
    times = [float(text) for text in re.findall(r"([0-9.]+) \([0-9.]+x\)", row)]
    assert len(times) == 4 and min(times) > 0
    assert re.findall(r"\)\s+([0-9]+)(?:\s|$)", row) == ["1", "2"]  # launches
    assert plans.enabled.value


def test_blocks(capsys, monkeypatch):
    linear, x = nn.Linear(32, 32), torch.randn(1, 16, 32)
    monkeypatch.setattr(host, "pairs", lambda device: [Pair("ViT", linear, nn.Sequential(linear, linear), x)])
    assert benchmarks.main(["host", "blocks", "--calls", "2"]) == 0
    *_, meaning, _, header, row = capsys.readouterr().out.splitlines()
    assert "original" in meaning and header.startswith("block of timm") and row.startswith("ViT, 16 tokens of 32")
    found = re.findall(r"([0-9.]+) +([0-9.]+) \(([0-9.]+)x\)", row)
    assert len(found) == 2
    for original, accelerated, ratio in found:
        assert float(accelerated) / float(original) == pytest.approx(float(ratio), abs=0.02)


def test_the_blocks_that_are_compared_compute_the_same():
    pytest.importorskip("timm", reason="timm is not installed")
    for pair in pairs(torch.device("cpu")):
        assert torch.allclose(pair.accelerated(pair.x), pair.original(pair.x), atol=1e-5)
        assert {type(m).__module__.split(".")[0] for m in pair.accelerated.modules()} > {"torch", "vitkern"}


def test_blocks_need_timm(monkeypatch, capsys):
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None)
    assert benchmarks.main(["host", "blocks"]) == 2
    assert "timm is not installed" in capsys.readouterr().err


def test_an_unknown_operator(capsys):
    assert benchmarks.main(["host", "rmsnrm"]) == 2
    assert "no operator is called 'rmsnrm'. Near: rmsnorm" in capsys.readouterr().err


def test_every_operator_has_a_row():
    assert {case.op for case in host.QUICK} >= {"attention", "window_attention", "layernorm_mlp", "sparse_attention"}
