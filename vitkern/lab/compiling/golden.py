"""Golden figures of compiled kernels, one JSON file for each Triton minor, and what counts as a regression.

A file holds all architectures, or those that run with that minor.

A change of a golden file is a decision: ``python -m vitkern lab compile --update`` writes it, and its difference is
read before it is committed. Compilers drift, so figures of another Triton minor say nothing.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from vitkern.lab.compiling import budget
from vitkern.lab.compiling.compiled import Compiled
from vitkern.lab.compiling.matrix import ARCHITECTURES
from vitkern.lab.compiling.workers import Done
from vitkern.report import BadInput

SCHEMA = 1
FOLDER = Path(__file__).parent / "golden"
REGISTERS = 8  # more than this many more registers fail
LOOP_FAILS, LOOP_WARNS = 1.10, 1.05  # instructions of the innermost loop, over the golden ones

Figures = dict[str, int | str | dict[str, int]]
Cells = dict[str, dict[str, dict[str, Figures]]]  # launch -> architecture -> kernel -> figures
_KINDS = dict(
    config=str, registers=int, spills=int, stack=int, shared=int, load=int, tensor=dict, loop=int, programs=int
)


def figures(kernel: Compiled) -> Figures:
    """What the golden file holds of a kernel: ``config`` is for the reader, the others are compared."""
    blocks = [value for value in kernel.constants if value.startswith("BLOCK_")]
    return dict(
        config=" ".join([f"w{kernel.all_warps} s{kernel.num_stages}", *blocks]),
        registers=kernel.machine.registers,
        spills=kernel.spills,
        stack=kernel.machine.stack,
        shared=kernel.shared,
        load=kernel.widest_load,
        tensor=dict(sorted(kernel.machine.tensor.items())),
        loop=kernel.machine.loop,
        programs=kernel.programs,
    )


def labelled(kernels: Iterable[Compiled]) -> dict[str, Compiled]:
    """The kernels of a cell by label; the second of equal labels is ``label #2``."""
    found = {}
    for kernel in kernels:
        label, count = kernel.label, 1
        while label in found:
            count += 1
            label = f"{kernel.label} #{count}"
        found[label] = kernel
    return found


def _tensor_kinds(tensor: dict[str, int]) -> set[str]:
    """mfma instructions of different shapes are one kind."""
    return {"mfma" if "mfma" in name else name for name in tensor}


def regressions(now: Figures, golden: Figures) -> list[str]:
    """How ``now`` is worse than ``golden`` allows, a line each."""
    found = []
    for name, unit in (("spills", "spilled accesses"), ("stack", "bytes of stack")):
        if now[name] > golden[name]:
            found.append(f"{now[name]} {unit}, golden {golden[name]}")
    for kind in sorted(_tensor_kinds(golden["tensor"]) - _tensor_kinds(now["tensor"])):
        found.append(f"no {kind} instruction any more")
    if now["load"] < golden["load"]:
        found.append(f"widest global load is {now['load']} bits, golden {golden['load']}")
    if now["programs"] < golden["programs"]:
        found.append(f"{now['programs']} programs on a multiprocessor, golden {golden['programs']}")
    if now["registers"] > golden["registers"] + REGISTERS:
        found.append(f"{now['registers']} registers, golden {golden['registers']}")
    if now["loop"] > LOOP_FAILS * golden["loop"] > 0:
        found.append(f"{now['loop']} instructions in the loop, golden {golden['loop']}")
    return found


def drifts(now: Figures, golden: Figures) -> list[str]:
    """What grew, and is still allowed."""
    if LOOP_WARNS * golden["loop"] < now["loop"] <= LOOP_FAILS * golden["loop"]:
        return [f"{now['loop']} instructions in the loop, golden {golden['loop']}"]
    return []


def compare(cells: Cells, name: str, arch: int, kernels: list[Compiled]) -> tuple[list[str], list[str], list[str]]:
    """(regressions, drifts, unlisted) of one cell, a line each; unlisted: what the golden file lacks, or has too
    much."""
    golden = cells.get(name, {}).get(budget.name_of(arch), {})
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


def architectures(cells: Cells) -> set[int]:
    """Those that some launch has figures for."""
    names = {name for of_arch in cells.values() for name in of_arch}
    return {arch for arch in ARCHITECTURES if budget.name_of(arch) in names}


def without(cells: Cells, archs: Iterable[int]) -> Cells:
    """``cells`` less those of some architectures."""
    names = {budget.name_of(arch) for arch in archs}
    return {name: {arch: of_arch[arch] for arch in of_arch if arch not in names} for name, of_arch in cells.items()}


def merged(cells: Cells, done: Iterable[Done]) -> Cells:
    """``cells`` with the figures of what was compiled in their place; a cell that failed keeps what it had."""
    new = {name: dict(of_arch) for name, of_arch in cells.items() if of_arch}
    for one in done:
        if not one.failed:
            name, arch = one.cell
            now = {label: figures(kernel) for label, kernel in labelled(one.kernels).items()}
            new.setdefault(name, {})[budget.name_of(arch)] = now
    return new


def minor() -> str:
    """``3.9`` of the Triton that is installed."""
    import triton

    return ".".join(triton.__version__.split(".")[:2])


def path_of(version: str) -> Path:
    return FOLDER / f"triton-{version}.json"


def _check(content, version: str) -> Cells:
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"it has another schema, expected {SCHEMA}")
    if content.get("triton") != version:
        raise ValueError(f"it is of Triton {content.get('triton')!r}, expected {version!r}")
    for name, of_arch in content["cells"].items():
        for arch, kernels in of_arch.items():
            for label, values in kernels.items():
                for field, kind in _KINDS.items():
                    if type(values.get(field)) is not kind:
                        raise ValueError(f"{name}, {arch}, {label}: {field} is no {kind.__name__}")
    return content["cells"]


def load(version: str) -> Cells:
    """The golden figures of a Triton minor; none where there is no file.

    Raises:
        BadInput: the file is damaged.
    """
    path = path_of(version)
    if not path.exists():
        return {}
    try:
        return _check(json.loads(path.read_text()), version)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"the golden file is damaged: {path}: {error}. Restore it, or write it anew: remove it and run "
            "python -m vitkern lab compile --update."
        ) from None


def store(version: str, cells: Cells) -> Path:
    """Replace the golden file, whole or not at all; one line for each kernel, sorted, so that differences read well."""
    lines = [f'{{"schema": {SCHEMA}, "triton": {json.dumps(version)}, "cells": {{']
    names = sorted(cells)
    for i, name in enumerate(names):
        lines.append(f" {json.dumps(name)}: {{")
        archs = sorted(cells[name])
        for j, arch in enumerate(archs):
            kernels = sorted(cells[name][arch].items())
            rows = ",\n".join(f"   {json.dumps(label)}: {json.dumps(values)}" for label, values in kernels)
            lines.append(f"  {json.dumps(arch)}: {{\n{rows}\n  }}{',' * (j < len(archs) - 1)}")
        lines.append(f" }}{',' * (i < len(names) - 1)}")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=FOLDER, suffix=".tmp", delete=False) as file:
        file.write("\n".join([*lines, "}}", ""]))
    os.chmod(file.name, 0o644)
    os.replace(file.name, path_of(version))
    return path_of(version)
