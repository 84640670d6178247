"""A launch whose tensors reach beyond 2^31 elements, on storage that is never committed.

Each case scales one extent or one stride. `Case.run` calls a launcher with ``size`` for it: once small, all programs
run; once large, only the last programs, with the same values at the end of every tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

HALF = torch.float16


@dataclass(frozen=True)
class Case:
    """``run(tensors, size)`` reaches a launch of ``kernel``, before which nothing else runs. ``blocks``: other
    answers than those of kernels' choices.
    """

    kernel: str
    name: str
    run: Callable[["Tensors", int], None]
    small: int
    large: int
    blocks: dict[str, Callable] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kernel}, {self.name}"


class Tensors:
    """Makes the inputs of a case; the same values at the end of each dimension, whatever ``size``."""

    def __init__(self, size: int, small: int):
        self.size, self.small = size, small
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, shape: Callable, dtype: torch.dtype = HALF, strides: Callable | None = None) -> Tensor:
        """``shape(size)``, and ``strides(size)`` or contiguous."""
        values = torch.randn(shape(self.small), generator=self.generator)
        values = values > 0 if dtype == torch.bool else values.to(dtype)
        extents = shape(self.size)
        if strides is None:
            tensor = torch.empty(extents, dtype=dtype)
        else:
            steps = strides(self.size)
            span = 1 + sum((n - 1) * step for n, step in zip(extents, steps, strict=True))
            tensor = torch.empty(span, dtype=dtype).as_strided(extents, steps)
        end(tensor, values.shape).copy_(values)
        return tensor


def end(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The last ``shape`` of a tensor."""
    for dim, n in enumerate(shape):
        tensor = tensor.narrow(dim, tensor.shape[dim] - n, n)
    return tensor


def scaled(kernel, name, function, small, offset, blocks=None, **options) -> Case:
    """A case that calls ``function(tensors, size, **options)`` with a size of ``small`` and of ``offset`` more."""
    return Case(kernel, name, partial(function, **options), small, offset + small, blocks or {})
