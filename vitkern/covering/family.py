"""A family of models, and the numbers that its small model starts with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

BATCH = 2


class Family(NamedTuple):
    """``name``: of the small model, as the page shows it. ``build()`` -> (model, the arguments of its forward)."""

    name: str
    build: Callable[[], tuple[nn.Module, dict[str, Any]]]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere: tables, gates, scales and heads that start at zero, and matrices that start small, hide
    mistakes. What starts at its usual size stays, as a network of noise twice that size amplifies rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            usual = 0.3
            if parameter.dim() > 1 and "table" not in name:
                usual = max(1, parameter[0].numel()) ** -0.5
                if parameter.numel() > 1 and parameter.std() > usual / 2:
                    continue
            parameter.add_(noise * usual)
    return model


def pictures(height: int, width: int | None = None, channels: int = 3) -> torch.Tensor:
    """(BATCH, channels, height, width) of noise."""
    shape = BATCH, channels, height, width or height
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
