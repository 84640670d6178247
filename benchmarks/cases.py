"""The layers that are timed: those of the specimens, each of a model that people run."""

from fnmatch import fnmatchcase

from vitkern.lab.compiling.layer import Layer
from vitkern.lab.specimens import gathered
from vitkern.report import BadInput, near_matches

# In the order of the specimens, which is that of their names, and within one as it has them.
CASES: tuple[Layer, ...] = tuple(layer for layer in gathered("layers") if layer.timed)
OPS = tuple(dict.fromkeys(case.op for case in CASES))
KINDS: dict[str, type[Layer]] = {case.op: type(case) for case in CASES}  # operator -> class of its layers

CPU_SHARE = 32  # a GPU's batch over a CPU's

QUICK = tuple(case for case in CASES if case.quick)


def batch_for(case: Layer, *, gpu: bool, quick: bool) -> int:
    """Images in a timed call."""
    if quick:
        return 1
    return case.batch if gpu else max(1, case.batch // CPU_SHARE)


def chosen(patterns: list[str], cases=CASES) -> tuple[Layer, ...]:
    """The cases whose name holds one of ``patterns``, or matches it as a glob; all where there are none.

    Raises:
        BadInput: a pattern that is in no name.
    """

    def fits(case: Layer, pattern: str) -> bool:
        name = str(case).lower()
        return pattern.lower() in name or fnmatchcase(name, pattern.lower())

    for pattern in patterns:
        if not any(fits(case, pattern) for case in cases):
            near = near_matches(pattern, [str(case) for case in cases])
            raise BadInput(f"no case is called {pattern!r}.{near} The cases are listed by --list.")
    return tuple(case for case in cases if not patterns or any(fits(case, pattern) for pattern in patterns))
