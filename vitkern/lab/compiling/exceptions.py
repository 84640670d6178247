"""What is known to be imperfect in compiled kernels, as the specimens have it. One that is no longer needed is a
failure.

With Triton 3.6 every launch is compiled for sm_90, with 3.9 those that have their place there.
"""

from collections.abc import Iterable

from vitkern.lab.compiling import golden
from vitkern.lab.compiling.compiled import Compiled
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.recorded import Recorded
from vitkern.lab.specimens import merged

Cell = tuple[str, str, int]  # launch, kernel, architecture


def listed_for(version: str) -> dict[Cell, Excuse]:
    """The exceptions of a Triton minor."""
    every = merged("exceptions")
    return {cell: excuse for cell, excuse in every.items() if not excuse.tritons or version in excuse.tritons}


def unexcused(launch: str, arch: int, kernels: Iterable[Compiled | Recorded]) -> list[str]:
    """The problems of a cell that nobody has listed, and the exceptions that it does not need any more."""
    found, used = [], set()
    of_version = listed_for(golden.minor())
    listed = {key: value for key, value in of_version.items() if key[0] == launch and key[2] == arch}
    for kernel in kernels:
        key = launch, kernel.name, arch
        for problem in kernel.problems():
            if key in listed and problem.startswith(listed[key].begins):
                used.add(key)
            else:
                found.append(f"{kernel.label} w{kernel.num_warps} s{kernel.num_stages}: {problem}")
    found += [
        f"{key[1]}: the exception {excuse.begins!r} is no longer needed"
        for key, excuse in listed.items()
        if key not in used
    ]
    return found
