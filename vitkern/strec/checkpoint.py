"""Files of a run, each replaced whole or not at all: tensors as safetensors, the rest as JSON in its header.

One file is one consistent state: a process that is killed leaves the state before or the state after.
"""

import json
import os
import stat
from pathlib import Path

from torch import Tensor

from vitkern.report import BadInput
from vitkern.strec.settings import Settings

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
    except (OSError, ValueError) as error:  # ValueError: of the name itself
        raise BadInput(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from None


def _sync_folder(folder: Path) -> None:
    """Names are durable too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value) -> None:
    """
    Raises:
        BadInput: as `write_bytes`, or a number is none that JSON has: NaN or infinite.
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except ValueError:
        raise BadInput(f"{path} cannot be written: a number in it is not finite.") from None
    write_bytes(path, f"{text}\n".encode())


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

    _check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})["json"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is damaged or of another kind: {error}.") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path} is damaged or of another kind: its header holds a {type(found).__name__}.")
    return tensors, found


def check_tensors(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """
    Raises:
        BadInput: other names, shapes or dtypes than ``expected`` has; the message has the first.
    """
    for name, value in expected.items():
        if name not in tensors:
            raise BadInput(f"{path} does not fit its own settings: it lacks {name}.")
        got, wanted = ((tuple(each.shape), str(each.dtype).removeprefix("torch.")) for each in (tensors[name], value))
        if got != wanted:
            text = f"{name} is {got[0]} {got[1]}, not {wanted[0]} {wanted[1]}"
            raise BadInput(f"{path} does not fit its own settings: {text}.")
    if more := [name for name in tensors if name not in expected]:
        raise BadInput(f"{path} does not fit its own settings: it has {more[0]!r} beside them.")


def read_json(path: Path):
    """
    Raises:
        BadInput: no such file, or no JSON.
    """
    _check_file(path)
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is damaged: {error}.") from None


def read_items(folder: Path) -> list[str]:
    """The items of a run by code, the first for padding.

    Raises:
        BadInput: as `read_json`, or no such list.
    """
    items = read_json(folder / ITEMS)
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise BadInput(f"{folder / ITEMS} is damaged: expected a list of names.")
    if not items or items[0] or len(set(items)) < len(items):
        raise BadInput(f'{folder / ITEMS} is damaged: expected different names, the first "".')
    return items


def settings_of(path: Path, found: dict) -> Settings:
    """
    Raises:
        BadInput: what a file of tensors holds beside them is not of a run.
    """
    try:
        return Settings.from_json(found.get("settings"))
    except BadInput as problem:
        raise BadInput(f"{path} does not hold the settings of a run: {problem}") from None


def refuse_a_run(folder: Path) -> None:
    """
    Raises:
        BadInput: the folder holds a run, whole or begun.
    """
    resumable, trained = (os.path.lexists(folder / name) for name in (STATE, WEIGHTS))
    if resumable or trained:
        remedy = "--resume goes on with it; otherwise give another --out." if resumable else "Give another --out."
        raise BadInput(f"{folder} holds a run already. {remedy}")


def _check_file(path: Path) -> None:
    """A folder is no file, and a pipe would be waited for."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"there is no {path.name} in {path.parent}; train there first.") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not stat.S_ISREG(mode):
        raise BadInput(f"{path} is no file.")
