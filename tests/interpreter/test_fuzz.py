"""The fuzzer: a fixed sample of its cases, and that it finds, shrinks and repeats a fault."""

import dataclasses
from argparse import ArgumentParser

import pytest
import torch

from vitkern.lab import records
from vitkern.lab.fuzzing import fuzz
from vitkern.lab.fuzzing.case import read_case
from vitkern.lab.fuzzing.drawing import ARCHS, OPERAND_LAYOUTS, draw
from vitkern.lab.fuzzing.run_case import Finding, Outcome, Unusable, run_case
from vitkern.lab.fuzzing.shrink import shrink
from vitkern.lab.proving.verify import Result
from vitkern.lab.specimens import specimens
from vitkern.lab.specimens.attention import AttentionCase
from vitkern.lab.specimens.layernorm import LayerNormCase
from vitkern.lab.specimens.sparse_attention import SparseCase
from vitkern.ops import layernorm
from vitkern.report import BadInput
from vitkern.testing import Comparison

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.unsanitized(reason="every case is sanitized by itself", repaired=False),
]
SAMPLE = [(op, i) for op, one in specimens().items() for i in range(2 * one.weight + 2)]


def arguments(*words):
    parser = ArgumentParser()
    fuzz.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture(autouse=True)
def _records(tmp_path, monkeypatch):
    monkeypatch.setenv("VITKERN_LAB_RECORDS", str(tmp_path))


@pytest.mark.walk(3)
@pytest.mark.parametrize(("op", "seed"), SAMPLE)
def test_sample(op, seed):
    case = draw(op, seed)
    assert run_case(case, seed).findings == (), f"{case}"


def test_the_sample_covers_operators_dtypes_layouts_and_hooks():
    cases = [draw(op, seed) for op, seed in SAMPLE]
    assert {type(case) for case in cases} == {one.case for one in specimens().values()}
    assert {case.dtype for case in cases} == {"fp32", "fp16", "bf16"}
    assert {layout for case in cases for layout in case.layouts.values()} >= set(OPERAND_LAYOUTS)
    attention = [case for case in cases if isinstance(case, AttentionCase)]
    for hook in ("packed", "bias", "mask", "additive", "empty", "key_padding", "causal", "scale", "lse"):
        assert any(getattr(case, hook) for case in attention), hook
    assert {False, True} == {case.backward for case in cases}
    assert any(case.wide for case in cases) and any(case.values for case in cases)
    assert any(case.frozen for case in cases)
    assert any(case.arch in ARCHS for case in cases)


# What can be left out has a field of its own there; and a NaN reaches every query of a tile, by a weight of 0 too.
WITHOUT = {
    (f"{name}attention", "without")
    for name in (
        *("", "additive_", "channel_", "deformable_", "gated_positional_"),
        *("local_", "policy_", "separable_", "sparse_"),
    )
} | {
    ("local_attention", "values"),
    ("separable_attention", "wide"),
    ("talking_heads_attention", "values"),
}


def test_every_operator_draws_each_of_its_options():
    """Of a few hundred draws no field has a single value: a generator that lost an option would show here."""
    for op, one in specimens().items():
        cases = [draw(op, seed) for seed in range(300)]
        for entry in dataclasses.fields(one.case):
            if entry.name != "factors" and (op, entry.name) not in WITHOUT:
                assert len({str(getattr(case, entry.name)) for case in cases}) > 1, (op, entry.name)


@pytest.mark.parametrize("op", specimens())
def test_a_case_is_its_seed_and_its_text(op):
    for seed in range(50):
        case = draw(op, seed)
        assert case == draw(op, seed)
        assert str(read_case(type(case), str(case))) == str(case)


def test_a_replay_gives_the_same_numbers():
    first, second = (fuzz.judge("layernorm", 3) for _ in range(2))
    assert first.results == second.results and first.results


def test_shrinking_finds_the_smallest_case_that_fails():
    case = AttentionCase(
        n=196, m=257, dim=80, heads=4, bias="bhnm", causal=True, layouts={"q": "sliced", "k": "packed"}, empty=(3, 9)
    )
    smaller = shrink(case, lambda c: c.n >= 17 and c.layouts.get("k") == "packed" and len(c.empty) > 0)
    assert smaller == AttentionCase(n=17, layouts={"k": "packed"}, empty=(1,))


def test_shrinking_finds_the_smallest_number_where_the_simplest_is_none():
    smaller = shrink(SparseCase(n=50, sampled=35), lambda case: case.sampled is not None and case.sampled >= 3)
    assert smaller == SparseCase(n=1, sampled=3)


def test_shrinking_keeps_to_its_budget():
    calls = []
    shrink(AttentionCase(n=257, m=257, dim=128), lambda case: calls.append(case), trials=5)
    assert len(calls) == 5


def _seed_with(op, wanted):
    return next(seed for seed in range(1000) if wanted(draw(op, seed)))


def test_a_planted_memory_fault_is_found_and_shrunk(monkeypatch):
    monkeypatch.setattr(layernorm, "unit_stride", lambda vector: vector)
    seed = _seed_with("layernorm", lambda c: c.layouts.get("weight") == "stepped" and c.channels < 100)
    verdict = fuzz.judge("layernorm", seed)
    case, findings = verdict.smaller
    assert verdict.findings[0].startswith("memory: _layernorm_fwd") and findings[0].startswith("memory")
    assert case == LayerNormCase(channels=2, layouts={"weight": "stepped"})


def test_a_planted_wrong_value_is_found_and_printed_with_its_replay(monkeypatch, capsys):
    launch = layernorm.layernorm_forward

    def with_another_eps(x, weight, bias, residual, eps, dtype):
        return launch(x, weight, bias, residual, 2 * eps, dtype)

    monkeypatch.setattr(layernorm, "layernorm_forward", with_another_eps)
    seed = _seed_with("layernorm", lambda c: c.eps == 1e-3 and c.is_plain and 7 < c.channels < 100 and not c.backward)
    assert fuzz.run(arguments("--replay", f"layernorm:{seed}")) == 1
    printed = capsys.readouterr().out
    assert "value: out is off by" in printed and f"--replay layernorm:{seed}" in printed and "verdict:" in printed
    shrunk = next(line for line in printed.splitlines() if f"layernorm:{seed}:{{" in line).split("'")[1]
    assert fuzz.run(arguments("--replay", shrunk)) == 1
    monkeypatch.undo()
    assert fuzz.run(arguments("--replay", shrunk)) == 0


@pytest.mark.parametrize("wrong, use, passes", [(1, 2.0, True), (3, 2.0, False), (1, 5.0, False)])
def test_an_error_a_little_above_its_allowance_must_be_seen_with_other_values_too(monkeypatch, wrong, use, passes):
    """``wrong`` of three sets of values are off, by ``use`` times what is allowed."""
    case, seeds = LayerNormCase(channels=4), []

    def run(case, seed):
        seeds.append(seed)
        off = len(seeds) <= wrong
        comparison = Comparison(use * 1e-6 if off else 0.0, 1e-6, 0.0, 1e-7, True)
        found = (Finding("value", "dx is off"),) if off else ()
        return Outcome(found, (Result("dx", torch.float32, comparison, 1.0, 4, 0.0),), {}, 0.1)

    monkeypatch.setattr("vitkern.lab.fuzzing.run_case.run_case", run)
    verdict = fuzz.judge("layernorm", 7, case, smaller=False)
    assert (not verdict.findings, verdict.doubted) == (passes, passes)
    assert seeds == [7, 8, 9][: 1 if use > 4 else 2 if wrong > 1 else 3]


def test_a_failing_run_exits_with_1_and_names_the_case(monkeypatch, capsys):
    monkeypatch.setattr(layernorm, "unit_stride", lambda vector: vector)
    assert fuzz.run(arguments("--op", "layernorm", "--cases", "8", "--jobs", "1")) == 1
    printed, record = capsys.readouterr().out, records.read("fuzz")
    assert record["failed"] and not record["passed"]
    assert all(f"FAILED  {name}" in printed for name in record["failed"])


def test_a_run_in_several_processes_is_the_run_in_one():
    chosen = fuzz.choose(12, 5, "layernorm")
    alone = {verdict.name: verdict.results for verdict in fuzz.verdicts_of(chosen, 1)}
    together = {verdict.name: verdict.results for verdict in fuzz.verdicts_of(chosen, 2)}
    assert alone == together and len(alone) == 12


def test_rule_b_over_a_run():
    case = draw("layernorm", 0)

    def verdict(excess, magnitude=1.0, terms=0.0):
        eps = 2.0**-23
        comparison = Comparison(eps, 2 * eps, excess * 0.2 * eps, 0.2 * eps, True)
        result = Result("dx", torch.float32, comparison, magnitude, 99, terms)
        return fuzz.Verdict("layernorm", 0, case, (), (result,), 0.0)

    (row,) = fuzz.pooled([verdict(1.1), verdict(1.3)] * 10)["layernorm"]
    assert row[1:3] == ("dx", pytest.approx(1.2)) and row[3] == ""
    (row,) = fuzz.pooled([verdict(1.1), verdict(2.1)] * 10)["layernorm"]
    assert "1.600 times" in row[3]
    assert fuzz.pooled([verdict(9.0, terms=1e3)] * 20)["layernorm"] == []  # what rounding left
    assert fuzz.pooled([verdict(9.0)] * 19)["layernorm"] == []  # too few


def test_findings_of_a_case_that_is_no_problem_are_refused():
    with pytest.raises(Unusable, match="groups of 2"):
        run_case(AttentionCase(heads=3, share=2), 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cases", "0"], "got --cases 0"),
        (["--jobs", "-1"], "--jobs -1"),
        (["--op", "attentoin"], "unknown operator: got 'attentoin'"),
        (["--replay", "attention"], "no seed"),
        (["--replay", "attention:x"], "no seed"),
        (["--replay", "conv:1"], "unknown operator"),
        (["--replay", "attention:1:{"], "no readable case"),
        (["--replay", 'attention:1:{"tokens": 3}'], "no readable case"),
        (["--replay", 'attention:1:{"layouts": {"q": "diagonal"}}'], "diagonal"),
        (["--replay", 'attention:1:{"heads": 3, "share": 2}'], "the formula refuses"),
    ],
)
def test_bad_arguments(words, message):
    with pytest.raises(BadInput, match=message):
        fuzz.run(arguments(*words))
