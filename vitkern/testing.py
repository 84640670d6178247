"""The tolerance rule, public, so that anyone can check a kernel on shapes of their own.

Three computations of one thing: ``reference`` in float64; ``ideal``, what a perfect kernel of the dtype would give
(operands rounded where a kernel must round them, everything else in float32, one final rounding); ``actual``, the
kernel. Then

(a) per case   max|actual - reference| <= margin * (2 max|ideal - reference| + 2 eps max|reference|) + slack
(b) pooled     the mean errors of many cases, summed with weights, stay within a small factor of the ideal's
(c) positions  of NaN, +inf and -inf are equal

(a) alone passes a kernel that rounds its accumulator; (b) does not.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

POOLED_LIMIT = {torch.float16: 1.08, torch.bfloat16: 1.08, torch.float32: 1.5}
POOLED_GRADIENT_LIMIT = 1.25  # for the half precisions; float32 keeps its own


@dataclass(frozen=True)
class Comparison:
    """What rule (a) and (c) say of one tensor."""

    error: float
    allowance: float
    mean_error: float
    ideal_mean_error: float
    positions_agree: bool

    @property
    def use(self) -> float:
        """The part of the allowance that the error takes; above 1 it fails."""
        if self.error == 0.0:
            return 0.0
        return self.error / self.allowance if self.allowance > 0 else float("inf")

    @property
    def passed(self) -> bool:
        return self.positions_agree and self.use <= 1.0


def compare(actual: Tensor, ideal: Tensor, reference: Tensor, *, slack: float = 0.0, margin: float = 1.0) -> Comparison:
    """Rule (a) and (c) for one tensor.

    Args:
        actual: the kernel's result; its dtype sets eps.
        ideal: same shape, what a perfect kernel of that dtype gives.
        reference: same shape, float64.
        slack: absolute addition for what the ideal cannot see; attention adds ``2 eps32 (1 + max|score|) max|v|``
            because exp turns a
            score's rounding into a relative error of its size.
        margin: factor for hardware whose exp2 or accumulation order is not modelled; 1.5 on GPUs.

    Raises:
        ValueError: the shapes differ.
    """
    if not (actual.shape == ideal.shape == reference.shape):
        raise ValueError(
            f"compare: shapes differ: got actual {tuple(actual.shape)}, ideal {tuple(ideal.shape)}, "
            f"reference {tuple(reference.shape)}; "
            "expected one shape."
        )
    eps = torch.finfo(actual.dtype).eps
    actual, ideal, reference = (t.detach().double().cpu() for t in (actual, ideal, reference))
    agree = all(torch.equal(f(actual), f(ideal)) for f in (torch.isnan, torch.isposinf, torch.isneginf))
    finite = torch.isfinite(reference) & torch.isfinite(ideal) & torch.isfinite(actual)
    if not finite.any():
        return Comparison(0.0, 0.0, 0.0, 0.0, agree)
    actual, ideal, reference = actual[finite], ideal[finite], reference[finite]
    error, ideal_error = (actual - reference).abs(), (ideal - reference).abs()
    allowance = margin * (2 * ideal_error.max() + 2 * eps * reference.abs().max()) + slack
    return Comparison(error.max().item(), float(allowance), error.mean().item(), ideal_error.mean().item(), agree)


def assert_close(
    actual: Tensor, ideal: Tensor, reference: Tensor, *, name: str = "tensor", slack: float = 0.0, margin: float = 1.0
) -> Comparison:
    """`compare`, raising AssertionError with the figures where it fails."""
    result = compare(actual, ideal, reference, slack=slack, margin=margin)
    if not result.positions_agree:
        raise AssertionError(f"{name}: NaN or infinity in other places than the reference has them")
    if not result.passed:
        raise AssertionError(
            f"{name}: max error {result.error:.3e} is {result.use:.2f} times the allowance {result.allowance:.3e}"
        )
    return result


@dataclass
class Pool:
    """Rule (b): mean errors of many cases, each weighted by 1 / (eps * magnitude) so that no case drowns the others."""

    actual: dict[tuple[str, torch.dtype], float] = field(default_factory=dict)
    ideal: dict[tuple[str, torch.dtype], float] = field(default_factory=dict)

    def add(self, name: str, dtype: torch.dtype, result: Comparison, magnitude: float) -> None:
        if magnitude <= 0.0:
            return
        weight = 1.0 / (torch.finfo(dtype).eps * magnitude)
        key = name, dtype
        self.actual[key] = self.actual.get(key, 0.0) + weight * result.mean_error
        self.ideal[key] = self.ideal.get(key, 0.0) + weight * result.ideal_mean_error

    def ratios(self) -> dict[tuple[str, torch.dtype], float]:
        """(name, dtype) -> pooled mean error of the kernel over that of the ideal."""
        return {key: self.actual[key] / self.ideal[key] for key in self.actual if self.ideal[key] > 0.0}

    def failures(self, margin: float = 1.0) -> list[str]:
        """One line per (name, dtype) over its limit; names that start with "d" are gradients."""
        lines = []
        for (name, dtype), ratio in self.ratios().items():
            limit = POOLED_LIMIT[dtype]
            if name.startswith("d") and dtype != torch.float32:
                limit = POOLED_GRADIENT_LIMIT
            if ratio > limit * margin:
                figures = f"pooled mean error is {ratio:.3f} times the ideal's; the limit is {limit * margin:.3f}"
                lines.append(f"{name} in {dtype}: {figures}")
        return lines
