"""Fault injection: what share of deliberately broken kernels and launchers the laboratory finds.

A mutant is one file of kernels/ with one change. It is judged in a process of its own by a list of small problems under
the memory sanitizer (`checks`), then by the tests of its family. What nobody can find, because the program
computes the same, is listed as a survivor with the reason.
"""

import os
import time
from collections import defaultdict
from pathlib import Path

from vitkern.lab import records
from vitkern.lab.breaking.breaks import BREAKS, break_jobs
from vitkern.lab.breaking.judge import UNUSABLE
from vitkern.lab.breaking.mutations import Mutant, all_mutants, chosen, kernel_files
from vitkern.lab.breaking.nursery import Job, Verdict, judged
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.specimens import merged
from vitkern.report import BadInput, near_matches, progress, table

GOAL = 0.97


def add_arguments(parser) -> None:
    parser.add_argument("file", nargs="*", help="files of kernels/, with or without .py; all unless given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time; one per core")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N mutants of each file")
    parser.add_argument("--only", metavar="NAME", help="the one mutant of that name, also one outside the choice")
    parser.add_argument("--list", action="store_true", help="print the mutants and judge none")
    parser.add_argument("--breaks", action="store_true", help="the ten named breaks in place of mutants")


def run(arguments) -> int:
    for name in ("jobs", "limit"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise BadInput(f"mutants: --{name} is too small: got {value}; expected 1 or more.")
    if arguments.breaks:
        return _breaks(arguments)
    files = _files(arguments.file)
    mutants = [_named(arguments.only)] if arguments.only else _chosen(files, arguments.limit)
    if arguments.list:
        print(table(("mutant", "line", "change"), [(m.name, m.line, _shortened(m.change)) for m in mutants]))
        return 0
    return _judge(mutants, arguments, whole=not (arguments.file or arguments.limit or arguments.only))


def _files(names: list[str]) -> list[str]:
    known = kernel_files()
    found = []
    for name in names:
        asked = name.removesuffix(".py").removeprefix("kernels/")
        matches = [file for file in known if asked in (file, Path(file).stem)]
        if not matches:
            raise BadInput(
                f"mutants: no kernel file of that name: got {asked!r};{near_matches(asked, known)} "
                f"There are {', '.join(known)}."
            )
        found += matches
    return list(dict.fromkeys(found)) or list(known)


def _chosen(files: list[str], limit: int | None) -> list[Mutant]:
    known = kernel_files()
    return [mutant for file in files for mutant in chosen(known[file])[:limit]]


def _named(name: str) -> Mutant:
    stem, _, _ = name.partition(".")
    known = kernel_files()
    mutants = {mutant.name: mutant for file in known if Path(file).stem == stem for mutant in all_mutants(known[file])}
    if name not in mutants:
        near = near_matches(name, mutants or known)
        raise BadInput(f"mutants: no mutant of that name: got {name!r}.{near} --list prints the names.")
    return mutants[name]


def _judge(mutants: list[Mutant], arguments, *, whole: bool) -> int:
    started, total = time.perf_counter(), len(mutants)
    originals = [Job(f"original {file}", file) for file in dict.fromkeys(mutant.file for mutant in mutants)]
    jobs = [
        Job(m.name, m.file, {m.file: m.source}, tests=not listed(m), offsets=m.operator == "drop-int64")
        for m in mutants
    ]
    verdicts: dict[str, Verdict] = {}
    print(f"{total} mutants of {len(originals)} files, {arguments.jobs} at a time; first the files as they are")
    for verdict in judged([*originals, *jobs], arguments.jobs):
        verdicts[verdict.name] = verdict
        passed = time.perf_counter() - started
        progress(
            f"[{len(verdicts)}/{len(jobs) + len(originals)}] {verdict.name}: {verdict.by or 'alive'} ({passed:.0f} s)"
        )
        if verdict.killed and verdict.name.startswith("original "):
            raise BadInput(f"mutants: {verdict.name} fails unbroken: {verdict.by}. Mend that first.")
        if verdict.by.startswith(UNUSABLE):
            raise BadInput(f"mutants: {verdict.name}: {verdict.by}.")
    return _report(mutants, verdicts, time.perf_counter() - started, whole=whole)


def listed(mutant: Mutant) -> Survivor | None:
    """Its entry among the survivors of all specimens, if that is about this very change."""
    entry = merged("survivors").get(mutant.name)
    return entry if entry and entry.change == mutant.change else None


def _report(mutants: list[Mutant], verdicts: dict[str, Verdict], seconds: float, *, whole: bool) -> int:
    by_file, faults, details = defaultdict(list), [], {}
    for mutant in mutants:
        by_file[mutant.file].append(mutant)
    rows, killed, counted = [], 0, 0
    for file, own in by_file.items():
        entries = {mutant.name: listed(mutant) for mutant in own}
        dead = [mutant for mutant in own if verdicts[mutant.name].killed]
        equivalent = [mutant for mutant in own if entries[mutant.name] and entries[mutant.name].equivalent]
        alive = [mutant for mutant in own if not verdicts[mutant.name].killed and mutant not in equivalent]
        share = sum(mutant not in equivalent for mutant in dead), len(own) - len(equivalent)
        killed, counted = killed + share[0], counted + share[1]
        kernels, launchers = (sum(mutant.launcher is kind for mutant in own) for kind in (False, True))
        rate = share[0] / share[1] if share[1] else 1.0
        rows.append((file, kernels, launchers, share[0], len(equivalent), len(alive), f"{rate:.1%}"))
        details[file] = dict(kernel=kernels, launcher=launchers, killed=share[0], equivalent=len(equivalent), rate=rate)
        faults += [
            f"{mutant.name} survives and is not listed: {mutant.change}" for mutant in alive if not entries[mutant.name]
        ]
        faults += [f"{m.name} is listed and killed: {verdicts[m.name].by}" for m in dead if entries[m.name]]
    print(table(("file", "kernel", "launcher", "killed", "equivalent", "survived", "rate"), rows))
    living = [mutant for mutant in mutants if not verdicts[mutant.name].killed]
    for mutant in living:
        entry = listed(mutant)
        kind = "NOT LISTED" if entry is None else "equivalent" if entry.equivalent else "not found"
        print(
            f"{kind}  {mutant.name}: {_shortened(mutant.change)}" + (f"\n            {entry.reason}" if entry else "")
        )
    rate = killed / counted if counted else 1.0
    for fault in faults:
        print(f"FAILED  {fault}")
    passed = rate >= GOAL and not faults
    used = sum(verdict.seconds for verdict in verdicts.values())
    summary = f"{len(mutants)} mutants, {killed} of {counted} that differ found: {rate:.1%}"
    print(f"{used:.0f} s of one processor")
    print(f"verdict: {summary}; the goal is {GOAL:.0%}" + ("" if passed else "; FAILED"))
    if whole:
        names = [mutant.name for mutant in living]
        records.write(
            "mutants", passed=passed, summary=summary, seconds=seconds, files=details, survivors=names, rate=rate
        )
    return 0 if passed else 1


def _breaks(arguments) -> int:
    jobs, verdicts = break_jobs(), {}
    for verdict in judged(jobs, arguments.jobs):
        verdicts[verdict.name] = verdict
        progress(f"[{len(verdicts)}/{len(jobs)}] {verdict.name}")
    print(
        table(("break", "file", "found by"), [(job.name, job.file, verdicts[job.name].by or "nothing") for job in jobs])
    )
    passed = all(verdicts[job.name].killed == bool(job.sources) for job in jobs)
    found = sum(verdicts[name].killed for name in BREAKS)
    print(f"verdict: {found} of {len(BREAKS)} breaks found" + ("" if passed else "; FAILED"))
    return 0 if passed else 1


def _shortened(text: str, width: int = 140) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
