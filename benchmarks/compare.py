"""compare: two recorded runs, and what got slower by more than their noise."""

from pathlib import Path

from benchmarks import results
from benchmarks.measure import OURS, Row
from vitkern.report import BadInput, seconds, table

LEAST = 1.05  # a change below this is never called one


def add_arguments(parser) -> None:
    parser.add_argument("before", type=Path, help="a recorded run")
    parser.add_argument("after", type=Path, help="a later one, on the same device")
    parser.add_argument("--all", action="store_true", help="every contender, not only vitkern")


def run(arguments) -> int:
    before, after = results.load(arguments.before), results.load(arguments.after)
    devices = [recorded["environment"]["device"] for recorded in (before, after)]
    if devices[0] != devices[1]:
        raise BadInput(
            f"{arguments.before} was measured on {devices[0]} and {arguments.after} on {devices[1]}: "
            "times of two devices are not comparable"
        )
    pairs = matched(before["results"], after["results"], every=arguments.all)
    if not pairs:
        raise BadInput(f"{arguments.before} and {arguments.after} hold no case in common")
    lines, slower = [], 0
    for old, new in pairs:
        said = verdict(old, new)
        slower += said == "SLOWER"
        ratio = f"{new.seconds / old.seconds:.2f}"
        name = (new.op, new.case, new.mode, new.dtype, new.contender)
        lines.append((*name, seconds(old.seconds), seconds(new.seconds), ratio, f"{noise(old, new):.1%}", said))
    header = ("operator", "case", "mode", "dtype", "", "before", "after", "ratio", "noise", "")
    print(table(header, lines))
    print(f"verdict: {slower} of {len(pairs)} slower beyond noise")
    return 1 if slower else 0


def matched(before: list[Row], after: list[Row], *, every: bool = False) -> list[tuple[Row, Row]]:
    """Rows of one case and contender that both runs timed."""
    old = {(*results.key(row), row.contender): row for row in before if row.seconds}
    return [
        (old[key], row)
        for row in after
        if row.seconds and (every or row.contender == OURS) and (key := (*results.key(row), row.contender)) in old
    ]


def noise(old: Row, new: Row) -> float:
    """Relative: the larger interquartile range of the two runs over its median."""
    return max(old.spread, new.spread)


def verdict(old: Row, new: Row) -> str:
    """ "SLOWER", "faster" or "same": a change counts from 5 % and from the noise of either run."""
    ratio, least = new.seconds / old.seconds, max(LEAST, 1 + noise(old, new))
    return "SLOWER" if ratio > least else "faster" if ratio < 1 / least else "same"
