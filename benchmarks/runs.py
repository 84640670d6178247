"""Calls that can be timed, out of a problem: its tensors, and forward, backward or both on them."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def tensors_of(problem, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The inputs of a problem as leaves on ``device``, drawn there: a CPU takes longer than what is timed."""
    with device:
        inputs = problem.inputs(torch.Generator(device).manual_seed(0))
    return {
        name: value.to(device, dtype).requires_grad_(name in problem.gradients)
        if value.is_floating_point()
        else value.to(device)
        for name, value in inputs.items()
    }


def _differentiable(found: object) -> list[Tensor]:
    return [out for out in (found if isinstance(found, tuple) else (found,)) if out.requires_grad]


def _gradients_for(outputs: list[Tensor]) -> list[Tensor]:
    """Gradients of ``outputs``, always the same."""
    generator = torch.Generator(outputs[0].device).manual_seed(0)
    return [torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype) for out in outputs]


def training(function: Callable[[], object], leaves: list[Tensor], grads: list[Tensor] | None = None):
    """One forward and its backward; without ``grads`` those of the outputs are whatever the memory held."""
    outputs = _differentiable(function())
    return torch.autograd.grad(outputs, leaves, grads or [torch.empty_like(out) for out in outputs])


def runner(function: Callable[[], object], leaves: list[Tensor], mode: str) -> Callable[[], object]:
    """What is timed: the forward without a graph, the backward alone, or both ("training")."""
    if mode == "forward":
        return torch.no_grad()(function)
    outputs = _differentiable(function())
    grads = _gradients_for(outputs)
    if mode == "backward":
        return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)
    return functools.partial(training, function, leaves, grads)


def results_of(function: Callable[[], object], leaves: list[Tensor], mode: str) -> list[Tensor]:
    """The outputs, and the gradients too unless ``mode`` is "forward"."""
    with torch.set_grad_enabled(mode != "forward"):
        found = function()
    results = [out.detach() for out in (found if isinstance(found, tuple) else (found,))]
    if mode == "forward":
        return results
    outputs = _differentiable(found)
    return results + list(torch.autograd.grad(outputs, leaves, _gradients_for(outputs)))
