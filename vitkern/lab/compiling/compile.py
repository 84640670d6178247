"""compile: what models launch, compiled for five architectures, against golden figures.

A launch for an architecture whose sources are those of its golden figures (`digest`) is not compiled: its figures are
taken as recorded, and judged by what `exceptions` lists. Of the others, per kernel: what it needs of a multiprocessor,
its instructions, problems that `exceptions` does not list, what is worse than the golden figures of this Triton minor,
and a lower bound of its time, which is uncalibrated. Where a minor has no golden figures of an architecture its
problems are checked alone, unless --arch asks for it.
"""

import time

from vitkern.lab import records
from vitkern.lab.compiling import budget, estimate, golden, judging, recorded, workers
from vitkern.lab.compiling.compiled import Compiled, compile_launches
from vitkern.lab.compiling.figures import labelled
from vitkern.lab.compiling.matrix import ARCHITECTURES, archs_of
from vitkern.report import BadInput, near_matches, progress, seconds

__all__ = ["Compiled", "compile_launches"]

HEADER = (
    f"{'kernel':<44} {'arch':>6} {'w/s':>5} {'regs':>4} {'spills':>6} {'stack':>6} {'shared':>7} {'/SM':>3} "
    f"{'loop':>5} {'code':>6} {'turn bound, cycles':>18}  {'tensor cores; global loads':<50} "
    f"at least, {estimate.LABEL} (roofline)"
)


def row(label: str, kernel: Compiled) -> str:
    """One line of the table."""
    m, turn = kernel.machine, estimate.turn_bounds(kernel)
    pipe = max(turn, key=turn.get)
    tensor = " ".join(f"{name}*{count}" for name, count in m.tensor.items()) or "-"
    loads = " ".join(f"{bits}b*{count}" for bits, count in sorted(m.loads.items(), reverse=True)) or "-"
    times = ", ".join(
        f"{gpu} {seconds(bound.seconds)} {bound.by} ({seconds(bound.roofline)})"
        for gpu, bound in estimate.bounds(kernel).items()
    )
    return (
        f"{label:<44} {budget.name_of(kernel.arch):>6} w{kernel.all_warps} s{kernel.num_stages} {m.registers:>4} "
        f"{kernel.spills:>6} {m.stack:>6} {kernel.shared:>7} {kernel.programs:>3} {m.loop:>5} {m.instructions:>6} "
        f"{f'{pipe} {turn[pipe]:.0f}':>18}  {f'{tensor}; {loads}':<50} {times}"
    )


def add_arguments(parser) -> None:
    parser.add_argument("launch", nargs="*", help="parts of names of launches; all unless given")
    parser.add_argument(
        "--arch", nargs="+", default=[], help="of sm_80, sm_90, sm_100, sm_120, gfx942; all of a launch"
    )
    parser.add_argument("--jobs", type=int, default=0, help="worker processes (default: one per core)")
    parser.add_argument("--all", action="store_true", help="compile what is recorded as it is, too")
    parser.add_argument("--update", action="store_true", help="make what was compiled the golden figures")


def _architectures(given: list[str]) -> list[int]:
    known = {budget.name_of(arch): arch for arch in ARCHITECTURES} | {str(arch): arch for arch in ARCHITECTURES}
    for name in given:
        if name not in known:
            expected = ", ".join(budget.name_of(arch) for arch in ARCHITECTURES)
            raise BadInput(f"lab compile: unknown architecture: got {name!r}; expected {expected}.")
    return [known[name] for name in given]


def cells(parts: list[str], archs: list[int]) -> list[workers.Cell]:
    """What to compile: launches that one of ``parts`` is a part of, for ``archs`` or where the launch has its place.

    Raises:
        BadInput: no launch is called so.
    """
    from vitkern.lab.compiling.matrix import launches

    names = list(launches())
    for part in parts:
        if not any(part in name for name in names):
            raise BadInput(f"lab compile: no launch is called {part!r}.{near_matches(part, names)}")
    chosen = [name for name in names if any(part in name for part in parts or [""])]
    return [(name, arch) for name in chosen for arch in (archs or archs_of(name))]


def run(arguments) -> int:
    if arguments.jobs < 0:
        raise BadInput(f"lab compile: --jobs is negative: got {arguments.jobs}; expected at least 1, 0 for all cores.")
    begun, version = time.perf_counter(), golden.minor()
    asked = _architectures(arguments.arch)
    chosen = cells(arguments.launch, asked)
    known = golden.load(version)
    now, unknown = recorded.launched(chosen)
    taken = {} if arguments.all else recorded.take(known, now)
    progress(f"{len(taken)} of {len(chosen)} cells are recorded as they are")
    found = _compile([cell for cell in chosen if cell not in taken], arguments.jobs or workers.default_jobs())
    lacking = {arch for _, arch in chosen} - known.architectures - set(asked)
    nothing = f"no golden figures for Triton {version} of {', '.join(map(budget.name_of, sorted(lacking)))}"
    judge = judging.Judge(known, now, unknown, lacking)
    new = judge.golden(found) if arguments.update else {}
    lines = {cell: judge.recorded(cell, kernels) for cell, kernels in taken.items()}
    lines |= {done.cell: {} if done.cell in new else judge.compiled(done) for done in found}
    _print(found, {cell: lines[cell] for cell in chosen})
    if arguments.update:
        gone = set() if arguments.launch else {arch for _, arch in known.entries if not asked or arch in asked}
        kept = {cell: entry for cell, entry in known.entries.items() if cell in lines or cell[1] not in gone}
        path = golden.store(golden.Golden(golden.installed(), kept | new))
        print(f"golden figures of Triton {version} written: {path}")
    elif lacking:
        print(f"{nothing}: problems are checked, regressions are not; --update makes them")
    counts = {kind: sum(len(of_cell.get(kind, ())) for of_cell in lines.values()) for kind in judging.FAULTS}
    if counts["unrecorded"]:
        print(f"{counts['unrecorded']} cells are not recorded: python -m vitkern lab compile --update, and commit it")
    kernels = [kernel for launches in now.values() for kernel in launches]
    summary = (
        f"{len(chosen)} cells ({len(found)} compiled, {len(taken)} recorded), {len(kernels)} kernels "
        f"({len({kernel.key for kernel in kernels})} distinct), "
        + ", ".join(f"{count} {name}" for name, count in counts.items())
        + (f"; {nothing}" if lacking and not arguments.update else "")
    )
    took, passed = time.perf_counter() - begun, not any(counts.values())
    if not (arguments.launch or arguments.arch):
        done = dict(compiled=len(found), recorded=len(taken), cpu_seconds=_cpu(found))
        records.write("compile", passed=passed, summary=summary, seconds=took, **done, **counts)
    print(f"verdict: {'passed' if passed else 'FAILED'}: {summary}; {took:.0f} s")
    return 0 if passed else 1


def _compile(chosen: list[workers.Cell], jobs: int) -> list[workers.Done]:
    """The cells in the order given, announced as they finish."""
    begun, found = time.perf_counter(), {}
    for done in workers.compile_cells(chosen, jobs):
        found[done.cell] = done
        name, arch = done.cell
        what = done.failed or f"{len(done.kernels)} kernels"
        took = f"{done.cpu:.1f} CPU s, {time.perf_counter() - begun:.0f} s"
        progress(f"[{len(found)}/{len(chosen)}] {name} {budget.name_of(arch)}: {what} ({took})")
    return [found[cell] for cell in chosen]


def _cpu(found: list[workers.Done]) -> dict[str, float]:
    """CPU seconds of each architecture."""
    total = {}
    for done in found:
        name = budget.name_of(done.cell[1])
        total[name] = round(total.get(name, 0.0) + done.cpu, 1)
    return total


def _print(found: list[workers.Done], lines: dict[workers.Cell, judging.Lines]) -> None:
    """The table of what was compiled, and under each cell what is wrong with it."""
    compiled = {done.cell: done.kernels for done in found}
    if compiled:
        print(HEADER)
    for cell, of_cell in lines.items():
        wrong = [(kind, line) for kind in judging.FAULTS for line in of_cell.get(kind, ())]
        if cell in compiled or wrong:
            print(cell[0])
        for label, kernel in labelled(compiled.get(cell, ())).items():
            print(row("  " + label, kernel))
        for kind, line in wrong:
            print(f"    ! {kind.removesuffix('s')}: {line}")
    for (name, arch), of_cell in lines.items():
        for line in of_cell.get("drifts", ()):
            print(f"warning: {name}, {budget.name_of(arch)}, {line}")
