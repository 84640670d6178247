"""`explain`: where in an image a vision transformer finds what it says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from vitkern.explaining import lrp, rollout
from vitkern.explaining.capture import capture
from vitkern.explaining.layer import Layer
from vitkern.explaining.logits import checked_target, logits_of
from vitkern.explaining.methods import METHODS, Method
from vitkern.explaining.tokens import grid_of


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    heat: (B, grid_h, grid_w) float32, 0 or more: what each patch contributes. target: (B,) int64, the classes that are
        explained. logits: (B, classes).
    """

    heat: Tensor
    target: Tensor
    logits: Tensor


def explain(
    model: nn.Module, image: Tensor, method: Method = "relevance", target: int | Sequence[int] | Tensor | None = None
) -> Explanation:
    """Heat maps over the patches of images. ``model`` is left as it was: its weights, gradients, hooks and modes.

    Args:
        model: a classifier of this package (ViT, DeiT, Swin, SwinV2), or a vision transformer of timm or transformers
            whose attention is a softmax that multiplies values; accelerated, compiled, or neither.
        image: (3, height, width) or (B, 3, height, width), as the model takes it, on its device.
        method: "relevance": of each layer the weights times their positive gradients, mean over heads (Chefer et al.,
            arXiv 2103.15679); "rollout": the weights alone, whatever the class (Abnar and Zuidema, arXiv 2005.00928);
            "attention": those of the last layer alone; "lrp": layer-wise relevance by deep Taylor rules, through
            values, MLPs and residuals too, for ViT and DeiT in float32 (Chefer et al., arXiv 2012.09838). That takes
            several times as long and N^2 numbers for each head; the others keep O(N) for N tokens, beside what the
            model does.
        target: the class, or one for each image; the one with the largest logit unless given.

    Raises:
        TypeError: ``model`` is no module, ``image`` no floating-point tensor, or ``target`` no number.
        ValueError: an unknown method, a target out of range, or an image of another shape.
        NotImplementedError: the model has no logits or its attention cannot be read, or the method is not defined for
            it; the message says which.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model is no module: got {type(model).__name__}; expected torch.nn.Module.")
    if method not in METHODS:
        raise ValueError(f"explain: unknown method: got {method!r}; expected one of {', '.join(METHODS)}.")
    if not isinstance(image, Tensor) or not image.is_floating_point():
        got = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"explain: image is no floating-point tensor: got {got}; expected what the model takes.")
    if image.dim() not in (3, 4) or not image.numel():
        raise ValueError(
            f"explain: not a batch of images: got shape {tuple(image.shape)}; expected (B, 3, height, width) or one "
            "image (3, height, width)."
        )
    images = image.detach() if image.dim() == 4 else image.detach()[None]
    targets = _targets(target, len(images))
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    run = lrp.explained if method == "lrp" else partial(_explained, method=method)
    with torch.inference_mode(False):
        found = [run(model, one[None].clone(), number) for one, number in zip(images, targets, strict=True)]
    heat, logits, chosen = zip(*found, strict=True)
    return Explanation(torch.stack(heat), torch.tensor(chosen, device=image.device), torch.cat(logits))


def _targets(target: Any, count: int) -> list[int | None]:
    if target is None:
        return [None] * count
    given = target.tolist() if isinstance(target, Tensor) else target
    numbers = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * count
    if not all(isinstance(number, Integral) and not isinstance(number, bool) for number in numbers):
        raise TypeError(f"explain: target is no class: got {target!r}; expected a whole number, or one for each image.")
    if len(numbers) != count:
        raise ValueError(
            f"explain: targets do not match images: got {len(numbers)} for {count}; expected one for each."
        )
    return [int(number) for number in numbers]


def _explained(model: nn.Module, image: Tensor, target: int | None, method: str) -> tuple[Tensor, Tensor, int]:
    """Of one image (1, 3, height, width): heat (grid_h, grid_w), logits (1, classes), target."""
    with torch.enable_grad():
        result, layers = capture(model, image.requires_grad_())
        logits = logits_of(result)
        target = checked_target(target, logits)
        wanted = layers if method == "relevance" else layers[-1:]
        results = [call.result for layer in wanted for call in layer.calls]
        if not all(one.requires_grad for one in (logits, *results)):
            raise NotImplementedError(
                f"explain: gradients do not reach attention: got a {type(model).__name__} that computes a part without "
                "them; expected logits that depend on every layer. Take out its torch.no_grad() or detach()."
            )
        found = torch.autograd.grad(logits[0, target], results, materialize_grads=True)
    with torch.no_grad():
        taken = iter(found)
        grads = [[next(taken) for _ in layer.calls] for layer in wanted]
        start = _start(layers[-1], grads[-1])
        if method == "relevance":
            row, grid = rollout.relevance(layers, start, grads)
        else:
            row, grid = (rollout.rollout if method == "rollout" else rollout.attention)(layers, start)
        height, width = grid or grid_of(model, image, row.shape[0])
        heat = row[row.shape[0] - height * width :].view(height, width)
    return heat.float(), logits.detach(), target


def _start(last: Layer, grads: list[Tensor]) -> Tensor:
    """(N,): equal parts for the tokens of the last layer that the logit reads: the class token, or all of a mean."""
    wide = torch.float64 if grads[0].dtype == torch.float64 else torch.float32
    read = last.read(grads)
    read = read if read.any() else torch.ones_like(read)
    return read.to(wide) / read.sum()
