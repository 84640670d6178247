"""Gradients in double precision: a sample of ``python -m vitkern lab gradients``, and faults that it must see."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vitkern.kernels import attention as attention_launchers
from vitkern.kernels import layernorm as layernorm_launchers
from vitkern.lab.differentiating import gradient_check
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.differentiating.gradients import CASES
from vitkern.lab.specimens.attention import problem as attention_problem
from vitkern.lab.specimens.layernorm import problem as layernorm_problem

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.unsanitized(reason="it launches one shape hundreds of times; the sanitizer sees the kernels elsewhere"),
]
# one random direction each: whole Jacobians, more draws and orders of programs are of ``lab gradients``
SAMPLE = [replace(case, full=False, seeds=1, ordered=False) for case in CASES if case.sample]
KERNELS = Path(__file__).resolve().parents[2] / "kernels"
SMALL = {
    "attention": GradientCase(attention_problem("N=4", (1, 1, 4, 2))),
    "layernorm": GradientCase(layernorm_problem("3 rows of 4", 3, 4)),
}


@pytest.fixture(scope="module")
def outcomes():
    return {}


@pytest.mark.walk(4)
@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_gradients_are_those_of_the_formula_and_of_finite_differences(case, outcomes):
    outcome = outcomes[str(case)] = outcomes.get(str(case)) or gradient_check.check(case)
    assert outcome.findings == ()
    assert 0 < outcome.gradient_error <= gradient_check.TOLERANCE


@pytest.mark.walk(4)
def test_the_sample_covers_every_input_of_every_operator(outcomes):
    for case in SAMPLE:
        if str(case) not in outcomes:
            outcomes[str(case)] = gradient_check.check(case)
    assert gradient_check.uncovered(outcomes.values()) == []
    fewer = [outcome for name, outcome in outcomes.items() if not name.startswith("layernorm:")]
    assert gradient_check.uncovered(fewer) == [
        f"layernorm: no case computes the gradient of {name}" for name in ("x", "weight", "bias", "residual")
    ]


def test_every_operator_has_two_cases_and_one_whole_jacobian():
    for op in gradient_check.operators():
        cases = [case for case in CASES if case.operator == op.name]
        assert len(cases) >= 2 and any(case.full for case in cases), op.name
        assert any(case.ordered for case in cases), op.name


def test_a_new_operator_has_no_case(monkeypatch):
    from vitkern import register

    new = object.__new__(register.KernelOp)
    new.name, new.differentiable = "new", ("x",)
    monkeypatch.setattr(register, "operators", [*register.operators, new])
    assert "new: no case computes the gradient of x" in gradient_check.uncovered([])


def _off(where, name):
    """A launcher that fills its argument ``name`` wrongly, by one part in ten thousand."""

    def launcher(grad, q, k, v, dq, dk, dv, **options):
        result = where(grad, q, k, v, dq, dk, dv, **options)
        dict(dq=dq, dk=dk, dv=dv)[name].mul_(1 + 1e-4)
        return result

    return launcher


def _against_itself(case):
    """Nothing to compare with but finite differences."""
    return replace(case, problem=replace(case.problem, formula=case.problem.run))


@pytest.mark.parametrize("full", [False, True], ids=["directions", "whole"])
def test_gradcheck_alone_sees_a_gradient_that_is_slightly_off(full, monkeypatch):
    case = _against_itself(replace(SMALL["attention"], full=full))
    assert gradient_check.check(case).findings == ()
    right = attention_launchers.short_backward
    for name in ("dq", "dk", "dv"):
        monkeypatch.setattr(attention_launchers, "short_backward", _off(right, name))
        (finding,) = gradient_check.check(case).findings
        assert finding.startswith("gradcheck: "), name


def test_the_formula_sees_what_is_far_below_a_finite_difference(monkeypatch):
    right = layernorm_launchers.normalise_rows_backward

    def wrong(*args, **kwargs):
        dweight, dbias = right(*args, **kwargs)
        return dweight * (1 + 1e-10), dbias

    monkeypatch.setattr(layernorm_launchers, "normalise_rows_backward", wrong)
    (finding,) = gradient_check.check(SMALL["layernorm"]).findings
    assert finding.startswith("dweight is ") and finding.endswith("off the formula in float64")


def test_a_gradient_that_is_not_reproducible_is_found(monkeypatch):
    right, calls = layernorm_launchers.normalise_rows_backward, []

    def drifting(*args, **kwargs):
        calls.append(None)
        dweight, dbias = right(*args, **kwargs)
        return dweight, dbias + (len(calls) > 1) * 1e-6

    case = replace(SMALL["layernorm"], ordered=True, problem=replace(SMALL["layernorm"].problem, gradients=("bias",)))
    assert gradient_check.check(case).findings == ()
    monkeypatch.setattr(layernorm_launchers, "normalise_rows_backward", drifting)
    findings = gradient_check._orders(case, 0)
    assert findings[0] == "dbias in float32 has other bits with programs in forward order" and len(findings) == 3


def test_a_case_whose_gradient_vanishes_is_found():
    case = GradientCase(attention_problem("one key", (1, 1, 2, 2), keys=1))
    assert set(gradient_check.check(case).findings) >= {
        f"{name} is zero throughout, so that this case shows nothing" for name in ("dq", "dk")
    }


def test_dropout_is_checked_with_the_operators_own_mask():
    (case,) = [case for case in CASES if case.problem.options.get("dropout_p")]
    run = gradient_check._Run(case, 0, torch.float64)
    with gradient_check.wide():
        actual, expected = (run.solve(f)["out"] for f in (case.problem.run, case.problem.reference))
    assert torch.allclose(actual, expected, rtol=0, atol=1e-13)
    plain = torch.nn.functional.scaled_dot_product_attention(
        *(run.operands[n] for n in ("q", "k", "v")), attn_mask=run.operands["bias"]
    )
    assert (actual - plain).abs().max() > 0.1


def test_every_kernel_that_is_launched_is_launched_by_some_case(monkeypatch):
    """Without finite differences, and by the cases of few gradients alone."""
    launched = {
        node.args[0].id
        for path in KERNELS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "launch"
        and isinstance(node.args[0], ast.Name)
    }
    assert len(launched) >= 14
    launched.remove("_stream_hopper_fwd")  # takes half precision alone, and its gradients are those of _stream_fwd
    monkeypatch.setattr(gradient_check, "_finite_differences", lambda run: [])
    for case in CASES:
        if launched and ("value only" in str(case) or "only d" in str(case)):
            launched -= gradient_check.check(case).kernels
    assert not launched, f"no case launches {sorted(launched)}"
