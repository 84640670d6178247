"""One model run once: its outputs and every gradient, and how far two such runs are apart."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

FLOOR = 1e-3  # of the largest gradient: what is smaller is compared with that


@dataclasses.dataclass(frozen=True)
class Run:
    """``outputs`` and ``gradients`` by name; a parameter without a gradient is not there."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]

    def says_something(self) -> bool:
        """Whether there are numbers to compare, and no NaN among them."""
        found = (*self.outputs.values(), *self.gradients.values())
        return bool(self.outputs) and not any(bool(tensor.isnan().any()) for tensor in found)


def run(model: nn.Module, inputs: Mapping[str, Any], *, grad: bool = True, seed: int = 0) -> Run:
    """Call ``model`` with random numbers from ``seed``. With ``grad``: the gradients of a fixed weighted sum of all
    outputs, of each parameter and each real input."""
    model.zero_grad()
    own = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    torch.manual_seed(seed)
    if not grad:
        with torch.no_grad():
            return Run(outputs_of(call(model, own)), {})
    for value in own.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            value.requires_grad_()
    outputs = outputs_of(call(model, own))
    total = sum(_weighted(out) for out in outputs.values() if out.requires_grad)
    if isinstance(total, Tensor):
        total.backward()
    found = {
        f"d {name}": each.grad for name, each in (*model.named_parameters(), *_leaves(own)) if each.grad is not None
    }
    found = {name: grad.detach().clone() for name, grad in found.items()}
    model.zero_grad()
    return Run({name: out.detach() for name, out in outputs.items()}, found)


def call(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Models of timm and torchvision name the images as they like."""
    return model(*inputs.values()) if set(inputs) == {"images"} else model(**inputs)


def outputs_of(answer: Any, name: str = "out") -> dict[str, Tensor]:
    """The real tensors in what a model answered, however it is wrapped up."""
    if isinstance(answer, Tensor):
        return {name: answer} if answer.is_floating_point() else {}
    parts: Iterator[tuple[Any, Any]]
    if isinstance(answer, Mapping):
        parts = iter(answer.items())
    elif isinstance(answer, list | tuple):
        parts = iter(enumerate(answer))
    elif dataclasses.is_dataclass(answer):
        parts = iter(vars(answer).items())
    else:
        return {}
    return {key: tensor for part, value in parts for key, tensor in outputs_of(value, f"{name}.{part}").items()}


def apart(before: dict[str, Tensor], after: dict[str, Tensor], floor: float = 0.0) -> float:
    """The largest max|after - before| / max|before| of all tensors; infinite where one is missing, of another shape or
    dtype, or not finite in one of them alone. A tensor smaller than ``floor`` times the largest counts as of that size.
    """
    if before.keys() != after.keys():
        return torch.inf
    sizes = {name: _largest(tensor) for name, tensor in before.items()}
    least = floor * max(sizes.values(), default=0.0)
    worst = 0.0
    for name, one in before.items():
        other = after[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            return torch.inf
        if one.numel() and not torch.equal(one, other):
            same = one.eq(other) | (one.isnan() & other.isnan())
            distance = _largest(torch.where(same, 0.0, other.double() - one.double()), finite=False)
            worst = max(worst, distance / max(sizes[name], least, torch.finfo(torch.float32).tiny))
    return worst


def _largest(tensor: Tensor, finite: bool = True) -> float:
    if not tensor.numel():
        return 0.0
    magnitudes = tensor.detach().abs().double()
    return magnitudes.nan_to_num(0.0, 0.0).max().item() if finite else magnitudes.nan_to_num(torch.inf).max().item()


def _weighted(out: Tensor) -> Tensor:
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).nan_to_num(0.0, 0.0, 0.0).sum()


def _leaves(inputs: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in inputs.items() if isinstance(value, Tensor) and value.requires_grad)
