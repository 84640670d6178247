"""accelerate: swap kernels into a model of timm, torchvision or transformers; compare and time it before and after."""

import copy
from pathlib import Path

import torch

import vitkern
from vitkern.commands import equality, timing
from vitkern.commands.images import read_images, sample_photographs
from vitkern.commands.numbers import real, whole
from vitkern.commands.outcome import refused
from vitkern.commands.peers import LIBRARIES, build
from vitkern.commands.steps import forward_step, training_step
from vitkern.report import BadInput, memory, progress, seconds, table

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def add_arguments(parser) -> None:
    parser.add_argument(
        "model", help="a name of timm or torchvision, a hub id such as google/vit-base-patch16-224, or a directory"
    )
    parser.add_argument("--library", choices=LIBRARIES, help="found out from the name unless given")
    parser.add_argument(
        "--image", nargs="+", type=Path, default=[], metavar="FILE", help="photographs; installed samples unless given"
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights", type=Path, metavar="FILE", help=".safetensors, or a file for torch.load(weights_only=True)"
    )
    weights.add_argument(
        "--pretrained", action="store_true", help="let the library load its published weights (may download)"
    )
    parser.add_argument(
        "--batch", type=whole(1), metavar="N", help="images in a timed step: 8 on a CPU, 64 on a GPU unless given"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is a GPU unless given")
    parser.add_argument(
        "--train", action="store_true", help="compare the loss and every gradient too, and time a training step"
    )
    parser.add_argument(
        "--seconds", type=real(0), default=10.0, metavar="S", help="time budget of each timing; 0 skips them"
    )


def run(arguments) -> int:
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda was given, and torch sees no GPU")
    batch = arguments.batch if arguments.batch is not None else (64 if device.type == "cuda" else 8)
    dtype = DTYPES[arguments.dtype]
    paths = arguments.image or sample_photographs()
    photographs = read_images(paths)
    progress(f"building {arguments.model}")
    peer = build(arguments.model, arguments.library, weights=arguments.weights, pretrained=arguments.pretrained)
    print(peer)
    for note in peer.notes:
        print(note)
    images = peer.images(photographs).to(device, dtype)
    names = ", ".join(path.name for path in paths) or "random noise (no sample photographs are installed)"
    print(f"{arguments.dtype} on {device}; images: {names}")
    original = refused(
        peer.name, lambda: peer.model.to(device, dtype), f"cannot be moved to {arguments.dtype} on {device}"
    )
    accelerated = refused(peer.name, lambda: copy.deepcopy(original), "cannot be copied")
    print()
    print(vitkern.accelerate(accelerated))
    print()
    result = _compare(original, accelerated, images, arguments.train)
    pairs = _time(original, accelerated, _batch(images, batch), arguments) if arguments.seconds > 0 else {}
    print(f"verdict: {result.verdict}{''.join(_speed(*item) for item in pairs.items())}")
    return 0 if result.passed else 1


def _batch(images: torch.Tensor, count: int) -> torch.Tensor:
    return images[torch.arange(count, device=images.device) % len(images)]


def _compare(original, accelerated, images, train: bool) -> equality.Equality:
    what = "outputs and gradients" if train else "outputs"
    progress(f"comparing {what} of {len(images)} images, three models: before, after, float64")
    try:
        result = equality.compare_models(original, accelerated, images, train=train)
    except equality.NothingToCompare as problem:
        raise BadInput(str(problem)) from problem
    print(result)
    print()
    return result


def _time(original, accelerated, images, arguments) -> dict[str, tuple]:
    """Timings by step, each a pair (before, after); prints them."""
    steps = {"forward": forward_step}
    if arguments.train:
        steps["training"] = training_step
    pairs, rows = {}, []
    for name, step in steps.items():
        progress(f"timing {name} of {len(images)} images, before and after in turn")
        runs = {"before": step(original, images), "after": step(accelerated, images)}
        timed = timing.side_by_side(runs, images.device, budget=arguments.seconds, progress=progress)
        pairs[name] = before, after = timed["before"], timed["after"]
        times, low, high = timing.ratio(before, after)
        rows += [
            (f"{name}, before", seconds(before.median), f"{before.spread:.1%}", memory(before.peak), "", ""),
            (
                f"{name}, after",
                seconds(after.median),
                f"{after.spread:.1%}",
                memory(after.peak),
                f"{times:.2f}x",
                f"{low:.2f} .. {high:.2f}",
            ),
        ]
    rounds = len(before.samples)
    print(
        f"{len(images)} images a step, {rounds} rounds, before and after in turn; "
        "peak memory is beyond weights and inputs"
    )
    print(table(("step", "median", "spread", "peak memory", "speed", "quartiles"), rows))
    print()
    return pairs


def _speed(name: str, pair: tuple) -> str:
    return f"; {name} {timing.ratio(*pair)[0]:.2f} times as fast"
