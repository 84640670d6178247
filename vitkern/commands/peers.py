"""Builds models of timm, torchvision and transformers: random weights, a file's, or the library's published ones."""

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitkern.report import BadInput, near_matches

LIBRARIES = ("timm", "torchvision", "transformers")


@dataclass
class Peer:
    """A third-party classifier. ``preprocess`` maps a PIL image to (3, img_h, img_w)."""

    name: str
    library: str
    model: nn.Module
    weights: str
    input_size: tuple[int, int]
    preprocess: Callable[[object], Tensor]
    notes: list[str]

    def __str__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        size = " x ".join(map(str, self.input_size))
        version = importlib.metadata.version(self.library)
        return f"{self.name} from {self.library} {version}: {count:,} parameters, input 3 x {size}, {self.weights}"


def build(
    name: str, library: str | None = None, *, weights: Path | None = None, pretrained: bool = False, seed: int = 0
) -> Peer:
    """Build ``name`` in eval mode, in float32 on the CPU.

    Raises:
        BadInput: the library is missing, the name is unknown (near matches are listed), or the weights cannot be read
            or do not fit.
    """
    library = library or _library_of(name)
    _require(library)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}[library](name, pretrained)
    if weights is not None:
        _load(peer.model, weights)
        peer.weights = f"weights of {weights}"
    elif pretrained:
        peer.weights = "published weights"
    else:
        randomise(peer.model, seed)
        peer.weights = "random weights and bias tables"
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
    """The library that knows ``name``: a slash means transformers, unless timm prefixes it."""
    if "/" in name:
        return "timm" if name.startswith(("timm/", "hf-hub:", "hf_hub:")) else "transformers"
    known = []
    for library in ("timm", "torchvision"):
        try:
            names = _names(library)
        except BadInput:
            continue
        if name.split(".")[0] in names:
            return library
        known += names
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


def _unknown(name: str, library: str, known: list[str], hint: str = "") -> BadInput:
    return BadInput(f"no model is called {name!r} in {library}.{near_matches(name, known)}{hint}")


def _timm(name: str, pretrained: bool) -> Peer:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    architecture = name.removeprefix("timm/").split(".")[0]
    if not name.startswith(("hf-hub:", "hf_hub:")) and architecture not in timm.list_models():
        raise _unknown(name, "timm", timm.list_models())
    model = _fetched(lambda: timm.create_model(name.removeprefix("timm/"), pretrained=pretrained), name)
    config = resolve_model_data_config(model)
    return Peer(
        name, "timm", model, "", tuple(config["input_size"][1:]), create_transform(**config, is_training=False), []
    )


def _torchvision(name: str, pretrained: bool) -> Peer:
    from torchvision.models import get_model, get_model_weights, list_models

    if name not in list_models():
        raise _unknown(name, "torchvision", list_models())
    published = get_model_weights(name).DEFAULT
    model = _fetched(lambda: get_model(name, weights=published if pretrained else None), name)
    preprocess = published.transforms()
    size = preprocess.crop_size[0] if hasattr(preprocess, "crop_size") else 224
    return Peer(name, "torchvision", model, "", (size, size), preprocess, [])


def _transformers(name: str, pretrained: bool) -> Peer:
    import transformers

    from vitkern.models import hub

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    notes = []
    if pretrained or Path(name).is_dir():
        model = _fetched(lambda: transformers.AutoModelForImageClassification.from_pretrained(name), name)
        processor = _fetched(lambda: transformers.AutoImageProcessor.from_pretrained(name), name)
    elif name in hub.CONFIGS:
        model, processor = _from_configuration(name)
        notes.append(f"built offline from the published configuration of {name}; nothing was downloaded")
    else:
        hint = " --pretrained lets transformers fetch it; a local directory works too."
        raise _unknown(name, "the published configurations kept here", list(hub.CONFIGS), hint)
    size = model.config.image_size
    size = (size, size) if isinstance(size, int) else tuple(size)

    def preprocess(image):
        return processor(image, return_tensors="pt")["pixel_values"][0]

    return Peer(name, "transformers", model, "", size, preprocess, notes)


def _from_configuration(name: str):
    """The model class that the checkpoint names, and the preprocessing published with it."""
    import transformers

    from vitkern.models import hub

    config = transformers.AutoConfig.for_model(**hub.config(name))
    model = getattr(transformers, config.architectures[0])(config)
    pixels, bicubic = config.image_size, 3
    square = dict(height=pixels, width=pixels)
    imagenet = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    if name.startswith("facebook/deit"):
        resized = {224: 256, 384: 438}[pixels]
        side = dict(height=resized, width=resized)
        processor = transformers.DeiTImageProcessor(size=side, crop_size=square, resample=bicubic, **imagenet)
    elif config.model_type in ("swin", "swinv2"):
        processor = transformers.ViTImageProcessor(size=square, resample=bicubic, **imagenet)
    else:
        processor = transformers.ViTImageProcessor(size=square)
    return model, processor


def _fetched(create: Callable, name: str):
    """``create()``, a failed download or a bad local file being bad input."""
    try:
        return create()
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"{name} could not be built: {_first_line(error)}") from None


def _load(model: nn.Module, path: Path) -> None:
    """Load a file of tensors, strictly, under the names of the model's own library."""
    from vitkern.models import read_weights

    try:
        state = read_weights(path)
    except (OSError, ValueError, ImportError) as error:
        raise BadInput(_first_line(error)) from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise BadInput(f"the weights do not fit the model: {path}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (": ".join(lines[:2]) if lines and lines[0].endswith(":") else lines[0] if lines else type(error).__name__)[
        :300
    ]
