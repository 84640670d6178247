"""explain: a photograph with a heat map over it that shows where a vision transformer looked."""

import importlib.util
from pathlib import Path

import torch

from vitkern.commands import peers
from vitkern.commands.images import read_images
from vitkern.commands.numbers import whole
from vitkern.commands.outcome import refused
from vitkern.commands.peer import RANDOM, Peer
from vitkern.explaining.methods import METHODS
from vitkern.report import BadInput, near_matches

OWN = "vitkern"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def add_arguments(parser) -> None:
    parser.add_argument(
        "model",
        help="a name of timm, torchvision or vitkern, a hub id such as google/vit-base-patch16-224, or a directory",
    )
    parser.add_argument("--image", required=True, type=Path, metavar="FILE", help="the photograph")
    parser.add_argument("--method", choices=METHODS, default="relevance", help="the default is relevance")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help=f"what is written: {', '.join(SUFFIXES)}"
    )
    parser.add_argument(
        "--target", type=whole(0), metavar="N", help="number of the class; the one that the model finds unless given"
    )
    parser.add_argument("--library", choices=(*peers.LIBRARIES, OWN), help="found out from the name unless given")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights", type=Path, metavar="FILE", help=".safetensors, or a file for torch.load(weights_only=True)"
    )
    weights.add_argument(
        "--pretrained", action="store_true", help="let the library load its published weights (may download)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is a GPU unless given")


def run(arguments) -> int:
    if arguments.out.suffix.lower() not in SUFFIXES:
        raise BadInput(f"--out has no suffix of an image: {arguments.out}; expected one of {', '.join(SUFFIXES)}")
    if not arguments.out.parent.is_dir():
        raise BadInput(f"--out lies in no folder: {arguments.out.parent} does not exist")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda was given, and torch sees no GPU")
    (photograph,) = read_images([arguments.image])
    peer = _build(arguments)
    print(peer)
    for note in peer.notes:
        print(note)
    if peer.weights == RANDOM:
        print(
            "the weights are random: the map shows where an untrained model looks. --weights or --pretrained loads some"
        )
    from vitkern.explaining.explanation import explain
    from vitkern.explaining.overlay import box_seen, overlay

    image = peer.images([photograph]).to(device)
    model = refused(peer.name, lambda: peer.model.to(device), f"cannot be moved to {device}")
    try:
        found = explain(model, image, arguments.method, arguments.target)
    except (NotImplementedError, ValueError) as error:
        raise BadInput(f"{peer.name}: {str(error).removeprefix('explain: ')}") from error
    target = int(found.target[0])
    probability = found.logits.float().softmax(-1)[0, target]
    box = box_seen(peer.preprocess, photograph.size)
    overlay(photograph, found.heat[0], box).save(arguments.out)
    rows, cols = found.heat.shape[1:]
    print(f"class {target}, probability {probability:.1%}; {arguments.method} of {rows} x {cols} patches")
    print(f"wrote {arguments.out}")
    return 0


def _build(arguments) -> Peer:
    """A model of another library; of this one if asked for, or where timm, which has the same names, is not there."""
    from vitkern.models import list_models

    name, library = arguments.model, arguments.library
    alone = library is None and name in list_models() and importlib.util.find_spec("timm") is None
    if library != OWN and not alone:
        return peers.build(name, library, weights=arguments.weights, pretrained=arguments.pretrained)
    return _own(name, arguments.weights, arguments.pretrained)


def _own(name: str, weights: Path | None, pretrained: bool) -> Peer:
    from vitkern.models import create_model, describe, list_models

    if pretrained:
        raise BadInput("vitkern downloads nothing; give --weights FILE, or --library timm")
    if name not in list_models():
        raise BadInput(f"no model is called {name!r} in vitkern.{near_matches(name, list_models())}")
    found = describe(name)
    if found.input_size is None:
        raise BadInput(f"{name} takes no image, but {found.input_rule}")
    torch.manual_seed(0)
    if weights is None:
        model = create_model(name)
    else:
        model = refused("the weights", lambda: create_model(name, weights=weights), f"do not fit {name}")
    size = found.input_size[1:]
    halves = name.startswith("vit_")  # as ViT's own weights were trained; the others take ImageNet's mean and deviation
    mean, std = ((0.5,) * 3,) * 2 if halves else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    preprocess = _Preprocess(size, mean, std)
    return Peer(name, OWN, model.eval(), RANDOM if weights is None else f"weights of {weights}", size, preprocess)


class _Preprocess:
    """PIL image -> (3, height, width): resized to a ninth more than the model takes, its middle, normalised."""

    def __init__(self, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.size = size
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def __call__(self, image) -> torch.Tensor:
        import numpy as np

        height, width = self.size
        factor = max(height / image.height, width / image.width) / 0.9
        resized = image.resize((round(image.width * factor), round(image.height * factor)), resample=3)  # bicubic
        left, top = (resized.width - width) // 2, (resized.height - height) // 2
        pixels = np.asarray(resized.crop((left, top, left + width, top + height)), np.float32) / 255
        return (torch.from_numpy(pixels).permute(2, 0, 1) - self.mean) / self.std
