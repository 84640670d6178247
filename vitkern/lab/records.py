"""What the laboratory's parts have run, kept as one JSON file a part, for ``python -m vitkern lab`` to sum up.

They lie in ``.lab`` in the working directory, or where ``VITKERN_LAB_RECORDS`` says.
"""

import importlib.metadata
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from vitkern.report import regular

SCHEMA = 1


class UnreadableRecord(ValueError):
    """A record is no JSON, or of another schema."""


def folder() -> Path:
    return Path(os.environ.get("VITKERN_LAB_RECORDS", ".lab"))


def environment() -> dict[str, str]:
    """Versions that results depend on."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "triton", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def write(part: str, *, passed: bool, summary: str, seconds: float, **details) -> Path:
    """Record a run of ``part``, replacing the one before, whole or not at all. ``summary`` is one line of figures."""
    record = dict(
        schema=SCHEMA,
        part=part,
        passed=passed,
        summary=summary,
        seconds=round(seconds, 1),
        finished=time.strftime("%Y-%m-%d %H:%M:%S"),
        environment=environment(),
        **details,
    )
    folder().mkdir(parents=True, exist_ok=True)
    target = folder() / f"{part}.json"
    with tempfile.NamedTemporaryFile("w", dir=folder(), suffix=".tmp", delete=False) as file:
        json.dump(record, file, indent=1)
    os.replace(file.name, target)
    return target


def read(part: str) -> dict | None:
    """The last record of ``part``; None where it never ran.

    Raises:
        UnreadableRecord: the file is damaged.
        BadInput: it is no file.
    """
    path = folder() / f"{part}.json"
    if not path.exists():
        return None
    try:
        record = json.loads(regular(path, "the record").read_text())
    except (RecursionError, ValueError) as error:
        raise UnreadableRecord(f"{path} is not JSON: {error}. Remove it, or run the part again.") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise UnreadableRecord(f"{path} has another schema: expected {SCHEMA}. Remove it, or run the part again.")
    return record
