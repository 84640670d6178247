"""From a failing case to a smaller one that fails in the same way."""

import dataclasses
import time
from collections.abc import Callable, Iterator

from vitkern.lab.fuzzing.case import Case, simplest

TRIALS = 200
SECONDS = 60.0


def shrink(case: Case, fails: Callable[[Case], bool], *, trials: int = TRIALS, seconds: float = SECONDS) -> Case:
    """Greedy over the fields: toward the simplest value as long as ``fails``, until no single step does.

    Ends early after ``trials`` calls or ``seconds``.
    """
    deadline = time.monotonic() + seconds
    progressed = True
    while progressed:
        progressed = False
        for entry in dataclasses.fields(case):
            for value in list(_simpler(getattr(case, entry.name), simplest(entry))):
                if trials <= 0 or time.monotonic() > deadline:
                    return case
                trials -= 1
                candidate = dataclasses.replace(case, **{entry.name: value})
                if fails(candidate):
                    case, progressed = candidate, True
                    break
    return case


def _simpler(value, goal) -> Iterator:
    """Simpler values than ``value``, the simplest first."""
    if value == goal:
        return
    yield goal
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int) and isinstance(goal, int | None):
        yield from (step for step in _between(value, goal or 0) if step != goal)
    elif isinstance(value, dict):
        for key in value:
            yield {other: kept for other, kept in value.items() if other != key}
    elif isinstance(value, tuple | list) and len(value) == len(goal):  # sizes
        for i, (size, least) in enumerate(zip(value, goal, strict=True)):
            for step in _between(size, least):
                yield (*value[:i], step, *value[i + 1 :])
    elif isinstance(value, tuple | list):
        for i in range(len(value)):
            yield (*value[:i], *value[i + 1 :])
        for i, size in enumerate(value):
            if isinstance(size, int):
                yield from ((*value[:i], step, *value[i + 1 :]) for step in _between(size, 1))


def _between(value: int, goal: int) -> Iterator[int]:
    """goal, halfway, ..., one step: each nearer to ``value``."""
    distance = value - goal
    while distance:
        yield value - distance
        distance = int(distance / 2)
