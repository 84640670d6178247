"""The command ``python -m vitkern lab gradients``, without a kernel."""

import argparse

import pytest

from vitkern import dispatch
from vitkern.lab import records
from vitkern.lab.differentiating import gradients
from vitkern.lab.differentiating.gradient_check import Outcome, operators
from vitkern.lab.differentiating.gradients import CASES
from vitkern.lab.interpreting import wide
from vitkern.report import BadInput

OPERATORS = operators()
GRADED = frozenset((op.name, name) for op in OPERATORS for name in op.differentiable)


def parsed(*words):
    parser = argparse.ArgumentParser()
    gradients.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def found(monkeypatch, tmp_path):
    """Outcomes by hand: {name of a case: findings}, and what the cases graded."""
    monkeypatch.setenv("VITKERN_LAB_RECORDS", str(tmp_path))

    def prepare(findings, graded=GRADED):
        def outcomes(chosen, seed, jobs):
            for number in chosen:
                name = str(CASES[number])
                yield Outcome(name, 0.0, 1e-15, findings.get(name, ()), frozenset(), frozenset(graded), 0.1)

        monkeypatch.setattr(gradients, "outcomes_of", outcomes)

    return prepare


def test_an_unknown_operator_is_bad_input():
    with pytest.raises(BadInput, match=r"got 'layernrm'; expected one of .* Near: layernorm"):
        gradients.run(parsed("layernrm"))
    with pytest.raises(BadInput, match="--jobs -1"):
        gradients.run(parsed("--jobs", "-1"))


def test_cases_have_names_of_their_own():
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names)


needs_triton = pytest.mark.skipif(not dispatch.HAS_TRITON, reason="without Triton no operator is registered")


@needs_triton
def test_all_right(found, capsys):
    found({})
    assert gradients.run(parsed()) == 0
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("layernorm: ") for line in printed) == sum(c.operator == "layernorm" for c in CASES)
    assert printed[-1].startswith("verdict: all gradients are right")
    record = records.read("gradients")
    assert record["passed"] and len(OPERATORS) >= 7
    counts = f"{len(CASES)} cases, 0 failed; {len(GRADED)} inputs of {len(OPERATORS)} operators"
    assert record["summary"].startswith(counts)


@needs_triton
def test_only_some_operators(found, capsys):
    found({})
    assert gradients.run(parsed("layernorm")) == 0
    assert "attention: " not in capsys.readouterr().out
    assert records.read("gradients")["summary"].endswith("(only layernorm)")


@needs_triton
def test_a_finding_fails(found, capsys):
    found({str(CASES[0]): ("dk is 1e-04 off",)})
    assert gradients.run(parsed()) == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed and "  dk is 1e-04 off\n" in printed
    assert "verdict: 1 of" in printed
    assert records.read("gradients")["failed"] == [str(CASES[0])]


@needs_triton
def test_an_input_without_a_case_fails(found, capsys):
    found({}, GRADED - {("layernorm", "residual")})
    assert gradients.run(parsed()) == 1
    assert "FAILED  layernorm: no case computes the gradient of residual" in capsys.readouterr().out


@pytest.mark.skipif(dispatch.INTERPRETED, reason="kernels are interpreted here")
def test_the_mode_needs_the_interpreter():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"), wide.wide():
        pass
