"""The pictures of the report: speed-up bars, roofline, scaling lines.

Colours are Okabe and Ito's, which colour-blind readers tell apart; hatches, markers and dashes tell the series apart in
grey print too.
"""

from pathlib import Path

from benchmarks import roofline, scale
from benchmarks.measure import OURS, Row
from benchmarks.results import key

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#000000")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")


def _figure(width: float, height: float):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), dpi=150, layout="constrained")
    axes.grid(True, which="major", axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _save(figure, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path)
    plt.close(figure)
    return path


def speed_ups(groups: dict[str, dict[str, float]], path: Path, *, title: str) -> Path:
    """Horizontal bars: case -> contender -> how many times as fast vitkern is."""
    contenders = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    height = 0.8 / max(1, len(contenders))
    figure, axes = _figure(8, 1.2 + 0.28 * len(groups) * max(1.0, 0.7 * len(contenders)))
    for i, contender in enumerate(contenders):
        rows = [(y, bars[contender]) for y, bars in enumerate(groups.values()) if contender in bars]
        axes.barh(
            [y + (i - (len(contenders) - 1) / 2) * height for y, _ in rows], [value for _, value in rows], height,
            label=f"over {contender}", color=COLOURS[i % 8], hatch=HATCHES[i % 8], edgecolor="white", linewidth=0.4,
        )  # fmt: skip
        for y, value in rows:
            place = y + (i - (len(contenders) - 1) / 2) * height
            axes.text(value, place, f" {value:.2f}", va="center", fontsize=6)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=7)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("times as fast (1: equal)")
    axes.set_title(title, loc="left", fontsize=10)
    figure.legend(fontsize=7, loc="outside lower center", ncol=min(4, len(contenders)), frameon=False)
    return _save(figure, path)


def rooflines(points: list[tuple[Row, float, float]], peaks: roofline.Peaks, path: Path, *, title: str) -> Path:
    """``points``: (row, bytes, FLOPs), against the ceilings of a device."""
    figure, axes = _figure(7, 4.5)
    intensities = [flops / moved for _, moved, flops in points]
    left, right = min(intensities) / 2, max(*intensities, peaks.half / peaks.memory) * 2
    grid = [left * (right / left) ** (i / 99) for i in range(100)]
    axes.plot(
        grid, [min(x * peaks.memory, peaks.half) / 1e12 for x in grid], color="black", label="ceiling, data sheet"
    )
    for i, op in enumerate(dict.fromkeys(row.op for row, _, _ in points)):
        chosen = [(flops / moved, flops / row.seconds / 1e12) for row, moved, flops in points if row.op == op]
        axes.scatter(*zip(*chosen, strict=True), s=22, marker=MARKERS[i % 8], color=COLOURS[i % 8], label=op)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte that must move")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(fontsize=7)
    return _save(figure, path)


def scaling(rows: list[Row], path: Path, *, title: str, memory: bool) -> Path:
    """Time, or peak memory, of one sweep against its size; both axes logarithmic."""
    figure, axes = _figure(6, 3.8)
    for i, contender in enumerate(dict.fromkeys(row.contender for row in rows)):
        timed = [row for row in rows if row.contender == contender and row.seconds is not None]
        points = [(scale.size_of(row), row.peak / 2**20 if memory else row.seconds * 1e3) for row in timed
                  if not memory or row.peak]  # fmt: skip
        if points:
            label = f"{contender} (grows as ^{scale.fitted(timed)[contender][memory]:.2f})"
            axes.plot(
                *zip(*points, strict=True), marker=MARKERS[i], linestyle=DASHES[i % 4], color=COLOURS[i], label=label
            )
    sizes = sorted({scale.size_of(row) for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
    axes.set_xticks([], minor=True)
    axes.set_yscale("log")
    axes.set_xlabel(rows[0].case.rsplit(" ", 1)[0].rsplit("-", 1)[1])
    axes.set_ylabel("peak memory, MiB" if memory else "time, ms")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(fontsize=8)
    return _save(figure, path)


def best_peers(rows: list[Row]) -> dict[str, dict[str, float]]:
    """case -> contender -> how many times as fast vitkern is, for every contender that was timed."""
    found = {}
    for ours in (row for row in rows if row.contender == OURS and row.seconds):
        name = f"{ours.case}, {ours.mode}"
        others = [row for row in rows if row.contender != OURS and row.seconds and key(row) == key(ours)]
        if others:
            found[name] = {row.contender: row.seconds / ours.seconds for row in others}
    return found
