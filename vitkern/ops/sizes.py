"""Sizes of tensors as numbers: while torch.jit.trace runs they are tensors, so that graphs hold for other sizes."""

from torch import Tensor


def fixed(size: int) -> int:
    """``size`` as a constant of a recorded graph, for arguments that take nothing else; elsewhere as it is."""
    return int(size) if isinstance(size, Tensor) else size
