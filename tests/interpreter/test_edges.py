"""A tenth of the named edge cases, and that their expectations can fail."""

from argparse import ArgumentParser

import pytest
import torch

from vitkern.lab import records
from vitkern.lab.fuzzing import edges
from vitkern.lab.fuzzing.edge import Edge, Exactly
from vitkern.lab.specimens import gathered
from vitkern.lab.specimens.layernorm import LayerNormCase
from vitkern.ops import layernorm
from vitkern.report import BadInput

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.unsanitized(reason="every case is sanitized by itself", repaired=False),
]

EDGES = gathered("edges")


def arguments(*words):
    parser = ArgumentParser()
    edges.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture(autouse=True)
def _records(tmp_path, monkeypatch):
    monkeypatch.setenv("VITKERN_LAB_RECORDS", str(tmp_path))


@pytest.mark.walk(2)
@pytest.mark.parametrize("edge", EDGES[::10], ids=lambda edge: edge.name)
def test_edge(edge):
    assert edges.check(edge) == []


def test_names():
    names = [edge.name for edge in EDGES]
    assert len(names) >= 120 and len(set(names)) == len(names)


def test_an_expectation_that_does_not_hold_is_named():
    one = Exactly("out", (2,), 1.0)
    tensors = {"out": torch.tensor([0.0, 1.0, 1.0])}
    assert edges._broken(one, tensors) is None
    assert "beyond" in edges._broken(one._replace(only=True), tensors)
    assert "1 elements" in edges._broken(one._replace(index=((0, 2),)), tensors)
    assert "must be" in edges._broken(one._replace(value=float("nan")), tensors)


def test_a_broken_operator_is_named_with_its_case(monkeypatch, capsys):
    monkeypatch.setattr(layernorm, "unit_stride", lambda vector: vector)
    assert edges.run(arguments("layernorm: stepped", "layernorm: one row")) == 1
    printed = capsys.readouterr().out
    assert "FAILED  layernorm: stepped operands" in printed and "memory: " in printed
    assert "verdict: 2 of" in printed and records.read("edges")["failed"] == ["layernorm: stepped operands"]


def test_a_wrong_expectation_fails():
    case = LayerNormCase(shape=(2,), channels=8, backward=False)
    assert "out is not 0" in edges.check(Edge("x", case, (Exactly("out", (), 0.0),)))[0]


def test_names_are_listed(capsys):
    assert edges.run(arguments("--list", "cosine")) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) > 3 and all("cosine" in line for line in listed)


def test_an_unknown_name_shows_near_ones():
    with pytest.raises(BadInput, match="layernorm: zero rows"):
        edges.run(arguments("layernorm: zero row s"))
