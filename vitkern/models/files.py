"""Tensors of a weights file by name: one file or several, unwrapped, under the model's own names."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitkern.models.archive import check_archive
from vitkern.models.names import few, without_wrappers
from vitkern.models.shards import shards_of

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
INDEX = ".index.json"
# timm's names of what a checkpoint holds beside epoch and optimiser, and its order of choice.
_AVERAGED, _TRAINED = ("state_dict_ema", "model_ema"), ("state_dict", "model")
_DEEPEST = 4


def read_weights(path: str | Path, *, use_ema: bool = True) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt or .bin file, or of those that an .index.json names, on the CPU.

    PyTorch files are read with ``weights_only=True`` and in no other way: one that holds more than tensors could run
    code and is refused, as is one that unpacks to far more than it is. Checkpoints of a training are unwrapped:
    of {"state_dict_ema": ..., "state_dict": ...} the averaged weights are taken, as timm does, and a warning says so.
    What wrappers add to names is removed: "module." before all of them, "_orig_mod." anywhere.

    Args:
        use_ema: take averaged weights ("state_dict_ema", "model_ema") where there are any, else those of the training.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, or one that cannot be read.
        ImportError: a .safetensors file without the safetensors package.
    """
    return read_for(path, use_ema, None)


def read_for(path: str | Path, use_ema: bool, own_bytes: int | None) -> dict[str, Tensor]:
    """As `read_weights`, for a model of ``own_bytes``: the file is mapped where that can be, so that nothing is read
    but what is copied. None: the tensors are the caller's, and the file may change."""
    path = Path(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"load_weights: there is no such file: got {str(path)[-200:]!r}; expected a path of a weights file."
        )
    if not path.name.lower().endswith(INDEX):
        return _read_one(path, use_ema, own_bytes)
    state: dict[str, Tensor] = {}
    for shard, names in shards_of(path).items():
        part = _read_one(shard, use_ema, own_bytes, strip=False)
        twice, absent = state.keys() & part.keys(), [name for name in names if name not in part]
        if twice or absent:
            what = f"{few(sorted(twice))} twice" if twice else f"no {few(absent)}"
            raise ValueError(
                f"load_weights: the index does not fit its files: got {what} in {shard.name!r}; "
                f"expected what {path.name!r} says."
            )
        state |= part
    return _stripped(state)


def _stripped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {short: state[name] for name, short in without_wrappers(state).items()}


def _read_one(path: Path, use_ema: bool, own_bytes: int | None, strip: bool = True) -> dict[str, Tensor]:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        found = _read_safetensors(path)
    elif suffix in TORCH_SUFFIXES:
        found = _read_torch(path, own_bytes)
    else:
        raise ValueError(
            f"load_weights: unknown kind of file: got {path.name!r}; "
            f"expected .safetensors, {', '.join(TORCH_SUFFIXES)} or {INDEX}."
        )
    state = _unwrap(path, found, use_ema)
    held = isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())
    if not held or not state or not all(isinstance(name, str) for name in state):
        raise ValueError(
            f"load_weights: no state dict inside: got {_contents(state)} in {path.name!r}; expected names and tensors."
        )
    return _stripped(state) if strip else dict(state)


def _unwrap(path: Path, found: Any, use_ema: bool) -> Any:
    for _ in range(_DEEPEST):
        held = [key for key in (*_AVERAGED, *_TRAINED) if isinstance(found, Mapping) and _is_mapping(found, key)]
        wanted = [key for key in held if use_ema or key not in _AVERAGED]
        if not wanted:
            break
        if wanted[0] in _AVERAGED and (others := [key for key in held if key in _TRAINED]):
            warnings.warn(
                f"load_weights: {path.name!r} holds {wanted[0]!r} beside {others[0]!r}: the averaged weights are "
                "taken, as timm does. use_ema=False takes the others.",
                stacklevel=2,
            )
        found = found[wanted[0]]
    return found


def _is_mapping(found: Mapping, key: str) -> bool:
    return isinstance(found.get(key), Mapping)


def _contents(state: object) -> str:
    if isinstance(state, Mapping):
        return f"a mapping of {few(state) or 'nothing'}"
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


def _read_torch(path: Path, own_bytes: int | None) -> Any:
    try:
        mapped = check_archive(path, own_bytes)
    except Exception as error:
        if str(error).startswith("load_weights: "):
            raise
        raise ValueError(_unreadable(path, error)) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and own_bytes is not None)
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
