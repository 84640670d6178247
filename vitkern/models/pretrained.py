"""Published weights, by the name of a model: fetched and kept by timm or huggingface_hub, and loaded strictly."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch.nn as nn

from vitkern.models import hub
from vitkern.models.names import few
from vitkern.models.weights import load_weights

_FILES = ("model.safetensors", "pytorch_model.bin")
_SHAPES = ("num_classes", "img_size", "in_chans")  # arguments to which timm fits what it loads


def load_pretrained(model: nn.Module, name: str, overrides: Mapping[str, Any]) -> None:
    """Loads the weights that are published under ``name``; the model changes as a whole or not at all.

    A hub id of transformers, and a name for which the model has one in its ``hub_ids``, is fetched by huggingface_hub.
    Any other name is timm's, which also resizes position embeddings and tables and fits the first and the last layer to
    ``overrides``. Both keep what they fetched, and need no network for what they have.

    Args:
        model: of `vitkern.create_model`. name: as it takes. overrides: the arguments that it was given.

    Raises:
        ImportError: the library that fetches is not installed.
        OSError: neither in its cache nor to be fetched.
        ValueError: nothing is published under the name, or it does not fit what ``overrides`` made of the model.
    """
    ids = getattr(model, "hub_ids", {})
    published = name in hub.CONFIGS or name in hub.FORMER or name in ids.values()
    hub_id = name if published else ids.get(name)
    if hub_id is not None:
        load_weights(model, _fetched(hub_id))
    else:
        _load_of_timm(model, name.removeprefix("timm/"), overrides)


def _library(package: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ImportError(
            f"create_model: the weights of {name!r} are fetched by {package}: got no such package; "
            f"expected it installed. Run pip install {package}, or give weights=<path>."
        ) from None


def _fetched(name: str) -> str:
    """The path of the file of a hub id."""
    fetch = _library("huggingface_hub", name).hf_hub_download
    missing = importlib.import_module("huggingface_hub.errors").EntryNotFoundError
    for file in _FILES:
        try:
            return fetch(name, file)
        except Exception as error:
            if isinstance(error, missing) and not isinstance(error, FileNotFoundError) and file != _FILES[-1]:
                continue  # the hub has it not; that the cache has it not is the other error
            raise _unfetched(name, f"{_FILES[0]} of {name}", error) from error
    raise AssertionError


def _load_of_timm(model: nn.Module, name: str, overrides: Mapping[str, Any]) -> None:
    timm = _library("timm", name)
    try:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # no such tag
        config = None
    if config is None:
        raise ValueError(
            f"create_model: no library publishes weights under this name: got {name!r}; expected one of "
            "timm.list_pretrained() or a hub id. Give weights=<path>."
        )
    if not timm.is_model_pretrained(name):
        raise ValueError(
            f"create_model: timm has this model without weights: got {name!r}; expected one of "
            f"timm.list_pretrained({name.partition('.')[0] + '*'!r}). Give weights=<path>."
        )
    shapes = {key: value for key, value in overrides.items() if key in _SHAPES}
    try:
        peer = timm.create_model(name, pretrained=True, **shapes)
    except Exception as error:
        raise _unfetched(name, config.hf_hub_id or config.url or "its file", error) from error
    state, own = peer.state_dict(), model.state_dict()
    wrong = [
        key for key in {**own, **state} if key not in own or key not in state or own[key].shape != state[key].shape
    ]
    if wrong:
        others = sorted(set(overrides) - set(_SHAPES))
        raise ValueError(
            f"create_model: the published weights do not fit: got {few(wrong)} beside pretrained=True; expected the "
            f"model as {name!r} names it. Leave out {', '.join(others) or 'the arguments that change its shape'}."
        )
    model.load_state_dict(state, strict=True)


def _unfetched(name: str, what: str, error: Exception) -> OSError:
    first = (str(error).strip().splitlines() or [""])[0][:160]
    return OSError(
        f"create_model: the weights of {name!r} could not be fetched: got {type(error).__name__}: {first}; expected a "
        f"network, or a cache that has them. Download {what}, and give weights=<path>."
    )
