"""What is wrong with cells, compiled or recorded, and which of them may become golden."""

from collections.abc import Iterable
from dataclasses import dataclass

from vitkern.lab.compiling import digest, exceptions, golden
from vitkern.lab.compiling.recorded import Recorded
from vitkern.lab.compiling.workers import Cell, Done

Lines = dict[str, list[str]]  # by kind
FAULTS = ("failures", "problems", "regressions", "unlisted", "unsealed", "unrecorded")
LASTING = FAULTS[:2]  # that no golden figures would mend


@dataclass(frozen=True)
class Judge:
    known: golden.Golden
    now: dict[Cell, list[digest.Launch]]  # what cells launch
    unknown: dict[Cell, str]  # why that is not known
    lacking: set[int]  # architectures that are not compared with ``known``

    def recorded(self, cell: Cell, kernels: list[Recorded]) -> Lines:
        """Faults of a cell that was not compiled."""
        return {"problems": exceptions.unexcused(*cell, kernels)}

    def compiled(self, done: Done) -> Lines:
        """Faults of one that was, and ``drifts``, which are none."""
        cell = done.cell
        if done.failed:
            return {"failures": [f"did not compile: {done.failed}"]}
        if cell in self.unknown:
            return {"failures": [f"compiled, but has no digest: {self.unknown[cell]}"]}
        lines = {"problems": exceptions.unexcused(*cell, done.kernels)}
        if cell[1] not in self.lacking:
            lines["regressions"], lines["drifts"], lines["unlisted"] = golden.compare(self.known, cell, done.kernels)
        if golden.is_broken(self.known, cell):
            lines["unsealed"] = ["its golden figures or their digest are not what was sealed"]
        elif self.known.triton == golden.installed() and cell in self.known.entries:
            recorded, now = self.known.entries[cell].digest, digest.of_cell(self.now[cell])
            lines["unrecorded"] = [f"digest {now}, golden {recorded}"] if now != recorded else []
        return lines

    def golden(self, found: Iterable[Done]) -> dict[Cell, golden.Entry]:
        """Of what compiled, the cells that may become golden: they have no fault but that they differ from what was."""
        return {
            done.cell: golden.measured(done.cell, digest.of_cell(self.now[done.cell]), done.kernels)
            for done in found
            if not any(self.compiled(done).get(kind) for kind in LASTING)
        }
