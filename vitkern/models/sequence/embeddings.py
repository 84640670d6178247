"""Token ids and their positions, before the first block."""

import torch
import torch.nn as nn
from torch import Tensor

LAYOUTS = ("interleaved", "halves")


def sinusoids(length: int, dim: int, layout: str = "interleaved") -> Tensor:
    """sin and cos of position / 10000^(2 j / dim) for each j < dim / 2 (arXiv 1706.03762, section 3.5).

    Args:
        length: positions. dim: channels C.
        layout: "interleaved": channels 2 j and 2 j + 1 hold sine and cosine of one frequency, as in the paper;
            "halves": all sines, then all cosines, as in Marian.

    Returns:
        (length, C) float32, computed in float64.
    """
    frequency = 1e4 ** (-torch.arange(0, dim, 2, dtype=torch.float64, device="cpu") / dim)
    angle = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * frequency  # (length, ceil(C / 2))
    sine, cosine = angle.sin(), angle[:, : dim // 2].cos()
    if layout == "halves":
        return torch.cat([sine, cosine], 1).float()
    table = angle.new_empty(length, dim)
    table[:, 0::2], table[:, 1::2] = sine, cosine
    return table.float()


class SinusoidalPositions(nn.Module):
    """`sinusoids` as a module; they are no parameters, and no part of its state.

    Args:
        max_len: positions there are. dim: channels C. layout: one of `LAYOUTS`.

    Raises:
        ValueError: an unknown layout.
    """

    table: Tensor

    def __init__(self, max_len: int, dim: int, layout: str = "interleaved") -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise ValueError(
                f"SinusoidalPositions: unknown layout: got {layout!r}; expected one of {', '.join(LAYOUTS)}."
            )
        self.layout = layout
        self.register_buffer("table", torch.empty(max_len, dim), persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Fills the table; call it for a module that was built on the meta device and got memory since."""
        length, dim = self.table.shape
        self.table.copy_(sinusoids(length, dim, self.layout))

    def forward(self, start: int, length: int) -> Tensor:
        """Positions start .. start + length - 1: (length, C)."""
        return self.table[start : start + length]


def check_tokens(model: nn.Module, name: str, tokens: Tensor, most: int, before: int = 0) -> None:
    """Refuses what ``model`` cannot embed: ``tokens`` called ``name``, with so many ``before`` them.

    Raises:
        TypeError: they are no int64 or int32 ids.
        ValueError: they are no (B, N), or more than ``most``.
    """
    kind = type(model).__name__
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        got = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"{kind}: {name} are no ids: got {got}; expected an int64 or int32 tensor (B, N).")
    if tokens.dim() != 2:
        raise ValueError(f"{kind}: {name} are no batch of sequences: got {tuple(tokens.shape)}; expected (B, N).")
    if before + tokens.shape[1] > most:
        raise ValueError(
            f"{kind}: {name} are more than there are positions: got {before + tokens.shape[1]}; expected at most "
            f"{most}. Shorten them, or build the model with more positions."
        )
