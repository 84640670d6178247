"""Splits test files into shares that take about as long, by the seconds of each file when it was last recorded, reads
what pytest says of how long it took, and draws a part of cases.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

RECORD = Path(__file__).with_name("durations.json")  # file -> seconds


def shares(files: Iterable[str], count: int) -> list[list[str]]:
    """``files`` in ``count`` lists, the longest list first; a file without a record counts as the median one."""
    seconds = json.loads(RECORD.read_text())
    usual = median(seconds.values())
    found: list[list[str]] = [[] for _ in range(count)]
    sums = [0.0] * count
    for file in sorted(files, key=lambda file: (-seconds.get(file, usual), file)):
        shortest = sums.index(min(sums))
        found[shortest].append(file)
        sums[shortest] += seconds.get(file, usual)
    return [sorted(share) for _, share in sorted(zip(sums, found, strict=True), key=lambda pair: -pair[0])]


def part(cases: Iterable[str], of: int, seed: object) -> set[str]:
    """One in ``of`` of the cases, rounded up or down by chance: one alone is drawn once in ``of`` times."""
    drawn, names = random.Random(str(seed)), sorted(cases)
    return set(drawn.sample(names, int(len(names) / of + drawn.random())))


def tests_of(report: Path) -> list[tuple[float, str, str]]:
    """(seconds, file, name) of each test of one run, the longest first; none where pytest did not come to its end."""
    if not report.exists():
        return []
    cases = ElementTree.parse(report).iter("testcase")
    return sorted(((float(case.get("time")), case.get("file", ""), case.get("name")) for case in cases), reverse=True)


def record(reports: Iterable[Path]) -> None:
    """Replace what is known of the files that ran."""
    ran: Counter[str] = Counter()
    for report in reports:
        for seconds, file, _ in tests_of(report):
            ran[file] += seconds
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    known |= {file: round(seconds, 1) for file, seconds in ran.items() if file}
    there = {file: seconds for file, seconds in sorted(known.items()) if (RECORD.parent.parent / file).exists()}
    RECORD.write_text(json.dumps(there, indent=1) + "\n")
