"""How large what a kernel adds up is: where the rounding of intermediate results shows more than in an ideal kernel."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vitkern.lab.proving.problem import Problem

MAX_HEAD_SCALE = 100.0  # cosine attention clamps its factor there
MIN_NORM = 1e-12


class Sizes(NamedTuple):
    """``score``: a bound on the logits; the exponential turns a logit's rounding into a relative error of its size.

    ``terms``: gradient -> typical size of one element of the terms that it is a difference of. Softmax and
    normalisation subtract a mean, and what is left may be nothing: with a single key dq is 0 by the formula.
    """

    score: float
    terms: dict[str, float]


def sizes_of(problem: Problem, operands: dict[str, Tensor | None], grad: Tensor | None) -> Sizes:
    """``grad``: of the first output; None without gradients."""
    options = problem.options
    if problem.sizes is not None:
        return problem.sizes(operands, options, grad)
    found = _heads(operands, options)
    if found is None:
        return Sizes(0.0, {})
    q, k, v = found
    width = q.shape[-1]
    added = [operands.get(name) for name in ("bias", "mask", "table", "rel_h", "rel_w", "sinks")]
    added = sum(largest(term) for term in added if term is not None and term.is_floating_point())
    if operands.get("logit_scale") is not None:
        scale = min(largest(operands["logit_scale"].double().exp()), MAX_HEAD_SCALE)
        score, keys, queries = scale, scale / _smallest_row(q), scale / _smallest_row(k)
    else:
        scale = options.get("scale") or width**-0.5
        score, keys, queries = _row(q) * _row(k) * scale, _row(k) * scale, _row(q) * scale
    if grad is None:
        return Sizes(score + added, {})
    slope = _row(grad.unflatten(-1, (-1, v.shape[-1]))) * _row(v) / v.shape[-1] ** 0.5  # of the probabilities
    terms = dict.fromkeys(("bias", "table", "rel_h", "rel_w", "sinks"), slope) | dict(logit_scale=slope * score)
    terms |= dict(q=slope * keys / width**0.5, k=slope * queries / width**0.5)
    terms |= dict.fromkeys(("qkv", "padding"), max(terms["q"], terms["k"]))
    terms |= dict.fromkeys(("query_gate", "key_gate"), slope * options.get("strength", 0.0))
    return Sizes(score + added, {f"d{name}": size for name, size in terms.items()})


def _heads(operands: dict, options: dict) -> tuple[Tensor, Tensor, Tensor] | None:
    """q, k, v, the last dimension a head's; None for an operator that has none."""
    if "q" in operands:
        return operands["q"], operands["k"], operands["v"]
    if "qkv" not in operands:
        return None
    if operands["qkv"].dim() == 5:  # (B, N, 3, H, D)
        return operands["qkv"].unbind(2)
    return operands["qkv"].unflatten(-1, (3, options["num_heads"], -1)).unbind(-3)  # (B, img_h, img_w, 3 C)


def norm_sizes(operands: dict, options: dict, grad: Tensor | None, *, spread: Callable) -> Sizes:
    """Of x, or x + residual, (..., C) over the root of ``spread`` (...,) and eps."""
    if grad is None:
        return Sizes(0.0, {})
    x, residual, weight = (operands.get(name) for name in ("x", "residual", "weight"))
    total = x.double() if residual is None else x.double() + residual.double()
    steepest = largest((spread(total) + options["eps"]).rsqrt())
    size = steepest * largest(grad) * (1.0 if weight is None else largest(weight))
    return Sizes(0.0, {"dx": size, "dresidual": size})


def _row(x: Tensor) -> float:
    """The largest norm of a row that is finite."""
    return largest(x.double().norm(dim=-1))


def _smallest_row(x: Tensor) -> float:
    norms = x.double().norm(dim=-1)
    norms = norms[torch.isfinite(norms)]
    return max(norms.min().item(), MIN_NORM) if norms.numel() else 1.0


def largest(values: Tensor) -> float:
    """Of the finite ones; 0 where there is none."""
    finite = values.detach()[torch.isfinite(values)]
    return finite.abs().max().item() if finite.numel() else 0.0
