"""Two ways of a streaming forward side by side: which cases have both, and what a run says of the two choices."""

import pytest
import torch

from benchmarks import variants
from benchmarks.cases import CASES
from benchmarks.rows import OURS, Row
from benchmarks.variants import Pair, descriptors_from, has_tails, has_variant
from vitkern.kernels.loop.heads import head_parts
from vitkern.kernels.loop.stream_hopper import takes_descriptors

HALF = torch.bfloat16


def row(seconds, note=""):
    return Row("attention", "", "forward", "bfloat16", 2, OURS, seconds, note=note)


def pair(tile, tokens, gain, note="", bias=False):
    return Pair(None, (tile, bias), tokens, row(1e-5), row(1e-5 / gain, note))


def test_long_plain_attention_has_both_on_hopper_alone():
    named = {str(case): case for case in CASES if case.op == "attention"}
    found = {name for name, case in named.items() if case.tokens < 5000 and has_variant(case, HALF, 90)}
    assert found and all(min(named[name].tokens, named[name].keys or 5000) > 48 for name in found)
    assert any("bias" in name for name in found) and not any("key mask" in name for name in found)
    assert {named[name].head_dim for name in found} == {64, 80, 128}
    long = next(case for name, case in named.items() if name.startswith("DINOv2-g/14 518"))
    assert not has_variant(long, HALF, 100) and not has_variant(long, torch.float32, 90)


def test_the_row_begins_where_no_slower_case_is_above():
    pairs = [pair(64, 4096, 1.3), pair(64, 1024, 1.2), pair(64, 577, 1.02), pair(64, 257, 1.4), pair(128, 577, 1.04)]
    assert descriptors_from([*pairs, pair(64, 577, 1.2, bias=True)]) == {(64, False): 1024, (64, True): 577}
    assert descriptors_from([*pairs, pair(64, 1024, 1.01)]) == {(64, False): 4096}
    assert descriptors_from([pair(64, 577, 1.2), pair(64, 4096, 1.2, "WRONG: out")]) == {}


def test_both_are_measured_and_shown(monkeypatch, capsys):
    asked = []

    def measured(case, dtype, device, **options):
        asked.append(takes_descriptors(64, 2, 90, 577, 577, False))
        return [row(1e-5 if asked[-1] else 2e-5)]

    monkeypatch.setattr(variants, "measure", measured)
    cases = [case for case in CASES if str(case).startswith(("ViT-B/16 384 H", "PVT-S stage 4"))]
    variants.show_variants(cases, HALF, 90)
    out = capsys.readouterr().out
    assert asked == [False, True] and "2.00" in out and "DESCRIPTORS_FROM = {(64, False): 577}" in out
    variants.show_variants(cases, HALF, 80)
    assert capsys.readouterr().out == "" and len(asked) == 2


def test_heads_of_two_tiles_are_measured_against_one(monkeypatch, capsys):
    split = []

    def measured(case, dtype, device, **options):
        split.append(head_parts(80, 90, False) == (64, 16))
        return [row(3e-5 if split[-1] else 2e-5)]

    monkeypatch.setattr(variants, "measure", measured)
    cases = [case for case in CASES if str(case).startswith(("ViT-B/16 384 H", "ViT-H/14 224 H"))]
    assert [has_tails(case, HALF, 80) for case in cases] == [case.head_dim == 80 for case in cases]
    variants.show_variants(cases, HALF, 80)
    out = capsys.readouterr().out
    assert split == [False, True] and "0.67" in out and "should leave whole: [80]" in out


@pytest.fixture(autouse=True)
def _compiled_kernels():
    pytest.importorskip("triton", reason="kernels/ is imported with the kernels")
