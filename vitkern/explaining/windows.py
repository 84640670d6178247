"""Where the windows of a module lie in its image."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkern.ops.window_attention.windows import windows_of


class Windows(NamedTuple):
    """Of an image of ``grid`` tokens. ``wrap``: "image" rolls, then pads (timm); "padded" pads, then rolls. ``sorted``:
    by what they hold, as vitkern has them; others go row by row."""

    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int]
    wrap: str
    sorted: bool

    def tokens(self, device: torch.device) -> Tensor:
        """(windows, tokens of a window), -1 for padding."""
        if self.sorted:
            found = windows_of(1, *self.grid, self.window, self.shift, self.wrap, device)
            gather = found.gather if found.outside is None else found.gather.masked_fill(found.outside[:, 0], -1)
            return gather.view(-1, self.window[0] * self.window[1])
        image = torch.arange(self.grid[0] * self.grid[1], device=device).view(self.grid)
        (rows, cols), back = self.window, (-self.shift[0], -self.shift[1])
        fill = (0, -self.grid[1] % cols, 0, -self.grid[0] % rows)
        if self.wrap == "image":
            image = F.pad(image.roll(back, (0, 1)), fill, value=-1)
        else:
            image = F.pad(image, fill, value=-1).roll(back, (0, 1))
        return image.unfold(0, rows, rows).unfold(1, cols, cols).reshape(-1, rows * cols)


def has_windows(module: nn.Module) -> bool:
    """Whether it says how it cuts an image: Swin's blocks in timm and transformers, its attention elsewhere."""
    return hasattr(module, "window_size") and hasattr(module, "shift_size")


def windows_after(module: nn.Module, args: tuple, keywords: dict) -> Windows | None:
    """Those of a call that has just ended; None where it was given no image."""
    x, library = args[0] if args else None, _library(module)
    if library == "transformers":
        given = keywords.get("input_dimensions", args[1] if len(args) > 1 else None)
        grid = None if given is None else (int(given[0]), int(given[1]))
    else:
        grid = (x.shape[1], x.shape[2]) if isinstance(x, Tensor) and x.dim() == 4 else None
    if grid is None:
        return None
    window, shift = _pair(module.window_size), _pair(module.shift_size)
    if library == "torchvision":  # a window as large as the padded image is not shifted
        covers = [extent >= -(-size // extent) * extent for size, extent in zip(grid, window, strict=True)]
        shift = (0 if covers[0] else shift[0], 0 if covers[1] else shift[1])
    wrap = getattr(module, "wrap", "image" if library == "timm" else "padded")
    return Windows(grid, window, shift, wrap, library == "vitkern")


def _library(module: nn.Module) -> str:
    """Whose forward runs: that of an adapted class, as nothing is bypassed while attention is watched."""
    return getattr(type(module), "adapted", type(module)).__module__.split(".")[0]


def _pair(value: object) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple | list) else (value, value)
    return int(first), int(second)
