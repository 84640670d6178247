"""Runs one problem: the operator, the ideal of its dtype, and float64; output and every gradient."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitkern.lab.problems import Problem
from vitkern.testing import Comparison, Pool, compare

GPU_MARGIN = 1.5  # for rule (a): the hardware's exp2 and order of accumulation are not modelled
GPU_POOLED_MARGIN = 1.07
POOLED_ELEMENTS = 64
PYTORCH_MARGIN = 2.0  # PyTorch rounds between its operators, where one kernel does not


@dataclass(frozen=True)
class Result:
    """How one tensor of a problem compares; ``name`` is an output, or "d" and an input."""

    name: str
    dtype: torch.dtype
    comparison: Comparison
    magnitude: float
    elements: int


def verify(
    problem: Problem,
    dtype: torch.dtype,
    device: torch.device,
    *,
    seed: int = 0,
    reference_device: torch.device | str = "cpu",
    margin: float | None = None,
) -> list[Result]:
    """Compare the operator of ``problem`` with float64 by the rule of `vitkern.testing`: each output, each gradient.

    ``margin`` is that of `vitkern.testing.compare`; by default 1, on a GPU `GPU_MARGIN`.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: _rounded(value, dtype) for name, value in problem.inputs(generator).items()}
    grads, computed = None, {}
    half = dtype if dtype != torch.float32 else None
    for kind, width, where, function, extra in (
        ("reference", torch.float64, reference_device, problem.reference, {}),
        ("ideal", torch.float32, reference_device, problem.reference, dict(low_precision=half)),
        ("actual", dtype, device, problem.run, {}),
    ):
        tensors = {name: _leaf(value, width, where, name in problem.gradients) for name, value in inputs.items()}
        outputs = function(**tensors, **problem.options, **extra)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        if grads is None:
            grads = [
                _rounded(torch.randn(out.shape, generator=generator, dtype=torch.float64), dtype) for out in outputs
            ]
        count = problem.differentiable
        found = torch.autograd.grad(
            outputs[:count],
            [tensors[name] for name in problem.gradients],
            [grad.to(device=out.device, dtype=out.dtype) for grad, out in zip(grads, outputs[:count], strict=False)],
        )
        computed[kind] = dict(zip(problem.outputs, outputs, strict=True)) | {
            f"d{name}": grad for name, grad in zip(problem.gradients, found, strict=True)
        }
    slack = 2 * torch.finfo(torch.float32).eps * (1 + _largest_score(inputs, problem.options))
    margin = margin or (GPU_MARGIN if device.type == "cuda" else 1.0)
    results = []
    for name, actual in computed["actual"].items():
        reference = computed["reference"][name].detach()
        ideal = computed["ideal"][name].detach().to(actual.dtype)
        finite = reference[torch.isfinite(reference)]
        magnitude = finite.abs().max().item() if finite.numel() else 0.0
        result = compare(actual, ideal, reference, slack=slack * magnitude, margin=margin)
        results.append(Result(name, actual.dtype, result, magnitude, actual.numel()))
    return results


def pool_of(results: Iterable[Result]) -> Pool:
    """Rule (b) over the results of many problems; a tensor of a few elements has no mean error worth the name."""
    pool = Pool()
    for result in results:
        if result.elements >= POOLED_ELEMENTS and math.isfinite(result.comparison.mean_error):
            pool.add(result.name, result.dtype, result.comparison, result.magnitude)
    return pool


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).double() if value.is_floating_point() else value


def _leaf(value: Tensor, dtype: torch.dtype, device: torch.device, gradient: bool) -> Tensor:
    if not value.is_floating_point():
        return value.to(device)
    return value.to(device=device, dtype=dtype).requires_grad_(gradient)


def _largest_score(inputs: dict[str, Tensor], options: dict) -> float:
    """A bound on the logits: the exponential turns a logit's rounding into a relative error of its size."""
    if "q" not in inputs:
        return 8.0 if "qkv" in inputs else 0.0
    q, k = inputs["q"], inputs["k"]
    scale = options.get("scale") or q.shape[-1] ** -0.5
    bound = q.norm(dim=-1).max() * k.norm(dim=-1).max() * scale
    added = [inputs[name] for name in ("bias", "mask") if name in inputs and inputs[name].is_floating_point()]
    return bound.item() + sum(term.abs().max().item() for term in added)
