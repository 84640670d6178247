"""Weights from a file into a model: checked as a whole before the first one is copied."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.convert import convert_state_dict
from vitkern.models.files import read_for, read_weights
from vitkern.models.names import few, without_wrappers
from vitkern.models.tables import detect_family

__all__ = ["load_weights", "read_weights"]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def load_weights(model: nn.Module, path: str | Path, *, use_ema: bool = True) -> None:
    """Loads every parameter of ``model`` from a file, strictly; the model changes as a whole or not at all.

    Names are timm's. Checkpoints of transformers, torchvision and Swin's authors are recognised by their names and
    converted (`vitkern.models.convert_state_dict`, or the model's own method of that name). Values are cast to the
    dtype of the model's parameters: floats to floats, integers to integers, and none that the narrower one cannot hold.

    Args:
        path: see `read_weights`. use_ema: take averaged weights where a checkpoint holds them too, as timm does; a
            warning says so.

    Raises:
        FileNotFoundError, ImportError: as `read_weights`.
        ValueError: an unreadable file, or names, shapes or kinds of values that are not the model's; the message has
            the first few.
    """
    whole, file = model.state_dict(), Path(path).name
    own = {short: whole[name] for name, short in without_wrappers(whole).items()}
    if any(not isinstance(value, Tensor) or nn.parameter.is_lazy(value) or value.is_meta for value in own.values()):
        raise ValueError(
            "load_weights: the model has no memory: got parameters on the meta device, or of a lazy module; expected "
            "real ones. Call to_empty, or run a batch, first."
        )
    state = read_for(path, use_ema, sum(value.nbytes for value in own.values()))
    if odd := {name: kind for name, value in state.items() if (kind := _not_plain(value))}:
        raise ValueError(
            f"load_weights: these are no plain tensors: got {few(f'{n} ({kind})' for n, kind in odd.items())} in "
            f"{file!r}; expected dense values. Convert them first."
        )
    family = detect_family(state)
    if family is not None:
        state = convert_state_dict(state, family)
    elif (convert := getattr(model, "convert_state_dict", None)) is not None:
        state = convert(state)
    state = {**_shared(model, state), **state}
    problems = _differences(own, state)
    if problems:
        raise ValueError(
            f"load_weights: the checkpoint does not fit {type(model).__name__}: "
            f"got {'; '.join(problems)} in {file!r}; expected the parameters of this architecture. "
            + _remedy(model, state)
        )
    _copy(model, {name: state[short] for name, short in without_wrappers(whole).items()})


def _shared(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values by all names that one tensor of the model has, of which a file may hold one."""
    whole = model.state_dict(keep_vars=True)
    tensors = {short: id(whole[name]) for name, short in without_wrappers(whole).items()}
    values = {tensors[name]: value for name, value in state.items() if name in tensors}
    return {name: values[tensor] for name, tensor in tensors.items() if tensor in values}


def _remedy(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    from vitkern.models.registry import variants_of

    near = variants_of(type(model), {name: value.shape for name, value in state.items()})
    return f"They are those of {few(near, 3)}." if near else "Check the name, num_classes and img_size."


def _not_plain(value: Tensor) -> str | None:
    """What keeps the values from being copied, or None."""
    if value.layout != torch.strided:
        return str(value.layout).removeprefix("torch.")
    if value.is_quantized or value.is_nested:
        return "quantised" if value.is_quantized else "nested"
    return "without values" if value.is_meta else None


def _differences(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    shared = {name: (state[name], value) for name, value in own.items() if name in state}
    found = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "mis-shaped": [
            f"{name} {tuple(new.shape)} for {tuple(old.shape)}"
            for name, (new, old) in shared.items()
            if new.shape != old.shape
        ],
        "of another kind": [
            f"{name} {_short(new.dtype)} for {_short(old.dtype)}"
            for name, (new, old) in shared.items()
            if _kind(new.dtype) != _kind(old.dtype)
        ],
    }
    if not any(found.values()):
        found["out of range"] = [
            f"{name} for {_short(old.dtype)}" for name, (new, old) in shared.items() if not _fits(new, old.dtype)
        ]
    return [f"{len(names)} {kind} ({few(names, 3)})" for kind, names in found.items() if names]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(dtype: torch.dtype) -> str | torch.dtype:
    """Dtypes of one kind are cast to each other; floats of 8 bits and complex ones are a kind of their own."""
    return "floats" if dtype in _FLOATS else "integers" if dtype in _INTEGERS else dtype


def _fits(value: Tensor, dtype: torch.dtype) -> bool:
    """No finite value becomes infinite, no integer another one."""
    floats = dtype in _FLOATS
    info = torch.finfo if floats else torch.iinfo
    if value.dtype == dtype or not value.numel() or _kind(dtype) is dtype:
        return True
    if info(value.dtype).max <= info(dtype).max and info(value.dtype).min >= info(dtype).min:
        return True
    least, most = torch.aminmax(value.nan_to_num(0.0, 0.0, 0.0) if floats else value)
    return info(dtype).min <= least.item() and most.item() <= info(dtype).max


def _copy(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """A module's own loading may fail after others have loaded: then all get back what they had."""
    own = model.state_dict()
    before = {name: value.to("cpu", copy=True) for name, value in own.items()}
    try:
        model.load_state_dict({**own, **state}, strict=True)
    except BaseException as error:
        with torch.no_grad():
            for name, value in before.items():
                own[name].copy_(value)
        if not isinstance(error, RuntimeError):
            raise
        found = " ".join(str(error).split())[:200]
        raise ValueError(f"load_weights: {type(model).__name__} refuses its weights: got {found}") from error
