"""A named edge case: sizes of 0 and 1, tile boundaries, masks that leave nothing, special values, odd memory.

Of every case the rules (a) and (c) of `vitkern.testing` are expected; ``expected`` says what holds exactly besides.
"""

from typing import NamedTuple

from vitkern.lab.fuzzing.case import Case

NAN, INF = "nan", "inf"


class Exactly(NamedTuple):
    """``tensor`` at ``index`` (see `case.place`) is ``value`` throughout; ``only``: and nowhere else."""

    tensor: str
    index: tuple
    value: float
    only: bool = False


class Edge(NamedTuple):
    name: str
    case: Case
    expected: tuple[Exactly, ...] = ()


def zero(*tensors: str, at: tuple = ()) -> tuple[Exactly, ...]:
    return tuple(Exactly(name, at, 0.0) for name in tensors)


def nan_only(tensor: str, index: tuple) -> Exactly:
    return Exactly(tensor, index, float("nan"), only=True)
