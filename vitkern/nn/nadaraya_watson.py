"""Nadaraya-Watson kernel regression as a module."""

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.ops.nadaraya_watson import nadaraya_watson


class NadarayaWatson(nn.Module):
    """`vitkern.ops.nadaraya_watson.nadaraya_watson` with a width w of its own.

    Args:
        width: w at first.
        learned: w is a parameter, else a buffer.
        squared: w^2 takes the place of w.
    """

    def __init__(self, width: float = 1.0, *, learned: bool = True, squared: bool = False) -> None:
        super().__init__()
        self.squared = squared
        self.w: Tensor
        if learned:
            self.w = nn.Parameter(torch.tensor([float(width)]))
        else:
            self.register_buffer("w", torch.tensor([float(width)]))

    def forward(
        self, x: Tensor, keys: Tensor | None = None, values: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, N, D), (B, M, D), (B, M, V), ``mask`` (B, M) bool, True for keys that there are -> (B, N, V). Keys are
        x by default, values the keys."""
        keys = x if keys is None else keys
        values = keys if values is None else values
        return nadaraya_watson(x, keys, values, self.w, squared=self.squared, key_padding_mask=mask)

    def extra_repr(self) -> str:
        return f"squared={self.squared}"
