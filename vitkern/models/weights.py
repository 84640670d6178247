"""Weights from a file into a model: checked as a whole before the first one is copied."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.convert import convert_state_dict, detect_family

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_WRAPPERS = ("model", "state_dict")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .bin file by name, on the CPU.

    PyTorch files are read with ``weights_only=True`` and in no other way: one that holds more than tensors could run
    code and is refused. {"model": ...} and {"state_dict": ...} are unwrapped, a "module." before every name is removed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, or one that cannot be read.
        ImportError: a .safetensors file without the safetensors package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"load_weights: there is no such file: got {str(path)!r}; expected a path of a weights file."
        )
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        state = _read_safetensors(path)
    elif suffix in TORCH_SUFFIXES:
        state = _read_torch(path)
    else:
        raise ValueError(
            f"load_weights: unknown kind of file: got {path.name!r}; "
            f"expected .safetensors, {', '.join(TORCH_SUFFIXES)}."
        )
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"load_weights: no state dict inside: got {_contents(state)} in {path.name!r}; expected names and tensors."
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _contents(state: object) -> str:
    if isinstance(state, Mapping):
        return f"a mapping of {', '.join(map(str, list(state)[:4])) or 'nothing'}"
    return type(state).__name__


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ImportError(
            f"load_weights: the safetensors package is missing: got {path.name!r}; expected it installed. "
            "Run: pip install safetensors"
        ) from None
    try:
        return load_file(path)
    except Exception as error:
        raise ValueError(_unreadable(path, error)) from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    if "weights_only" in str(error) or "Unsupported" in str(error):
        reason = "it holds Python objects beside tensors, which could run code"
    else:
        lines = str(error).strip().splitlines()
        reason = lines[0][:160] if lines else type(error).__name__
    return (
        f"load_weights: the file cannot be read: got {path.name!r} ({reason}); "
        "expected an intact file of tensors. Download it again."
    )


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads every parameter of ``model`` from a file, strictly; the model changes as a whole or not at all.

    Names are timm's. Checkpoints of transformers, torchvision and Swin's authors are recognised by their names and
    converted (`vitkern.models.convert_state_dict`). Values are cast to the dtype of the model's parameters.

    Raises:
        FileNotFoundError, ImportError: as `read_weights`.
        ValueError: an unreadable file, or names or shapes that are not the model's; the message has the first few.
    """
    state = read_weights(path)
    family = detect_family(state)
    if family is not None:
        state = convert_state_dict(state, family)
    own = model.state_dict()
    problems = _differences(own, state)
    if problems:
        raise ValueError(
            f"load_weights: the checkpoint does not fit {type(model).__name__}: "
            f"got {'; '.join(problems)} in {Path(path).name!r}; "
            "expected the parameters of this architecture. Check the name, num_classes and img_size."
        )
    if any(value.is_meta for value in own.values()):
        raise ValueError(
            "load_weights: the model has no memory: got parameters on the meta device; expected real ones. "
            "Call to_empty first."
        )
    model.load_state_dict(state, strict=True)


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    found = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "mis-shaped": shapes,
    }
    return [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in found.items()
        if names
    ]
