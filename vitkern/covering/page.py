"""What came of all models, as a page in Markdown, as JSON, and in one line for each library."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vitkern.covering.examine import BROKE, DRIFTED, EXACT, LIMIT, NOT_RUN, OK, ROUNDING, Row
from vitkern.covering.running import FLOOR

Found = Mapping[str, Sequence[Row]]  # by library
STATUSES = (OK, ROUNDING, DRIFTED, BROKE, NOT_RUN)
HEAD = (
    "model",
    "attention swapped",
    "operators (modules)",
    "kept",
    "logits",
    "gradients",
    "train",
    "float64",
    "status",
)
LEAD = f"""\
# Coverage

What `vitkern.accelerate` makes of a small model of each family of other libraries, with random weights, on the CPU.
Made by `make coverage`; `python -m vitkern coverage PATTERN` does it for models by name.
{{versions}}.

* attention swapped: modules that compute attention, on vitkern afterwards, of all. Operators: of the swapped modules;
  where the CPU has no path of its own the original runs there, and the comparison says nothing about it.
* kept: classes that stay as they were, with the reason.
* logits, gradients: the largest difference from the model before, relative to the largest value of each output and of
  each gradient (at least {FLOOR:g} of the largest gradient), float32, eval mode, with and without gradients. train: of
  both in train mode, with the same random numbers. float64: of all these in float64, where one is over {LIMIT:g},
  unless the original has no float64.
* status: `{OK}`: no difference is over {LIMIT:g}. `{ROUNDING}`: one is, but in float64 it is under {EXACT:g}, or under
  what a change of the weights in their last bit does: the model amplifies rounding. `{DRIFTED}`: neither.
  `{BROKE}`: it raised, or state dict, restored classes or restored bits are others. `{NOT_RUN}`: the original cannot be
  built or run.
"""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Numbers of models. whole, part, untouched: of those with attention, by how much of it is swapped."""

    models: int
    attending: int
    whole: int
    part: int
    untouched: int
    statuses: dict[str, int]

    def __str__(self) -> str:
        states = ", ".join(f"{count} {status}" for status, count in self.statuses.items())
        return (
            f"{self.models} models, {self.attending} with attention: swapped whole {self.whole}, in part {self.part}, "
            f"untouched {self.untouched}; {states}"
        )


def summary(rows: Sequence[Row]) -> Summary:
    attending = [row for row in rows if row.attending]
    whole, untouched = (
        sum(row.swapped == row.attending for row in attending),
        sum(not row.swapped for row in attending),
    )
    statuses = {status: sum(row.status == status for row in rows) for status in STATUSES}
    part = len(attending) - whole - untouched
    return Summary(len(rows), len(attending), whole, part, untouched, statuses)


def markdown(found: Found, versions: Mapping[str, str]) -> str:
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = [LEAD.format(versions=said)]
    parts += [f"* {line}\n" for line in summaries(found)]
    for library, rows in found.items():
        parts.append(f"\n## {library}\n\n| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}\n")
        parts += [f"| {' | '.join(cells(row))} |\n" for row in rows]
    return parts[0] + "\n" + "".join(parts[1:])


def summaries(found: Found) -> list[str]:
    return [f"{library}: {summary(rows)}" for library, rows in found.items()]


def cells(row: Row) -> list[str]:
    """Of one line of the table, in the order of `HEAD`."""
    status = f"{row.status}: {row.remark}" if row.remark else row.status
    texts = [
        row.name,
        f"{row.swapped} / {row.attending}",
        _counted(row.operators, "{name} ({count})", ", "),
        _counted(row.kept, "{count}x {name}", "; "),
        *(_relative(value) for value in (row.logits, row.gradients, row.train, row.double)),
        status,
    ]
    return [text.replace("|", "\\|") for text in texts]


def as_json(found: Found, versions: Mapping[str, str]) -> str:
    libraries = {
        library: dict(dataclasses.asdict(summary(rows)), rows=[_finite(dataclasses.asdict(row)) for row in rows])
        for library, rows in found.items()
    }
    return json.dumps({"versions": dict(versions), "limit": LIMIT, "libraries": libraries}, indent=1) + "\n"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {name: "inf" if value == float("inf") else value for name, value in row.items()}


def _counted(counts: Mapping[str, int], form: str, between: str) -> str:
    return between.join(form.format(name=name, count=count) for name, count in counts.items())


def _relative(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.0e}"
