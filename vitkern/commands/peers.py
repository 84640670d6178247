"""Builds models of timm, torchvision and transformers: random weights, a file's, or the library's published ones."""

import importlib
import inspect
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from vitkern.commands import peers_transformers
from vitkern.commands.outcome import described, refused
from vitkern.commands.peer import PUBLISHED, RANDOM, Peer, unknown
from vitkern.commands.sealed import offline, quiet
from vitkern.report import BadInput, is_shortage, near_matches

LIBRARIES = ("timm", "torchvision", "transformers")
HUB = ("hf-hub:", "hf_hub:")  # before names that timm takes from the network


def build(
    name: str, library: str | None = None, *, weights: Path | None = None, pretrained: bool = False, seed: int = 0
) -> Peer:
    """Build ``name`` in eval mode, in float32 on the CPU. Nothing is fetched unless ``pretrained``, no code of a
    checkpoint runs, and nobody is asked. Weights that were drawn get noise (`randomise`), a user's stay as they are.

    Raises:
        BadInput: the library is missing, the name is unknown (near matches are listed), or the weights cannot be read,
            are not all there, or do not fit.
    """
    makers = {"timm": _timm, "torchvision": _torchvision, "transformers": peers_transformers.build}
    with quiet(), nullcontext() if pretrained else offline():
        library = library or _library_of(name)
        _require(library)
        torch.manual_seed(seed)
        peer = makers[library](name, pretrained)
    if weights is not None:
        _load(peer.model, weights)
        peer.weights = f"weights of {weights}"
    elif peer.weights == RANDOM:
        randomise(peer.model, seed)
    peer.model.eval()
    return peer


def randomise(model: nn.Module, seed: int) -> None:
    """Noise on every parameter that starts constant, and on each bias table: zeros and ones hide what they meet."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_table = "bias_table" in name
            if parameter.numel() and (is_table or bool((parameter == parameter.flatten()[0]).all())):
                noise = torch.randn(parameter.shape, generator=generator) * (0.5 if is_table else 0.1)
                parameter.add_(noise.to(parameter))


def _require(library: str):
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise BadInput(f"{library} is not installed ({error}). Install it with: pip install {library}") from None


def _library_of(name: str) -> str:
    """The library that knows ``name``: a slash or a folder means transformers, unless timm prefixes it."""
    if name.startswith(("timm/", *HUB)):
        return "timm"
    if "/" in name:
        return "transformers"
    known = []
    for library in ("timm", "torchvision"):
        try:
            names = _names(library)
        except BadInput:
            continue
        if name.split(".")[0] in names:
            return library
        known += names
    if peers_transformers.is_folder(name):
        return "transformers"
    if not known:
        raise BadInput("neither timm nor torchvision is installed. Install one with: pip install timm")
    raise BadInput(f"no model is called {name!r} in timm or torchvision.{near_matches(name, known)}")


def _names(library: str) -> list[str]:
    _require(library)
    if library == "timm":
        import timm

        return timm.list_models()
    from torchvision.models import list_models

    return list_models()


def _timm(name: str, pretrained: bool) -> Peer:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    name_there, known = name.removeprefix("timm/"), timm.list_models()
    if not name.startswith(HUB) and name_there.split(".")[0] not in known:
        raise unknown(name, "timm", known)
    problem = "could not be built"
    if name.startswith(HUB) and not pretrained:
        problem += " of what is on this machine (--pretrained lets timm fetch it)"
    model = refused(name, lambda: timm.create_model(name_there, pretrained=pretrained), problem)
    config = resolve_model_data_config(model)
    transform = create_transform(**config, is_training=False)
    return Peer(name, "timm", model, PUBLISHED if pretrained else RANDOM, tuple(config["input_size"][1:]), transform)


def _torchvision(name: str, pretrained: bool) -> Peer:
    from torchvision.models import get_model, get_model_builder, get_model_weights, list_models

    if name not in list_models():
        raise unknown(name, "torchvision", list_models())
    published = get_model_weights(name).DEFAULT
    options = {"weights": published if pretrained else None}
    if "weights_backbone" in inspect.signature(get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # it is fetched unless told otherwise, and all weights include it
    model = refused(name, lambda: get_model(name, **options), "could not be built")
    preprocess = published.transforms()
    size = preprocess.crop_size[0] if hasattr(preprocess, "crop_size") else 224
    return Peer(name, "torchvision", model, PUBLISHED if pretrained else RANDOM, (size, size), preprocess)


def _load(model: nn.Module, path: Path) -> None:
    """Load a file of tensors, strictly, under the names of the model's own library."""
    from vitkern.models import read_weights

    try:
        state = read_weights(path)
    except Exception as error:
        if is_shortage(error):
            raise
        raise BadInput(described(error)) from error
    own = model.state_dict()
    for name, value in state.items():
        if name in own and value.is_floating_point() != own[name].is_floating_point():
            raise BadInput(f"the weights do not fit the model: {path}: {name} is {value.dtype}, for {own[name].dtype}")
    refused("the weights", lambda: model.load_state_dict(state), f"do not fit the model: {path}")
