"""Files of a run, each replaced whole or not at all: tensors as safetensors, the rest as JSON in its header.

One file is one consistent state: a process that is killed leaves the state before or the state after.
"""

import json
import os
from pathlib import Path

from torch import Tensor

from vitkern.report import BadInput

WEIGHTS, STATE, ITEMS, METRICS, CURVES = (
    "model.safetensors", "state.safetensors", "items.json", "metrics.json", "curves.png"
)  # fmt: skip


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step, durably. What a killed process leaves of ``path.tmp`` the next write overwrites.

    Raises:
        BadInput: the folder or the file cannot be written, or the disk is full; the file before is whole.
    """
    part = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            _sync_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror or error}.") from None


def _sync_folder(folder: Path) -> None:
    """Names are durable too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value) -> None:
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def write_tensors(path: Path, tensors: dict[str, Tensor], found: dict) -> None:
    """``found`` must be JSON; it goes into the header."""
    from safetensors.torch import save

    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    write_bytes(path, save(plain, metadata={"json": json.dumps(found)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """
    Raises:
        BadInput: no such file, or none that `write_tensors` wrote.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})["json"])
            return {name: file.get_tensor(name) for name in file.keys()}, found  # noqa: SIM118
    except FileNotFoundError:
        raise BadInput(f"there is no {path.name} in {path.parent}; train there first.") from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BadInput(f"{path} is damaged or of another kind: {error}.") from None


def read_json(path: Path):
    """
    Raises:
        BadInput: no such file, or no JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BadInput(f"there is no {path.name} in {path.parent}; train there first.") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is damaged: {error}.") from None
