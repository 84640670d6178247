"""A call that is played from a tape gives what the formula gives: random cases of every operator, each run with one set
of values, which records, and then with another, which plays."""

import dataclasses

import pytest

from vitkern import plans, tape
from vitkern.lab.fuzzing.drawing import draw
from vitkern.lab.fuzzing.run_case import run_case
from vitkern.lab.specimens import specimens

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.unsanitized(reason="run_case sanitizes its launches"),
]

SEEDS = range(6)


@pytest.fixture(autouse=True)
def planned():
    with plans.interpreted.set(True):
        yield


@pytest.fixture
def played(monkeypatch):
    """One entry for each tape that was played."""
    found, finished = [], tape._Recorder.tape

    def watched(self, results):
        made = finished(self, results)

        def play(*args):
            found.append(made.source)
            return made.play(*args)

        return made._replace(play=play)

    monkeypatch.setattr(tape._Recorder, "tape", watched)
    return found


@pytest.mark.walk(4)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("op", specimens())
def test_what_is_played_is_right(op, seed, played):
    case = dataclasses.replace(draw(op, 700 + seed), arch=0, twice=False)
    for values in (1, 2):
        before = len(played)
        outcome = run_case(case, values)
        assert not outcome.findings, f"{case}, values {values}: {'; '.join(map(str, outcome.findings))}"
    assert played[before:], f"{case}: nothing was played"
