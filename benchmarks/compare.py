"""compare: two recorded runs, and what got slower by more than their noise."""

from pathlib import Path

from benchmarks import results
from benchmarks.rows import OURS, Row
from vitkern.report import BadInput, seconds, table

LEAST = 1.05  # a change below this is never called one
SLOWER = "SLOWER"
GONE = "GONE"
NOTHING_COMMON = "the two runs hold no case in common: they differ in operators, cases, modes, dtypes or batches"


def add_arguments(parser) -> None:
    parser.add_argument("before", type=Path, help="a recorded run")
    parser.add_argument("after", type=Path, help="a later one, on the same device")
    parser.add_argument("--all", action="store_true", help="every contender, not only vitkern")


def run(arguments) -> int:
    before, after = results.load(arguments.before), results.load(arguments.after)
    results.same_device(before["environment"]["device"], {str(arguments.after): after["environment"]})
    for line in changed_versions(before["environment"], after["environment"]):
        print(line)
    slower, pairs = show(before["results"], after["results"], every=arguments.all)
    print(f"verdict: {slower} of {pairs} slower beyond noise or gone")
    return 1 if slower else 0


def show(before: list[Row], after: list[Row], *, every: bool = False) -> tuple[int, int]:
    """Print what both runs hold, before and after -> how many got slower or have no time any more, of how many.

    Raises:
        BadInput: they have no case in common.
    """
    pairs = matched(before, after, every=every)
    if not pairs:
        raise BadInput(NOTHING_COMMON)
    lines, slower = [], 0
    for old, new in pairs:
        said, name = verdict(old, new), (new.op, new.case, new.mode, new.dtype, new.contender)
        slower += said in (SLOWER, GONE)
        if said == GONE:
            lines.append((*name, seconds(old.seconds), "-", "-", "-", f"{said}: {new.note}"))
            continue
        ratio = f"{new.seconds / old.seconds:.2f}"
        lines.append((*name, seconds(old.seconds), seconds(new.seconds), ratio, f"{noise(old, new):.1%}", said))
    header = ("operator", "case", "mode", "dtype", "", "before", "after", "ratio", "noise", "")
    print(table(header, lines))
    return slower, len(pairs)


def check_common(before: list[Row], keys: set[tuple]) -> None:
    """
    Raises:
        BadInput: ``before`` holds no row of vitkern's that can be compared with one of ``keys``.
    """
    if not any(row.counts and row.contender == OURS and row.key in keys for row in before):
        raise BadInput(NOTHING_COMMON)


def changed_versions(before: dict, after: dict) -> list[str]:
    """A line for each package, and for the number of threads, that the two runs do not share."""
    old, new = (found["versions"] | {"threads": found.get("threads")} for found in (before, after))
    return [f"{name} was {old.get(name)} and is {new.get(name)}" for name in new if old.get(name) != new.get(name)]


def matched(before: list[Row], after: list[Row], *, every: bool = False) -> list[tuple[Row, Row]]:
    """Rows of one case and contender that both runs hold, and the first one timed."""
    old = {(row.key, row.contender): row for row in before if row.counts}
    return [
        (old[row.key, row.contender], row)
        for row in after
        if (every or row.contender == OURS) and (row.key, row.contender) in old
    ]


def noise(old: Row, new: Row) -> float:
    """Relative: the larger interquartile range of the two runs over its median."""
    return max(old.spread, new.spread)


def verdict(old: Row, new: Row) -> str:
    """`SLOWER`, "faster" or "same": a change counts from 5 % and from the noise of either run. `GONE` where there is no
    time any more, or a wrong result."""
    if not new.counts:
        return GONE
    ratio, least = new.seconds / old.seconds, max(LEAST, 1 + noise(old, new))
    return SLOWER if ratio > least else "faster" if ratio < 1 / least else "same"
