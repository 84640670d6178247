"""Curves of a run as a PNG, where matplotlib is installed."""

import io
from pathlib import Path

from vitkern.report import progress
from vitkern.strec import checkpoint


def save_curves(path: Path, history: list[dict]) -> bool:
    """Loss and validation metrics over epochs; False, and a note on stderr, without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        progress('no curves were drawn: matplotlib is not installed (pip install "vitkern[plots]")')
        return False
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], marker=".")
    left.set(xlabel="epoch", ylabel="training loss")
    for name in [name for name in history[0] if "@" in name]:
        right.plot(epochs, [row[name] for row in history], marker=".", label=name)
    right.set(xlabel="epoch", ylabel="validation", ylim=(0, None))
    right.legend()
    content = io.BytesIO()
    figure.savefig(content, dpi=120)
    checkpoint.write_bytes(path, content.getvalue())
    return True
