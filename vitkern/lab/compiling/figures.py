"""The figures that are kept of a compiled kernel, and what counts as a regression."""

from collections.abc import Iterable
from typing import TypeVar

from vitkern.lab.compiling.compiled import Compiled
from vitkern.lab.compiling.digest import Launch

REGISTERS = 8  # more than this many more registers fail
LOOP_FAILS, LOOP_WARNS = 1.10, 1.05  # instructions of the innermost loop, over the golden ones

Figures = dict[str, int | str | dict[str, int]]
Kernel = TypeVar("Kernel", Compiled, Launch)
KINDS = dict(
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


def labelled(kernels: Iterable[Kernel]) -> dict[str, Kernel]:
    """The kernels of a cell by label; the second of equal labels is ``label #2``. The same kernel over another grid is
    the first one."""
    found = {}
    for kernel in kernels:
        label, count = kernel.label, 1
        while label in found and found[label].key != kernel.key:
            count += 1
            label = f"{kernel.label} #{count}"
        found.setdefault(label, kernel)
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
