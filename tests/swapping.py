"""How the tests of `vitkern.accelerate` compare a model before and after."""

import copy

import torch
from torch import nn

import vitkern
from vitkern.interop.report import Report


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere: tables, scales and heads that start at zero hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            vector = parameter.dim() <= 1 or "table" in name or "logit_scale" in name
            spread = 0.3 if vector else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * spread)
    return model


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The model's answer, whatever it is wrapped in."""
    out = model(images)
    return out.logits if hasattr(out, "logits") else out[0] if isinstance(out, tuple) else out


def gradients(
    model: nn.Module, images: torch.Tensor, seed: int = 0
) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """(logits, gradient of every parameter and of the images) of a fixed weighted sum, random numbers from ``seed``."""
    model.zero_grad()
    images = images.clone().requires_grad_()
    torch.manual_seed(seed)
    out = logits(model, images)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return out.detach(), {**found, "images": images.grad}


def assert_near(actual: torch.Tensor, expected: torch.Tensor, limit: float, what: str) -> None:
    """max|actual - expected| <= limit * max|expected|."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, what
    size = expected.abs().max().item()
    error = (actual - expected).abs().max().item()
    assert error <= limit * max(size, 1e-3), f"{what}: error {error:.2e} of {size:.2e}"


def assert_same_gradients(model: nn.Module, other: nn.Module, images: torch.Tensor, limit: float = 1e-8) -> None:
    """Logits and every gradient agree; a parameter has a gradient in both or in neither."""
    expected, expected_gradients = gradients(model, images)
    actual, actual_gradients = gradients(other, images)
    assert_near(actual, expected, limit, "logits")
    assert actual_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert (gradient is None) == (actual_gradients[name] is None), name
        if gradient is not None:
            assert_near(actual_gradients[name], gradient, limit, name)


def assert_unchanged(model: nn.Module, images: torch.Tensor, limit: float = 1e-8) -> Report:
    """Accelerating ``model`` changes no logit (float32, eval) and no gradient (float64, train) -> report of a copy.

    ``limit``: of what is in float64; larger where the original computes a part of it in float32.
    """
    swapped = copy.deepcopy(model)
    report = vitkern.accelerate(swapped)
    model.eval(), swapped.eval()
    with torch.no_grad():
        assert_near(logits(swapped, images), logits(model, images), 2e-5, "logits in float32")
    model.double().train(), swapped.double().train()
    assert_same_gradients(model, swapped, images.double(), limit)
    model.float(), swapped.float()
    return report
