"""Models without random initial values, which are most of what it takes to build a large one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

DRAWING = "uniform_", "normal_", "erfinv_"  # of tensors; the last is how a normal distribution is cut


@contextmanager
def uninitialised() -> Iterator[None]:
    """Within the block what draws random values leaves tensors as they are. For tests that give each parameter a value
    of their own, or look at none."""
    with pytest.MonkeyPatch.context() as patch:
        for name in DRAWING:
            patch.setattr(torch.Tensor, name, lambda tensor, *args, **kwargs: tensor)
        yield
