"""report: recorded runs as a Markdown page with PNG pictures.

python -m benchmarks report benchmarks/results/amd-epyc/*.json --out FOLDER
"""

import importlib.util
import os
import re
import tempfile
from pathlib import Path

from benchmarks import ceilings, results, scale
from benchmarks.rows import OURS, Row
from benchmarks.tables import figures, gpus_of
from vitkern.report import BadInput, memory, progress, seconds

PREFACE = (
    "Each result was verified against float64 before it was timed. Times are medians, ± the interquartile range over "
    "the median. *Of the ceiling*: the time that this device needs for the same bytes at the speed of a large copy, or "
    "for the same useful operations at that of a large matrix product, whichever is longer, over the time taken; both "
    "were measured in the same run. *Padded* counts what the compiled kernels multiply, padding and recomputation with "
    "it. A column called uncalibrated holds lower bounds from compiled code, and nothing in it was timed."
)


DETAILS = dict(threads="threads", clock="for the operators' time")


def add_arguments(parser) -> None:
    parser.add_argument("results", nargs="+", type=Path, help="files that --save wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for report.md and its pictures")


def run(arguments) -> int:
    if importlib.util.find_spec("matplotlib") is None:
        raise BadInput("the pictures need matplotlib, which is not installed. Install it: pip install matplotlib.")
    recorded = {path: results.load(path) for path in arguments.results}
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out is no folder that can be written: {arguments.out}: {error.strerror}") from None
    parts = ["# vitkern: recorded benchmarks", "", PREFACE, ""]
    page = arguments.out / "report.md"
    with tempfile.TemporaryDirectory(dir=arguments.out) as new:  # all of it is there, or what was before
        for path, run_ in recorded.items():
            progress(f"{path}")
            parts += section(path, run_["environment"], run_["results"], Path(new))
        Path(new, page.name).write_text("\n".join(parts).rstrip() + "\n")
        for file in Path(new).iterdir():
            os.replace(file, arguments.out / file.name)
    pictures = {part for line in parts for part in re.findall(r"\]\((.*\.png)\)", line)}
    print(f"wrote {page} and {len(pictures)} pictures")
    return 0


def section(path: Path, environment: dict, rows: list[Row], out: Path) -> list[str]:
    """The part of the page about one run, with its pictures written to ``out``."""
    name = _slug(f"{path.parent.name}-{path.stem}")
    lines = [f"## {path.parent.name}: {path.stem}", "", _environment(environment), ""]
    operators = [row for row in rows if row.op != "models" and not row.op.startswith("scale-")]
    for op in dict.fromkeys(row.op for row in operators):
        lines += _operator([row for row in operators if row.op == op], environment, f"{name}-{op}", out)
    lines += _roofline(operators, environment, name, out)
    models = [row for row in rows if row.op == "models"]
    sweeps = [row for row in rows if row.op.startswith("scale-")]
    return lines + (_models(models, name, out) if models else []) + (_sweeps(sweeps, name, out) if sweeps else [])


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _environment(found: dict) -> str:
    versions = found.get("versions", {})
    parts = [found["device"], *(f"{found[name]} {what}" for name, what in DETAILS.items() if name in found)]
    parts += [f"{key} {versions[key]}" for key in ("torch", "triton", "timm") if versions.get(key)]
    for dtype, best in found.get("ceilings", {}).items():
        parts.append(f"copy {best['copy'] / 1e9:,.1f} GB/s")
        parts.append(f"{dtype} matrix product {best['matmul'] / 1e12:,.3g} TFLOP/s")
    return ", ".join(part for part in parts if part) + "."


def _table(header: tuple, rows: list[tuple]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows] + [""]


def _operator(rows: list[Row], environment: dict, name: str, out: Path) -> list[str]:
    """What vitkern reached, what every contender took, and how they compare, of one operator."""
    from benchmarks import plots

    ours = [row for row in rows if row.contender == OURS]
    timed = [row for row in ours if row.seconds is not None]
    reached = [
        {"case": row.case, "mode": row.mode, "dtype": row.dtype, "batch": row.batch}
        | figures(row, rows, ceilings.of_run(environment, row.dtype), gpus_of(timed))
        for row in timed
    ]
    table = _table(tuple(reached[0]), [tuple(line.values()) for line in reached]) if reached else []
    lines = [f"### {rows[0].op}", "", *table]
    lines += [f"- {row.case}, {row.mode}, {row.dtype}: {row.note}" for row in ours if row.note]
    lines += ["", *_contenders(rows)]
    for mode in dict.fromkeys(row.mode for row in timed):
        bars = plots.best_peers([row for row in rows if row.mode == mode])
        title = f"{rows[0].op}, {mode}: speed over peers, {environment['device']}"
        lines += _bars(bars, out / f"{_slug(f'{name}-{mode}')}-speed", title=title)
    return lines


def _bars(bars: dict[str, dict[str, float]], stem: Path, *, title: str, **named: str) -> list[str]:
    """Pictures of at most a page each."""
    from benchmarks import plots

    lines, parts = [], plots.pages(bars)
    for i, part in enumerate(parts, 1):
        number, of = (f"-{i}", f", {i} of {len(parts)}") if len(parts) > 1 else ("", "")
        picture = plots.speed_ups(part, stem.with_name(f"{stem.name}{number}.png"), title=title + of, **named)
        lines += [f"![{title}{of}]({picture.name})", ""]
    return lines


def _contenders(rows: list[Row]) -> list[str]:
    """A column a contender; a number in brackets refers to the note on why there is no figure, or what is wrong."""
    names = [name for name in dict.fromkeys(row.contender for row in rows)]
    if len(names) < 2:
        return []
    notes = list(dict.fromkeys(row.note for row in rows if row.note and row.contender != OURS))
    cases = {}
    for row in rows:
        time = "-" if row.seconds is None else seconds(row.seconds)
        mark = f" [{notes.index(row.note) + 1}]" if row.note in notes else ""
        cases.setdefault(row.key, {})[row.contender] = ("**wrong** " if row.is_wrong else "") + time + mark
    table = [(key[1], key[2], *(times.get(name, "-") for name in names)) for key, times in cases.items()]
    lines = _table(("case", "mode", *names), table)
    return lines + [f"{i}. {note}" for i, note in enumerate(notes, 1)] + [""]


def _roofline(rows: list[Row], environment: dict, name: str, out: Path) -> list[str]:
    from benchmarks import plots

    lines = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        best = ceilings.of_run(environment, dtype)
        points = [r for r in rows if r.contender == OURS and r.seconds is not None and r.moved and r.dtype == dtype]
        if best and points:
            title = f"Roofline, {dtype}, {environment['device']}"
            picture = plots.rooflines(points, best, out / f"{name}-{dtype}-roofline.png", title=title)
            lines += [f"![{title}]({picture.name})", ""]
    return lines


def _models(rows: list[Row], name: str, out: Path) -> list[str]:
    from benchmarks import plots

    table = [
        (row.case, row.mode, row.dtype, row.contender, f"{seconds(row.seconds)} ± {row.spread:.0%}",
         f"{row.batch / row.seconds:.1f}", memory(row.peak), row.note or "1.00x")
        if row.seconds else (row.case, row.mode, row.dtype, row.contender, "-", "-", "-", row.note)
        for row in rows
    ]  # fmt: skip
    header = ("model", "mode", "dtype", "", "median", "images/s", "peak memory", "speed (quartiles)")
    lines = ["### Whole models and blocks", "", *_table(header, table)]
    for mode in dict.fromkeys(row.mode for row in rows):
        bars = plots.gains([row for row in rows if row.mode == mode])
        named = dict(label="{}", axis="times as fast as the first of the table")
        lines += _bars(bars, out / f"{name}-models-{mode}", title=f"Whole models and blocks, {mode}", **named)
    return lines


def _sweeps(rows: list[Row], name: str, out: Path) -> list[str]:
    from benchmarks import plots

    lines, table = [], []
    for sweep, mode in dict.fromkeys((row.case.rsplit(" ", 1)[0], row.mode) for row in rows):
        chosen = [row for row in rows if (row.case.rsplit(" ", 1)[0], row.mode) == (sweep, mode)]
        for contender, (time, peak) in scale.fitted(chosen).items():
            size, why = scale.largest(chosen, contender)
            table.append((sweep, mode, contender, f"{time:.2f}", f"{peak:.2f}", size or "-", why or "the sweep's end"))
        for of_memory, kind in ((False, "time"), (True, "memory")):
            path, title = out / f"{name}-{sweep}-{mode}-{kind}.png", f"{sweep}, {mode}"
            picture = plots.scaling(chosen, path, title=title, memory=of_memory)
            lines += [f"![{title}, {kind}]({picture.name})", ""]
    header = ("sweep", "mode", "", "exponent of time", "exponent of peak memory", "largest that ran", "ended by")
    return ["### Growth", "", *_table(header, table), *lines]
