"""The pictures of the report: speed-up bars, roofline, scaling lines.

Colours are Okabe and Ito's, which colour-blind readers tell apart; hatches, markers and dashes tell the series apart in
grey print too.
"""

from pathlib import Path

from benchmarks import scale
from benchmarks.ceilings import Ceilings
from benchmarks.models import BOTH, COMPILED
from benchmarks.peers import EAGER
from benchmarks.rows import OURS, Row, peers_of_row

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#000000")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p")  # no colour has one of them twice
STYLES = {  # contender -> place among colours and hatches, in every picture; it is the order of the bars too
    EAGER: 0, OURS: 0, COMPILED: 1, "FlexAttention": 2, BOTH: 2, "SDPA flash": 3, "SDPA efficient": 4, "SDPA cuDNN": 5,
    "SDPA math": 6,
}  # fmt: skip
BARS = 72  # of a picture that fits a printed page
DASHES = ("-", "--", "-.", ":")
FILLS = dict(forward=None, backward="none", training="#DDDDDD")
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
NEAR_TICKS = (0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4)


def _figure(width: float, height: float):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), dpi=150, layout="constrained")
    axes.grid(True, which="major", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _decimal(set_scale, axis) -> None:
    """A logarithmic axis with figures as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    set_scale("log")
    low, high = axis.get_data_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(labelsize=8)


def _save(figure, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path)
    plt.close(figure)
    return path


def pages(groups: dict[str, dict[str, float]]) -> list[dict[str, dict[str, float]]]:
    """``groups`` cut into parts with up to `BARS` bars each, of as equal length as can be."""
    places = len({name for bars in groups.values() for name in bars}) or 1
    count = -(-len(groups) * places // BARS)
    length = -(-len(groups) // max(1, count))
    names = list(groups)
    return [{name: groups[name] for name in names[i : i + length]} for i in range(0, len(names), max(1, length))]


def _styles(names: set[str]) -> dict[str, int]:
    """Those of `STYLES`, then others by the alphabet: where each has its colour and its hatch."""
    known = [name for name in STYLES if name in names]
    others = sorted(names - set(known))
    return {name: STYLES[name] for name in known} | {name: 7 + i for i, name in enumerate(others)}


def speed_ups(
    groups: dict[str, dict[str, float]],
    path: Path,
    *,
    title: str,
    label: str = "over {}",
    axis: str = "vitkern is so many times as fast (1: equal)",
) -> Path:
    """Horizontal bars from 1, on a logarithmic axis: case -> contender -> how many times as fast."""
    contenders = _styles({name for bars in groups.values() for name in bars})
    height = 0.8 / max(1, len(contenders))
    figure, axes = _figure(8, 1.4 + 0.24 * len(groups) * max(1.0, 0.6 * len(contenders)))
    axes.grid(False, axis="y")
    for i, (contender, style) in enumerate(contenders.items()):
        rows = [(y, bars[contender]) for y, bars in enumerate(groups.values()) if contender in bars]
        places = [y + (i - (len(contenders) - 1) / 2) * height for y, _ in rows]
        axes.barh(
            places, [value - 1 for _, value in rows], height, left=1, label=label.format(contender),
            color=COLOURS[style % 8], hatch=HATCHES[(style + style // 8) % 8], edgecolor="white", linewidth=0.4,
        )  # fmt: skip
        for place, (_, value) in zip(places, rows, strict=True):
            side = "left" if value >= 1 else "right"
            axes.text(value, place, f" {value:.2f} ", va="center", ha=side, fontsize=6)
    values = [value for bars in groups.values() for value in bars.values()]
    left, right = min(0.8, min(values) / 1.3), max(1.25, max(values) * 1.3)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    ticks = [tick for tick in (TICKS if right / left > 8 else NEAR_TICKS) if left <= tick <= right]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(groups)), list(groups), fontsize=7)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel(axis)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.legend(fontsize=7, loc="outside lower center", ncol=min(4, len(contenders)), frameon=False)
    return _save(figure, path)


def rooflines(rows: list[Row], ceilings: Ceilings, path: Path, *, title: str) -> Path:
    """Useful FLOP/s of ``rows`` by their FLOP per byte, under what the device reached in the same run."""
    figure, axes = _figure(7, 4.5)
    intensities = [row.flops / row.moved for row in rows]
    ridge = ceilings.matmul / ceilings.copy
    left, right = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2
    grid = [left * (right / left) ** (i / 99) for i in range(100)]
    unit, factor = ("TFLOP/s", 1e12) if ceilings.matmul >= 1e12 else ("GFLOP/s", 1e9)
    most = [min(x * ceilings.copy, ceilings.matmul) / factor for x in grid]
    axes.plot(grid, most, color="black", label="copy and matrix product, measured")
    for i, op in enumerate(dict.fromkeys(row.op for row in rows)):
        for mode in dict.fromkeys(row.mode for row in rows):
            chosen = [row for row in rows if (row.op, row.mode) == (op, mode)]
            axes.scatter(
                [row.flops / row.moved for row in chosen], [row.flops / row.seconds / factor for row in chosen], s=24,
                marker=MARKERS[i % 11], edgecolors=COLOURS[i % 8], facecolors=FILLS[mode] or COLOURS[i % 8],
                linewidths=0.9, label=op if mode == rows[0].mode else None,
            )  # fmt: skip
    for mode in dict.fromkeys(row.mode for row in rows):
        axes.scatter([], [], s=24, edgecolors="black", facecolors=FILLS[mode] or "black", label=mode)
    _decimal(axes.set_xscale, axes.xaxis)
    _decimal(axes.set_yscale, axes.yaxis)
    axes.set_xlabel("useful FLOP per byte that must move")
    axes.set_ylabel(f"useful {unit}")
    axes.set_title(title, loc="left", fontsize=10)
    figure.legend(fontsize=7, loc="outside right upper", frameon=False)
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
    shown = sizes if len(sizes) <= 9 else sizes[::2]
    axes.set_xscale("log")
    axes.set_xticks(shown, [f"{size:,}" for size in shown], fontsize=7)
    axes.set_xticks([], minor=True)
    _decimal(axes.set_yscale, axes.yaxis)
    axes.set_xlabel(rows[0].case.rsplit(" ", 1)[0].rsplit("-", 1)[1])
    axes.set_ylabel("peak memory, MiB" if memory else "time, ms")
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(fontsize=8)
    return _save(figure, path)


def _name(row: Row, rows: list[Row]) -> str:
    """The case; its mode too where ``rows`` are of several."""
    return row.case if len({other.mode for other in rows}) == 1 else f"{row.case}, {row.mode}"


def best_peers(rows: list[Row]) -> dict[str, dict[str, float]]:
    """case -> contender -> how many times as fast vitkern is, for every contender whose time counts."""
    found = {}
    for ours in (row for row in rows if row.contender == OURS and row.counts):
        others = peers_of_row(ours, rows)
        if others:
            found[_name(ours, rows)] = {row.contender: row.seconds / ours.seconds for row in others}
    return found


def gains(rows: list[Row]) -> dict[str, dict[str, float]]:
    """case -> contender -> how many times as fast as the first contender of the case, each whose time counts."""
    found = {}
    for key in dict.fromkeys(row.key for row in rows):
        counted = [row for row in rows if row.key == key and row.counts]
        if len(counted) > 1:
            base, *others = counted
            found[_name(base, rows)] = {row.contender: base.seconds / row.seconds for row in others}
    return found
