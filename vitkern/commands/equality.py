"""Says whether a swapped model computes what the original does: both against the original in float64."""

import copy
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vitkern.commands.outcome import described
from vitkern.commands.steps import labels_for, logits, loss_of
from vitkern.report import is_shortage, table
from vitkern.testing import Comparison, compare

# Another order of summation moves a tensor's largest error both ways: the original's own error is a scale, no bound.
MARGIN = 2.0
RANDOM_LAYERS = ("Drop", "StochasticDepth")


class NothingToCompare(Exception):
    """The original itself cannot be run, or gives no scores; its text says why."""


@dataclass(frozen=True)
class Equality:
    """The outcome of `compare_models`.

    rows: name, comparison, the original's error, max|before - after|; of tensors that are not finite, which are never
        equal, the errors are infinite. top1: None where the outputs are no scores (B, classes). finite: of the
        original's tensors, whether each is.
    """

    rows: list[tuple[str, Comparison, float, float]]
    images: int
    top1: int | None
    losses: tuple[float, float] | None
    finite: bool

    @property
    def passed(self) -> bool:
        return self.finite and all(comparison.passed for _, comparison, _, _ in self.rows)

    @property
    def verdict(self) -> str:
        if not self.finite:
            return "NOTHING IS SHOWN: the original's own results are not finite"
        return "the same results" if self.passed else "RESULTS DIFFER"

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
                        "ok" if c.passed else "DIFFERS" if math.isfinite(c.error) else "NOT FINITE",
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
        if self.top1 is not None:
            lines.append(f"top-1: the same class for {self.top1} of {self.images} images")
        return "\n".join(lines)


def compare_models(original: nn.Module, accelerated: nn.Module, images: Tensor, *, train: bool = False) -> Equality:
    """Compare logits and, with ``train``, every gradient; ``images`` (B, 3, img_h, img_w) in the models' dtype.

    The swapped model may be further from the original in float64 than the original itself is, by the factors of
    `vitkern.testing.compare` and `MARGIN`. Gradients are those of training mode with dropout and stochastic depth off:
    what is drawn at random cannot be compared. What is not finite is not compared either, and has failed.

    Raises:
        NothingToCompare: the original cannot be run on the images, as it is or in float64.
    """
    with _exact_convolutions():
        before = _original(lambda: original, images, train)
        after = _evaluate(accelerated, images, train)
        truth = _original(lambda: copy.deepcopy(original).double(), images.double(), train)
    rows, finite = [], True
    for name in dict.fromkeys([*before[0], *after[0]]):
        there = next(found[name] for found in (before[0], after[0]) if name in found)
        nothing = torch.zeros_like(there)  # no gradient is one of zeros
        own, actual, reference = (found[0].get(name, nothing) for found in (before, after, truth))
        finite = finite and _is_finite(own) and _is_finite(reference)
        comparison = compare(actual, own, reference, margin=MARGIN)
        if not all(map(_is_finite, (own, reference, actual))):
            comparison = replace(comparison, error=math.inf)
        rows.append((name, comparison, _distance(own, reference), _distance(actual, own)))
    top1 = _same_class(before[0]["logits"], after[0]["logits"])
    return Equality(rows, len(images), top1, (before[1], after[1]) if train else None, finite)


def _original(model, images: Tensor, train: bool) -> tuple[dict[str, Tensor], float | None]:
    try:
        return _evaluate(model(), images, train)
    except Exception as error:
        if is_shortage(error):
            raise
        raise NothingToCompare(f"the original cannot be run in {images.dtype}: {described(error)}") from error


def _same_class(before: Tensor, after: Tensor) -> int | None:
    if before.ndim != 2:
        return None
    both = torch.isfinite(before).all(-1) & torch.isfinite(after).all(-1)
    return int(((before.argmax(-1) == after.argmax(-1)) & both).sum())


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


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
    """Infinite where one of them is not finite."""
    return (a.double() - b.double()).abs().nan_to_num(nan=math.inf).max().item()


@contextmanager
def _exact_convolutions():
    """Without TF32, which would hide differences behind the patch embedding's own error."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
