"""What PyTorch may do with an operator is tried on one call of it, and with a module on one of each; the tests have
the trials."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

LENGTH = 5  # n, unless a trial changes it


@dataclass(frozen=True)
class Integration:
    """``function(*tensors)`` of tensors of ``shapes(n)``, all with gradients.

    products: FLOPs of the matrix products at n = 5.
    batched: arguments with a leading batch.
    under_autocast: dtype of each output under autocast; None for the autocast dtype.
    """

    function: Callable
    shapes: Callable[[int], list[tuple[int, ...]]]
    products: int
    batched: tuple[int, ...] = (0,)
    under_autocast: tuple[torch.dtype | None, ...] = (None,)

    def tensors(self, n: int = LENGTH, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(n)
        return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in self.shapes(n)]


@dataclass(frozen=True)
class Module:
    """A module of `vitkern.nn`, built with ``arguments`` and called on a tensor of ``shape`` and on ``more``.

    one_batch: the older ONNX exporter makes constants of its sizes.
    """

    shape: tuple[int, ...]
    arguments: Mapping[str, object]
    more: tuple = ()
    one_batch: bool = False
