"""Cells whose golden figures are of the very sources that there are now, so that they need not be compiled."""

from collections.abc import Iterable
from dataclasses import dataclass

from vitkern.lab.compiling import digest, golden, limits
from vitkern.lab.compiling.figures import Figures, labelled
from vitkern.lab.compiling.workers import Cell


@dataclass(frozen=True)
class Recorded:
    """A kernel that is taken as recorded."""

    launch: digest.Launch
    arch: int
    figures: Figures

    @property
    def name(self) -> str:
        return self.launch.name

    @property
    def label(self) -> str:
        return self.launch.label

    @property
    def num_warps(self) -> int:
        return self.launch.num_warps

    @property
    def num_stages(self) -> int:
        return self.launch.num_stages

    def problems(self) -> list[str]:
        """As `Compiled.problems`, of what figures tell. The others it had none of: such a cell is not recorded."""
        return limits.exceeded(
            self.arch,
            shared=self.figures["shared"],
            spills=self.figures["spills"],
            stack=self.figures["stack"],
            widest_load=self.figures["load"],
            half_input=self.launch.half_input,
        )


def launched(cells: Iterable[Cell]) -> tuple[dict[Cell, list[digest.Launch]], dict[Cell, str]]:
    """What cells would compile; and in one line why it is not known of the others, whose op fails, or launches nothing,
    or a kernel of which has no digest."""
    from vitkern.lab.compiling.matrix import launches

    every, sources = launches(), digest.Sources()
    found, unknown = {}, {}
    for name, arch in cells:
        try:
            if caught := digest.launches_of(every[name].run, arch, sources):
                found[name, arch] = caught
            else:
                unknown[name, arch] = "nothing is launched"
        except Exception as error:
            unknown[name, arch] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
    return found, unknown


def take(known: golden.Golden, now: dict[Cell, list[digest.Launch]]) -> dict[Cell, list[Recorded]]:
    """The cells that are recorded as they are ``now``, under the seal; none with another version of Triton."""
    found = {}
    for (name, arch), launches in now.items():
        entry, kernels = known.entries.get((name, arch)), labelled(launches)
        same = entry is not None and entry.digest == digest.of_cell(launches) and entry.kernels.keys() == kernels.keys()
        if same and known.triton == golden.installed() and not golden.is_broken(known, (name, arch)):
            found[name, arch] = [Recorded(one, arch, entry.kernels[label]) for label, one in kernels.items()]
    return found
