"""Recorded runs: what was measured, and on what."""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import torch

from benchmarks import timers
from benchmarks.rows import Row
from vitkern.commands.info import processor, versions
from vitkern.report import BadInput, progress

FOLDER = Path(__file__).parent / "results"
SCHEMA = 2
ROOT = Path(__file__).parents[1]
SOURCES = ("kernels", "vitkern/ops", "vitkern/nn", "vitkern/interop")  # what is measured
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
    new.write_text(
        json.dumps(dict(schema=SCHEMA, environment=found, results=[row.record() for row in rows]), indent=1) + "\n"
    )
    os.replace(new, path)


def load(path: Path) -> dict:
    """``environment`` and ``results``, a list of `Row`.

    Raises:
        BadInput: the file does not exist, is no recorded run, or is one of another schema.
    """
    try:
        recorded = json.loads(path.read_text())
        schema = recorded.get("schema", 1)
        if schema != SCHEMA:
            raise BadInput(f"{path} has schema {schema}, and this version reads {SCHEMA}. Measure again.")
        return dict(environment=recorded["environment"], results=[Row(**row) for row in recorded["results"]])
    except FileNotFoundError:
        raise BadInput(f"the recorded run does not exist: {path}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"the file is no recorded run: {path}: {error}") from None


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
