"""Recorded runs: what was measured, on what, and whether it got slower."""

import json
import os
import re
import subprocess
from pathlib import Path

import torch

from benchmarks.measure import OURS, Row
from vitkern.commands.info import processor, versions
from vitkern.report import BadInput

FOLDER = Path(__file__).parent / "results"
SLOWER = 1.10
SCHEMA = 1


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def environment(device: torch.device) -> dict:
    """Versions, device, and the clocks and power limit that nvidia-smi shows."""
    found = dict(device=device_name(device), threads=torch.get_num_threads(), versions=versions())
    if device.type != "cuda":
        return found
    found |= dict(cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(), copy_bandwidth=copy_bandwidth(device))
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


def copy_bandwidth(device: torch.device) -> float:
    """Bytes/s, read and written, of a large device-to-device copy."""
    from triton.testing import do_bench

    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (do_bench(lambda: target.copy_(source), return_mode="median") / 1e3)


def automatic_path(device: torch.device, name: str) -> Path:
    """``benchmarks/results/<device>/<name>.json``."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return FOLDER / slug / f"{name}.json"


def save(path: Path, rows: list[Row], found: dict) -> None:
    """Write the whole file anew, in one step: an interrupted run keeps what it has measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(
        json.dumps(dict(schema=SCHEMA, environment=found, results=[row.record() for row in rows]), indent=1) + "\n"
    )
    os.replace(new, path)


def load(path: Path) -> dict:
    """
    Raises:
        BadInput: the file does not exist or is no recorded run.
    """
    try:
        recorded = json.loads(path.read_text())
        if recorded.get("schema", SCHEMA) != SCHEMA:
            raise ValueError(f"schema {recorded['schema']}, and this version reads {SCHEMA}. Measure again.")
        return dict(environment=recorded["environment"], results=[Row(**row) for row in recorded["results"]])
    except FileNotFoundError:
        raise BadInput(f"the recorded run does not exist: {path}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"the file is no recorded run: {path}: {error}") from None


def key(row: Row) -> tuple:
    return row.op, row.case, row.mode, row.dtype, row.batch


def against(rows: list[Row], recorded: list[Row]) -> list[tuple[Row, float]]:
    """Our timings that both runs hold, each with its time now over its time then."""
    before = {key(row): row.seconds for row in recorded if row.contender == OURS and row.seconds}
    return [
        (row, row.seconds / before[key(row)])
        for row in rows
        if row.contender == OURS and row.seconds and key(row) in before
    ]
