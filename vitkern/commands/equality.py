"""Says whether a swapped model computes what the original does: both against the original in float64."""

import copy
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitkern.commands.steps import labels_for, logits, loss_of
from vitkern.report import table
from vitkern.testing import Comparison, compare

# Another order of summation moves a tensor's largest error both ways: the original's own error is a scale, no bound.
MARGIN = 2.0
RANDOM_LAYERS = ("Drop", "StochasticDepth")


@dataclass(frozen=True)
class Equality:
    """The outcome of `compare_models`."""

    rows: list[tuple[str, Comparison, float, float]]  # name, comparison, the original's error, max|before - after|
    images: int
    top1: int
    losses: tuple[float, float] | None

    @property
    def passed(self) -> bool:
        return all(comparison.passed for _, comparison, _, _ in self.rows)

    def __str__(self) -> str:
        shown = self.rows[:1] + sorted(self.rows[1:], key=lambda row: -row[1].use)[:3]
        lines = [
            table(
                ("", "max|before - after|", "before to float64", "after to float64", "allowed", "verdict"),
                [
                    (
                        name,
                        f"{moved:.1e}",
                        f"{own:.1e}",
                        f"{c.error:.1e}",
                        f"{c.allowance:.1e}",
                        "ok" if c.passed else "DIFFERS",
                    )
                    for name, c, own, moved in shown
                ],
            )
        ]
        if len(self.rows) > 1:
            wrong = sum(not comparison.passed for _, comparison, _, _ in self.rows[1:])
            count = len(self.rows) - 1
            state = f"all {count} agree" if not wrong else f"{wrong} of {count} differ"
            lines.append(f"gradients of parameters: {state}; the table shows those closest to their allowance")
        if self.losses is not None:
            lines.append(f"loss: {self.losses[0]:.7g} before, {self.losses[1]:.7g} after")
        lines.append(f"top-1: the same class for {self.top1} of {self.images} images")
        return "\n".join(lines)


def compare_models(original: nn.Module, accelerated: nn.Module, images: Tensor, *, train: bool = False) -> Equality:
    """Compare logits and, with ``train``, every gradient; ``images`` (B, 3, img_h, img_w) in the models' dtype.

    The swapped model may be further from the original in float64 than the original itself is, by the factors of
    `vitkern.testing.compare` and `MARGIN`. Gradients are those of training mode with dropout and stochastic depth off:
    what is drawn at random cannot be compared.
    """
    exact = copy.deepcopy(original).double()
    with _exact_convolutions():
        before, after, truth = (_evaluate(model, x, train) for model, x in _runs(original, accelerated, exact, images))
    rows = []
    for name, actual in after[0].items():
        own, reference = before[0][name], truth[0][name]
        comparison = compare(actual, own, reference, margin=MARGIN)
        rows.append((name, comparison, _distance(own, reference), _distance(actual, own)))
    top1 = int((before[0]["logits"].argmax(-1) == after[0]["logits"].argmax(-1)).sum())
    return Equality(rows, len(images), top1, (before[1], after[1]) if train else None)


def _runs(original, accelerated, exact, images):
    return (original, images), (accelerated, images), (exact, images.double())


def _evaluate(model: nn.Module, images: Tensor, train: bool) -> tuple[dict[str, Tensor], float | None]:
    """Logits and gradients by name, and the loss."""
    model.eval()
    if not train:
        with torch.inference_mode():
            return {"logits": logits(model, images).clone()}, None
    model.train()
    for module in model.modules():
        if any(word in type(module).__name__ for word in RANDOM_LAYERS):
            module.eval()
    scores = logits(model, images)
    loss = loss_of(scores, labels_for(images))
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    model.eval()
    found = {f"d {name}": grad for name, grad in zip(named, gradients, strict=True) if grad is not None}
    return {"logits": scores.detach()} | found, loss.item()


def _distance(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).abs().max().item()


@contextmanager
def _exact_convolutions():
    """Without TF32, which would hide differences behind the patch embedding's own error."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
