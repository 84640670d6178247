"""Ten deliberate breaks of the kernels are found, each by what should find it; the kernels as they are pass."""

import pytest

from vitkern.lab.breaking.breaks import BREAKS, break_jobs
from vitkern.lab.breaking.nursery import judged

FOUND_BY = {
    "a key mask is dropped": "rule (a): out",
    "an index is shifted by one": "rule (a): out",
    "two strides are swapped": "sanitizer",
    "the wrong head is read": "rule (a): out",
    "the running sum is not rescaled": "rule (a): out",
    "a gradient misses the scale": "rule (a): dk",
    "a table is read transposed": "rule (a): out",
    "a store has no mask": "sanitizer: _layernorm_fwd",
    "a slope lacks its second term": "rule (a): dx",
    "a launch is one program short": "sanitizer",
}


@pytest.fixture(scope="module")
def verdicts():
    return {verdict.name: verdict for verdict in judged(break_jobs(), 1)}


@pytest.mark.parametrize("name", BREAKS)
def test_the_break_is_found(name, verdicts):
    assert FOUND_BY[name] in verdicts[name].by, verdicts[name].by


def test_unbroken_kernels_pass(verdicts):
    unbroken = {name: verdict.by for name, verdict in verdicts.items() if name not in BREAKS}
    assert len(unbroken) >= 5
    assert not any(unbroken.values()), unbroken
