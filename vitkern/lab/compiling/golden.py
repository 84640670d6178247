"""Golden figures of compiled kernels, one JSON file for each Triton minor: what they were when this was compiled.

A file holds all architectures, or those that run with that minor. Each cell, a launch for an architecture, has the
digest of what was compiled, so that one that has not changed need not be compiled again, and a seal over both, so that
a figure changed by hand shows. A seal keeps off mistakes and not intent: anybody can compute it.

A change of a golden file is a decision: ``python -m vitkern lab compile --update`` writes it, and its difference is
read before it is committed. Compilers drift, so figures of another Triton minor say nothing.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vitkern.lab import trees
from vitkern.lab.compiling import budget
from vitkern.lab.compiling.compiled import Compiled
from vitkern.lab.compiling.figures import KINDS, Figures, drifts, figures, labelled, regressions
from vitkern.lab.compiling.matrix import ARCHITECTURES
from vitkern.lab.compiling.workers import Cell
from vitkern.report import BadInput

SCHEMA = 2
FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Entry:
    """What is recorded of a launch for an architecture."""

    digest: str  # see `digest.of_cell`
    kernels: dict[str, Figures]  # by label
    seal: str


@dataclass(frozen=True)
class Golden:
    """A golden file. ``triton``: the version that compiled it, in full."""

    triton: str
    entries: dict[Cell, Entry] = field(default_factory=dict)

    @property
    def architectures(self) -> set[int]:
        """Those that some launch has figures for."""
        return {arch for _, arch in self.entries}


def _seal(cell: Cell, digest: str, kernels: dict[str, Figures]) -> str:
    return trees.digest(f"{cell[0]} {cell[1]} {digest}", json.dumps(kernels, sort_keys=True))


def sealed(cell: Cell, digest: str, kernels: dict[str, Figures]) -> Entry:
    return Entry(digest, kernels, _seal(cell, digest, kernels))


def is_broken(known: Golden, cell: Cell) -> bool:
    """The figures or the digest of a cell are not those that were sealed."""
    found = known.entries.get(cell)
    return found is not None and found.seal != _seal(cell, found.digest, found.kernels)


def compare(known: Golden, cell: Cell, kernels: list[Compiled]) -> tuple[list[str], list[str], list[str]]:
    """(regressions, drifts, unlisted) of one cell, a line each; unlisted: what the golden file lacks, or has too
    much."""
    golden = known.entries[cell].kernels if cell in known.entries else {}
    worse, grown, unlisted = [], [], []
    now = labelled(kernels)
    for label, kernel in now.items():
        if label not in golden:
            unlisted.append(f"{label} has no golden figures")
            continue
        worse += [f"{label}: {line}" for line in regressions(figures(kernel), golden[label])]
        grown += [f"{label}: {line}" for line in drifts(figures(kernel), golden[label])]
    unlisted += [f"{label} has golden figures, and is not launched" for label in golden if label not in now]
    return worse, grown, unlisted


def measured(cell: Cell, digest: str, kernels: Iterable[Compiled]) -> Entry:
    """What is to be recorded of a cell that was compiled."""
    return sealed(cell, digest, {label: figures(kernel) for label, kernel in labelled(kernels).items()})


def installed() -> str:
    """The version of Triton."""
    import triton

    return triton.__version__


def minor(version: str = "") -> str:
    """``3.9`` of a version of Triton, or of the one that is installed."""
    return ".".join((version or installed()).split(".")[:2])


def path_of(version: str) -> Path:
    return FOLDER / f"triton-{version}.json"


def _check(content, version: str) -> Golden:
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"it has another schema, expected {SCHEMA}")
    if minor(content["triton"]) != version:
        raise ValueError(f"it is of Triton {content['triton']!r}, expected {version!r}")
    archs, entries = {budget.name_of(arch): arch for arch in ARCHITECTURES}, {}
    for name, of_arch in content["cells"].items():
        for arch, entry in of_arch.items():
            for label, values in entry["kernels"].items():
                for field_name, kind in KINDS.items():
                    if type(values.get(field_name)) is not kind:
                        raise ValueError(f"{name}, {arch}, {label}: {field_name} is no {kind.__name__}")
            entries[name, archs[arch]] = Entry(str(entry["digest"]), entry["kernels"], str(entry["seal"]))
    return Golden(content["triton"], entries)


def load(version: str) -> Golden:
    """The golden figures of a Triton minor; none, of the version that is installed, where there is no file.

    Raises:
        BadInput: the file is damaged.
    """
    path = path_of(version)
    if not path.exists():
        return Golden(installed())
    try:
        return _check(json.loads(path.read_text()), version)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"the golden file is damaged: {path}: {error}. Restore it, or write it anew: remove it and run "
            "python -m vitkern lab compile --update."
        ) from None


def store(golden: Golden) -> Path:
    """Replace the file of a Triton minor, whole or not at all; one line for each kernel, sorted, so that differences
    read well."""
    launches = {}
    for (name, arch), entry in golden.entries.items():
        launches.setdefault(name, {})[budget.name_of(arch)] = entry
    blocks = []
    for name, of_arch in sorted(launches.items()):
        cells = ",\n".join(_lines(arch, entry) for arch, entry in sorted(of_arch.items()))
        blocks.append(f" {json.dumps(name)}: {{\n{cells}\n }}")
    head = f'{{"schema": {SCHEMA}, "triton": {json.dumps(golden.triton)}, "cells": {{\n'
    FOLDER.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=FOLDER, suffix=".tmp", delete=False) as file:
        file.write(head + ",\n".join(blocks) + "\n}}\n")
    os.chmod(file.name, 0o644)
    path = path_of(minor(golden.triton))
    os.replace(file.name, path)
    return path


def _lines(arch: str, entry: Entry) -> str:
    """A cell in the file."""
    rows = (f"   {json.dumps(label)}: {json.dumps(values)}" for label, values in sorted(entry.kernels.items()))
    head = f'  {json.dumps(arch)}: {{"digest": "{entry.digest}", "seal": "{entry.seal}", "kernels": {{'
    return "\n".join((head, ",\n".join(rows), "  }}"))
