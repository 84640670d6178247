"""A checkpoint in several files: the index that says which file holds which tensor, and what it may point to."""

import json
import os
from pathlib import Path

from vitkern.models.names import few

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def shards_of(index: Path) -> dict[Path, list[str]]:
    """The files that an index names, with the names of their tensors.

    Files are beside the index or in folders below it. Nothing else is opened: no absolute path, no ``..``, no link that
    leads out. The one exception is the hub's cache, whose snapshots are links into the ``blobs`` of the same model.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no index, or one that points to something else; the message has the first.
    """
    try:
        found = json.loads(index.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"load_weights: the index cannot be read: got {index.name!r} ({error}).") from None
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise ValueError(
            f"load_weights: this is no index of a checkpoint: got {index.name!r}; "
            'expected {"weight_map": {name of a tensor: name of a file}}.'
        )
    shards: dict[Path, list[str]] = {}
    for name, file in names.items():
        shards.setdefault(_inside(index, file), []).append(name)
    return shards


def _inside(index: Path, file: str) -> Path:
    folder, part = index.parent, Path(file)
    path = folder / part
    named = "\0" not in file and not part.is_absolute() and ".." not in part.parts and "\\" not in file
    try:
        where = path.resolve() if named else None
    except (OSError, RuntimeError):  # too long, or links in a circle
        where = None
    if where is None or not any(where.is_relative_to(home) for home in _homes(folder)):
        raise ValueError(
            f"load_weights: the index points outside its folder: got {few([file])} in {index.name!r}; "
            "expected names of files beside it."
        )
    if part.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"load_weights: unknown kind of file: got {few([file])} in {index.name!r}; expected {', '.join(SUFFIXES)}."
        )
    if not os.path.isfile(path):
        raise FileNotFoundError(f"load_weights: a file of the index is missing: got {few([file])} in {index.name!r}.")
    return path


def _homes(folder: Path) -> list[Path]:
    """Where files of an index in ``folder`` may lie."""
    folder = folder.resolve()
    cached = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return [folder, folder.parent.parent / "blobs"] if cached else [folder]
