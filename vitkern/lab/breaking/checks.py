"""What judges the mutants of a file of kernels/."""

import functools
import zlib
from dataclasses import dataclass

import torch

from vitkern.lab.proving.problem import Problem
from vitkern.lab.proving.verify import Trial

SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Quick:
    """A problem in a dtype: small, and of several features at once, so that most mutants die in the first second.

    apart: every operand lies in a larger tensor of its own, so that no two have a stride in common; its rows are longer
    by a multiple of this many elements.
    pool: the problems whose mean errors rule (b) adds up; None where they say nothing, because the tensors are small
    or the ideal has no error.
    arch: whose block sizes run; 0 the interpreter's own.
    descriptors: Hopper's variant runs where it can.
    """

    problem: Problem
    dtype: torch.dtype
    apart: int = 0
    pool: str | None = "all"
    arch: int = 0
    descriptors: bool = False

    def trial(self) -> Trial:
        """With what it should give; imports no kernel."""
        arrange = functools.partial(_apart, unit=self.apart) if self.apart else None
        return Trial(self.problem, self.dtype, torch.device("cpu"), arrange=arrange)


Trials = tuple[Quick, ...]


@dataclass(frozen=True)
class Checks:
    """What judges the mutants of a file: ``trials``, from the telling to the special, then ``special`` (names of
    functions of `judge`), then, for those still alive, ``tests`` (files of tests/interpreter)."""

    trials: Trials
    special: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()

    def __add__(self, other: "Checks") -> "Checks":
        def joined(one, more):
            return one + tuple(entry for entry in more if entry not in one)

        trials = self.trials + tuple(one for one in other.trials if not any(one is mine for mine in self.trials))
        return Checks(trials, joined(self.special, other.special), joined(self.tests, other.tests))


def quick(dtype: torch.dtype, *problems: Problem, **options) -> Trials:
    """``problems`` in ``dtype``; ``options`` of `Quick`."""
    return tuple(Quick(problem, dtype, **options) for problem in problems)


def checks_of(file: str) -> Checks:
    """Of a file of kernels/: what the specimens say that judge it; everything, where none does."""
    from vitkern.lab.specimens import specimens

    every = [dict(one.judges) for one in specimens().values()]
    own = [judges[file] for judges in every if file in judges]
    return sum(own or [checks for judges in every for checks in judges.values()], Checks(()))


def _apart(name: str, tensor: torch.Tensor, *, unit: int) -> torch.Tensor:
    if tensor.dim() < 2 or not tensor.is_floating_point():
        return tensor
    seed = zlib.crc32(name.encode())
    larger = [size + 1 + (seed >> 3 * axis) % 8 for axis, size in enumerate(tensor.shape)]
    larger[-1] = tensor.shape[-1] + unit * (larger[-1] - tensor.shape[-1])
    place = tensor.new_zeros(larger)[tuple(slice(0, size) for size in tensor.shape)]
    return place.copy_(tensor)
