"""One forward or training step of a classifier of any library."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoScores(ValueError):
    """A model gives something else than one tensor of scores or features for each image."""


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The class scores (B, classes) of a model of any of the libraries; features (B, ...) where it has no classifier.

    Raises:
        NoScores: it gives neither: detections, masks, several tensors.
    """
    output = model(images)
    for name in ("logits", "pooler_output"):
        if not isinstance(output, Tensor) and isinstance(getattr(output, name, None), Tensor):
            output = getattr(output, name)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise NoScores(f"the model gives {type(output).__name__}; expected class scores or pooled features")
    if output.ndim < 2 or len(output) != len(images):
        raise NoScores(f"the model gives {tuple(output.shape)} for {len(images)} images; expected (images, classes)")
    return output


def labels_for(images: Tensor) -> Tensor:
    """(B,) classes 0 and 1 in turn."""
    return torch.arange(len(images), device=images.device) % 2


def loss_of(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, in float32 at least."""
    return F.cross_entropy(scores if scores.dtype == torch.float64 else scores.float(), labels)


def forward_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """Inference in eval mode."""
    model.eval()

    def step():
        with torch.inference_mode():
            logits(model, images)

    return step


def training_step(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """Forward, loss and backward in training mode; the gradients replace those before."""
    labels = labels_for(images)

    def step():
        model.train()
        model.zero_grad(set_to_none=True)
        loss_of(logits(model, images), labels).backward()

    return step
