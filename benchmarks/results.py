"""Recorded runs: what was measured, and on what."""

import hashlib
import json
import math
import os
import re
import subprocess
from pathlib import Path

import torch

from benchmarks import timers
from benchmarks.rows import Row
from vitkern.commands.info import processor, versions
from vitkern.report import BadInput, progress, regular

FOLDER = Path(__file__).parent / "results"
SCHEMA = 2
ROOT = Path(__file__).parents[1]
SOURCES = ("kernels", "vitkern/ops", "vitkern/nn", "vitkern/interop")  # what is measured
TEXTS = ("op", "case", "mode", "dtype", "contender", "note")  # fields of a row, by kind
NUMBERS = ("batch", "spread", "samples")
FIGURES = ("seconds", "host", "latency", "peak", "flops", "moved", "padded")  # or none
SAME = ("device", "versions", "sources")  # of two runs that are one, in parts


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def environment(device: torch.device) -> dict:
    """Versions, device, its last cache, and the clocks and power limit that nvidia-smi shows."""
    found = dict(
        device=device_name(device), threads=torch.get_num_threads(), last_cache=timers.last_cache(device),
        clock="CUDA events" if device.type == "cuda" else timers.clock().__name__, versions=versions(),
        sources=sources(),
    )  # fmt: skip
    if device.type != "cuda":
        return found
    found |= dict(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version())
    query = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,driver_version"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", f"--id={device.index or 0}"]
        values = (
            subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip().split(", ")
        )
        found["nvidia-smi"] = dict(zip(query.split(","), values, strict=True))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        found["nvidia-smi"] = f"not available: {type(error).__name__}"
    return found


def sources() -> str:
    """A hash of the code that is measured."""
    found = hashlib.sha256()
    for path in sorted(path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def automatic_path(device: torch.device, name: str) -> Path:
    """``benchmarks/results/<device>/<name>.json``."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return FOLDER / slug / f"{name}.json"


def save(path: Path, rows: list[Row], found: dict) -> None:
    """Write the whole file anew, in one step: an interrupted run keeps what it has measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(path.suffix + ".new")
    text = json.dumps(dict(schema=SCHEMA, environment=found, results=[row.record() for row in rows]), indent=1)
    try:
        new.write_text(text + "\n")
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def load(path: Path) -> dict:
    """``environment`` and ``results``, a list of `Row`.

    Raises:
        BadInput: the file does not exist, is no recorded run, or is one of another schema.
    """
    try:
        recorded = json.loads(regular(path, "the recorded run").read_text())
        schema = recorded.get("schema", 1)
        if schema != SCHEMA:
            raise BadInput(f"{path} has schema {schema}, and this version reads {SCHEMA}. Measure again.")
        found = recorded["environment"]
        if not isinstance(found["device"], str) or not isinstance(found["versions"], dict):
            raise ValueError("its environment names no device or no versions")
        return dict(environment=found, results=[_row(row) for row in recorded["results"]])
    except (OSError, RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"the file is no recorded run: {path}: {error}") from None


def _row(record: dict) -> Row:
    """
    Raises:
        TypeError, ValueError: a field is missing, unknown, or not of its kind.
    """
    row = Row(**record)
    wrong = [name for name in TEXTS if not isinstance(getattr(row, name), str)]
    wrong += [name for name in NUMBERS if not _is_number(getattr(row, name))]
    wrong += [name for name in FIGURES if getattr(row, name) is not None and not _is_number(getattr(row, name))]
    if wrong or not isinstance(row.estimates, dict) or not all(map(_is_number, row.estimates.values())):
        raise TypeError(f"a row has no valid {', '.join(wrong) or 'estimates'}")
    if row.seconds == 0 or row.batch < 1 or not isinstance(getattr(torch, row.dtype, None), torch.dtype):
        raise ValueError(f"a row has {row.seconds} s, a batch of {row.batch}, dtype {row.dtype!r}")
    if row.op.startswith("scale-") and not row.case.rsplit(" ", 1)[-1].isdecimal():
        raise ValueError(f"a row of a sweep has no size: {row.case!r}")
    return row


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def same_device(ours: str, environments: dict[str, dict]) -> None:
    """
    Raises:
        BadInput: an environment, by the name of its file, is not of the device called ``ours``.
    """
    for name, found in environments.items():
        if found["device"] != ours:
            raise BadInput(
                f"{name} was measured on {found['device']}, and the other run on {ours}: times of two devices are not "
                "comparable. Measure both on one."
            )


def resumed(path: Path, found: dict) -> list[Row]:
    """The rows of ``path``, if the run that wrote it could have been this one; ``found``: the environment of this."""
    if not path.exists():
        return []
    recorded = load(path)
    changed = [name for name in SAME if recorded["environment"].get(name) != found.get(name)]
    if changed:
        progress(f"{path} is of another run and is measured anew: other {', '.join(changed)}")
        return []
    return recorded["results"]
