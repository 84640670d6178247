"""report: recorded runs as a Markdown page with PNG pictures.

python -m benchmarks report benchmarks/results/*/*.json --out FOLDER
"""

import importlib.util
import re
from pathlib import Path

import torch

from benchmarks import results, roofline
from benchmarks.cases import CASES
from benchmarks.measure import OURS, Row
from vitkern.report import BadInput, memory, progress, seconds


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
    parts = ["# vitkern: recorded benchmarks", ""]
    for path, run_ in recorded.items():
        progress(f"{path}")
        parts += section(path, run_["environment"], run_["results"], arguments.out)
    page = arguments.out / "report.md"
    page.write_text("\n".join(parts).rstrip() + "\n")
    print(f"wrote {page} and {len(list(arguments.out.glob('*.png')))} pictures")
    return 0


def section(path: Path, environment: dict, rows: list[Row], out: Path) -> list[str]:
    """The part of the page about one run, with its pictures written to ``out``."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{path.parent.name}-{path.stem}".lower()).strip("-")
    versions = environment.get("versions", {})
    shown = ", ".join(f"{key} {versions[key]}" for key in ("torch", "triton", "timm") if versions.get(key))
    lines = [f"## {path.parent.name}: {path.stem}", "", f"{environment['device']}; {shown}.", ""]
    operators = [row for row in rows if row.op != "models" and not row.op.startswith("scale-")]
    models = [row for row in rows if row.op == "models"]
    sweeps = [row for row in rows if row.op.startswith("scale-")]
    if operators:
        lines += _operators(operators, environment, name, out)
    if models:
        lines += _models(models, name, out)
    if sweeps:
        lines += _sweeps(sweeps, name, out)
    return lines


def _table(header: tuple, rows: list[tuple]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows] + [""]


def _operators(rows: list[Row], environment: dict, name: str, out: Path) -> list[str]:
    from benchmarks import plots

    cases = {str(case): case for case in CASES}
    peaks = roofline.peaks_named(environment["device"])
    table, points = [], []
    for row in (row for row in rows if row.contender == OURS):
        if row.seconds is None:
            table.append((row.op, row.case, row.mode, row.dtype, row.batch, row.note, "", "", "", ""))
            continue
        peers = {r.contender: r.seconds for r in rows if results.key(r) == results.key(row) and r.seconds}
        del peers[OURS]
        best = min(peers, key=peers.get, default=None)
        share = "n/a"
        if row.case in cases and peaks:
            case, dtype = cases[row.case], getattr(torch, row.dtype)
            share = f"{roofline.bound(case, row.batch, dtype, row.mode, peaks) / row.seconds:.0%}"
            points.append((row, *roofline.work(case, row.batch, dtype.itemsize, row.mode)))
        gain = (best, f"{peers[best] / row.seconds:.2f}x") if best else ("-", "-")
        figures = (f"{seconds(row.seconds)} ± {row.spread:.0%}", share, memory(row.peak), *gain)
        table.append((row.op, row.case, row.mode, row.dtype, row.batch, *figures))
    header = (
        "operator",
        "case",
        "mode",
        "dtype",
        "batch",
        "vitkern",
        "of the roofline",
        "peak",
        "fastest peer",
        "speed",
    )
    lines = _table(header, table)
    bars = plots.best_peers(rows)
    if bars:
        picture = plots.speed_ups(bars, out / f"{name}-speed.png", title=f"Speed over peers, {environment['device']}")
        lines += [f"![speed over peers]({picture.name})", ""]
    if points:
        picture = plots.rooflines(
            points, peaks, out / f"{name}-roofline.png", title=f"Roofline, {environment['device']}"
        )
        lines += [f"![roofline]({picture.name})", ""]
    return lines


def _models(rows: list[Row], name: str, out: Path) -> list[str]:
    from benchmarks import plots

    table = [
        (row.case, row.mode, row.dtype, row.contender, f"{seconds(row.seconds)} ± {row.spread:.0%}",
         f"{row.batch / row.seconds:.1f}", memory(row.peak), row.note or "1.00x")
        for row in rows if row.seconds
    ]  # fmt: skip
    header = ("model", "mode", "dtype", "", "median", "images/s", "peak memory", "speed (quartiles)")
    lines = _table(header, table)
    bars = plots.best_peers(rows)
    if bars:
        picture = plots.speed_ups(bars, out / f"{name}-models.png", title="Whole models")
        lines += [f"![whole models]({picture.name})", ""]
    return lines


def _sweeps(rows: list[Row], name: str, out: Path) -> list[str]:
    from benchmarks import plots, scale

    lines, table = [], []
    for sweep in dict.fromkeys(row.case.rsplit(" ", 1)[0] for row in rows):
        chosen = [row for row in rows if row.case.rsplit(" ", 1)[0] == sweep]
        for contender, (time, peak) in scale.fitted(chosen).items():
            largest = max((scale.size_of(r) for r in chosen if r.contender == contender and r.seconds), default="-")
            table.append((sweep, contender, f"{time:.2f}", f"{peak:.2f}", largest))
        for of_memory, kind in ((False, "time"), (True, "memory")):
            path = out / f"{name}-{sweep}-{kind}.png"
            picture = plots.scaling(chosen, path, title=sweep, memory=of_memory)
            lines += [f"![{sweep}, {kind}]({picture.name})", ""]
    header = ("sweep", "", "exponent of time", "exponent of peak memory", "largest that ran")
    return _table(header, table) + lines
