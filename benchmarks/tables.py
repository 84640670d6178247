"""What a run prints: a table of contenders, a table of what vitkern reached, and a table of models."""

import math

from torch.utils.benchmark import Compare, Measurement, TaskSpec

from benchmarks import static
from benchmarks.ceilings import Ceilings
from benchmarks.rows import OURS, Row, peers_of_row
from vitkern.report import memory, seconds, table

NONE = "n/a"


def _measurement(row: Row) -> Measurement:
    """For `torch.utils.benchmark.Compare`: a line per case, a column per contender."""
    task = TaskSpec(
        stmt="",
        setup="",
        label=f"{row.op} {row.mode} {row.dtype}",
        sub_label=f"{row.case} batch {row.batch}",
        description=row.contender,
    )
    return Measurement(1, [row.seconds if row.seconds is not None else math.nan], task)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}"


def gpus_of(rows: list[Row]) -> list[str]:
    """The columns of estimates that ``rows`` have."""
    return list(dict.fromkeys(gpu for row in rows for gpu in row.estimates))


def figures(row: Row, rows: list[Row], ceilings: Ceilings | None, gpus: list[str]) -> dict[str, str]:
    """What ``row`` reached, by column: rates, their shares of the ceilings, work, memory, the fastest of ``rows``."""
    found = {OURS: f"{seconds(row.seconds)} ± {row.spread:.0%}"}
    if ceilings and row.moved:
        found |= {
            "of the ceiling": _share(ceilings.bound(row), row.seconds),
            "GB/s": f"{row.moved / row.seconds / 1e9:,.1f}",
            "of copy": _share(row.moved / row.seconds, ceilings.copy),
            "TFLOP/s": f"{row.flops / row.seconds / 1e12:,.3g}",
            "of matmul": _share(row.flops / row.seconds, ceilings.matmul),
            "GFLOP": f"{row.flops / 1e9:,.3g}",
            "padded": NONE if row.padded is None else f"{row.padded / 1e9:,.3g}",
            "MB": f"{row.moved / 1e6:,.3g}",
        }
    times = dict(host=row.host, latency=row.latency)
    found |= dict(peak=memory(row.peak)) | {name: NONE if t is None else seconds(t) for name, t in times.items()}
    best = next(iter(peers_of_row(row, rows)), None)
    found |= {
        "fastest peer": best.contender if best else "-",
        "speed": f"{best.seconds / row.seconds:.2f}x" if best else "-",
    }
    bounds = {static.heading(gpu): row.estimates.get(gpu) for gpu in gpus}
    return found | {name: NONE if bound is None else seconds(bound) for name, bound in bounds.items()}


def print_operators(rows: list[Row], ceilings: Ceilings) -> None:
    timed = [row for row in rows if row.seconds is not None]
    if timed:
        compare = Compare([_measurement(row) for row in timed])
        compare.trim_significant_figures()
        compare.print()
    _print_notes(rows)
    lines = {
        (row.op, row.case, row.mode): figures(row, rows, ceilings, gpus_of(timed))
        for row in timed
        if row.contender == OURS
    }
    if lines:
        header = ("operator", "case", "mode", *next(iter(lines.values())))
        print(table(header, [(*name, *line.values()) for name, line in lines.items()]))
        print()


def _print_notes(rows: list[Row]) -> None:
    """Why there are no figures, or which are wrong, each reason once; whatever is said of vitkern itself in full."""
    for row in rows:
        if row.contender == OURS and row.note:
            print(f"{row.op}: {row.case} {row.mode} {row.dtype}: {row.note}")
    first = {(row.contender, row.note): row for row in reversed(rows) if row.note and row.contender != OURS}
    for (contender, note), row in first.items():
        kind = "no figure for" if row.seconds is None else "marked:"
        print(f"{kind} {contender} ({row.op}, first at {row.case} {row.mode}): {note}")


def print_models(rows: list[Row]) -> None:
    lines = []
    for row in rows:
        name = row.case, row.mode, row.contender
        if row.seconds is None:
            lines.append((*name, "-", "-", "-", "-", row.note))
            continue
        rate = f"{row.batch / row.seconds:.4g}"
        speed = row.note or "1.00x"
        lines.append((*name, seconds(row.seconds), f"{row.spread:.1%}", rate, memory(row.peak), speed))
    if lines:
        batches = ", ".join(sorted({str(row.batch) for row in rows}))
        print(f"whole models, {rows[0].dtype}, batch {batches}, in turn in one run; training is a whole step")
        print(table(("model", "mode", "", "median", "spread", "images/s", "peak memory", "speed (quartiles)"), lines))
        print()
