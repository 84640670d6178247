"""Names of architectures: build one, list them, describe one."""

import difflib
import fnmatch
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from vitkern.models import hub
from vitkern.models.backbone import Backbone
from vitkern.models.features import FeatureMaps
from vitkern.models.pretrained import load_pretrained
from vitkern.models.weights import load_weights


@dataclass(frozen=True)
class Architecture:
    """A name and how to build it; ``arguments`` are the keyword arguments of ``build`` that make it what it is."""

    name: str
    build: Callable[..., nn.Module]
    paper: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """What `describe` says of an architecture; `str` prints it.

    parameters: their number. input_rule: what it takes, on one line. input_size: (channels, height, width) in pixels,
        None where it takes no image. num_classes: logits, 0 for a model without a head.
    """

    name: str
    family: str
    parameters: int
    input_rule: str
    input_size: tuple[int, int, int] | None
    num_classes: int
    paper: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return "\n".join(
            [
                self.name,
                f"  family      {self.family}({arguments})",
                f"  parameters  {self.parameters:,}",
                f"  input       {self.input_rule}",
                f"  classes     {self.num_classes}",
                f"  paper       {self.paper}",
            ]
        )


_architectures: dict[str, Architecture] = {}


def register(name: str, build: Callable[..., nn.Module], paper: str, **arguments: Any) -> None:
    """Adds an architecture; each file of a family does so for its names when it is imported."""
    if name in _architectures:
        raise ValueError(f"register: the name is taken: got {name!r}; expected a new one.")
    _architectures[name] = Architecture(name, build, paper, arguments)


def resolve(name: str) -> Architecture:
    """The architecture of a name of `list_models`, or of a hub id with the head and the eps of its checkpoint.

    Raises:
        TypeError: ``name`` is no string.
        ValueError: no such name; the message lists near matches.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"create_model: the name is no string: got {type(name).__name__}; expected one of vitkern.list_models()."
        )
    found = _architectures.get(name)
    if found is not None:
        return found
    base, changes = hub.resolve(name)
    found = _architectures.get(published_ids().get(base, base))
    if found is None:
        near = _near(name) or _near(base)
        remedy = f"Did you mean {', '.join(near)}?" if near else "vitkern.list_models() lists them."
        raise ValueError(
            f"create_model: unknown model name: got {name!r}; "
            f"expected one of {len(_architectures)} names or a hub id. {remedy}"
        )
    return Architecture(name, found.build, found.paper, {**found.arguments, **changes})


def _near(name: str) -> list[str]:
    """Up to five names that contain ``name``, then such as are spelled alike."""
    known = [*list_models(), *hub_names()]
    within = [candidate for candidate in known if name.lower() in candidate.lower()]
    return list(dict.fromkeys([*within, *difflib.get_close_matches(name, known, n=5, cutoff=0.5)]))[:5]


def published_ids() -> dict[str, str]:
    """Hub ids in the ``hub_ids`` of models, each with the name of its architecture."""
    ids = {name: getattr(found.build, "hub_ids", {}).get(name) for name, found in _architectures.items()}
    return {hub_id: name for name, hub_id in ids.items() if hub_id is not None}


def hub_names() -> list[str]:
    """Every hub id that `resolve` knows."""
    return [*hub.CONFIGS, *hub.FORMER, *published_ids()]


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    pretrained: bool = False,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    **overrides: Any,
) -> nn.Module:
    """Builds a model, with random weights unless a file is given. Names and parameters are timm's; those of ViL,
    NAT and DiNAT their authors'.

    Args:
        name: one of `list_models`, or a hub id such as "google/vit-base-patch16-224" or
            "timm/swin_tiny_patch4_window7_224.ms_in1k".
        weights: path of a .safetensors, .pth, .pt or .bin file; see `load_weights`.
        pretrained: the weights that timm or transformers publish under this name, from their cache or the network.
        features_only: the model as a backbone, `vitkern.models.FeatureMaps`: images in, maps of its stages out.
        out_indices: which of them; for ``features_only`` alone.
        **overrides: arguments of the model's class, for example num_classes, img_size, in_chans, drop_path_rate.

    Raises:
        TypeError: an override that the class does not take.
        ValueError: an unknown name (near matches are listed), a checkpoint that does not fit, maps of a model that has
            none, or ``out_indices`` without them.
        FileNotFoundError: no such weights file. OSError: published weights that cannot be fetched.
    """
    architecture = resolve(name)
    if pretrained and weights is not None:
        raise ValueError(
            f"create_model: two sources of weights: got pretrained=True and weights={str(weights)!r}; expected one."
        )
    if out_indices is not None and not features_only:
        raise ValueError(
            f"create_model: only maps are chosen: got out_indices={out_indices!r} without features_only=True; "
            "expected both. forward_intermediates(x, indices) gives maps beside logits."
        )
    try:
        model = architecture.build(**{**architecture.arguments, **overrides})
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        argument = str(error).rsplit("argument ", 1)[-1].strip("'")
        raise TypeError(
            f"create_model: {name} takes no such argument: got {argument}=; "
            f"expected one of {', '.join(_parameters(architecture.build))}."
        ) from None
    if weights is not None:
        load_weights(model, weights)
    if pretrained:
        load_pretrained(model, name, overrides)
    if not features_only:
        return model
    if not isinstance(model, Backbone):
        raise ValueError(
            f"create_model: this model has no maps: got features_only=True for {name!r}, a {type(model).__name__}; "
            "expected a backbone, which has feature_info. Leave out features_only."
        )
    return FeatureMaps(model, out_indices)


def variants_of(build: Callable, shapes: Mapping[str, torch.Size]) -> list[str]:
    """Names that ``build`` makes with parameters of these shapes; the classifier's may be others."""
    found = []
    for name, architecture in _architectures.items():
        if architecture.build is build:
            with torch.device("meta"):
                own = build(**architecture.arguments).state_dict()
            other = [
                key for key in {**own, **shapes} if key not in own or key not in shapes or own[key].shape != shapes[key]
            ]
            if all("head" in key.split(".") or "fc" in key.split(".") for key in other):
                found.append(name)
    return found


def _parameters(build: Callable) -> list[str]:
    return list(inspect.signature(build).parameters)


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a shell-style ``pattern``, sorted; numbers sort by value."""
    return sorted(fnmatch.filter(_architectures, pattern), key=_natural)


def _natural(name: str) -> list:
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name)]


@functools.cache
def describe(name: str) -> Description:
    """What ``name`` is, without allocating its weights. Errors as `create_model`."""
    architecture = resolve(name)
    with torch.device("meta"):
        model: Any = architecture.build(**architecture.arguments)
    return Description(
        name=name,
        family=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        input_rule=model.input_rule,
        input_size=getattr(model, "input_size", None),
        num_classes=getattr(model, "num_classes", 0),
        paper=architecture.paper,
        arguments=architecture.arguments,
    )
