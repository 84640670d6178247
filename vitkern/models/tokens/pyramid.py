"""The maps of a pyramid as one row of tokens, and where each of these lies in the image."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.tokens.sine import sines


class Pyramid(NamedTuple):
    """S pixels of L maps, of B images, or of one where all are of one size.

    shapes: (height, width) of each map. centres: (B or 1, S, 2), x and y of each pixel in widths and heights of the
    part of its map that is image. valid: (B, L, 2), which share of each map's width and height that part is, or None:
    all. padding: (B, S), True outside of it, or None. float32 at least.
    """

    shapes: list[tuple[int, int]]
    centres: Tensor
    valid: Tensor | None
    padding: Tensor | None

    @classmethod
    def of(cls, maps: Sequence[Tensor], pixel_mask: Tensor | None = None) -> "Pyramid":
        """Of maps (B, C, img_h, img_w), and of where the batch (B, height, width) is image, not padding."""
        shapes = [(one.shape[2], one.shape[3]) for one in maps]
        if pixel_mask is None:
            return cls(shapes, torch.cat([_centres(h, w, maps[0]) for h, w in shapes])[None], None, None)
        inside = [F.interpolate(pixel_mask[None].float(), size=shape)[0] for shape in shapes]
        valid = torch.stack(
            [torch.stack([one[:, 0].mean(1), one[:, :, 0].mean(1)], 1) for one in inside], 1
        )  # (B, L, 2)
        centres = [_centres(h, w, maps[0]) / valid[:, None, level] for level, (h, w) in enumerate(shapes)]
        padding = torch.cat([one.flatten(1) for one in inside], 1) == 0
        return cls(shapes, torch.cat(centres, 1), valid, padding)

    def positions(self, dim: int) -> Tensor:
        """(B or 1, S, dim): sines of y, then of x."""
        half = sines(self.centres, dim // 2)  # (B or 1, S, 2, dim / 2)
        return torch.cat([half[..., 1, :], half[..., 0, :]], -1)

    def on_maps(self, points: Tensor) -> Tensor:
        """Points or boxes (B, Q, 2 or 4) of the image -> those of each map with its padding (B, Q, L, 2 or 4)."""
        if self.valid is None:
            return points[:, :, None]
        return points[:, :, None] * self.valid.repeat(1, 1, points.shape[-1] // 2)[:, None]


def _centres(height: int, width: int, like: Tensor) -> Tensor:
    """(height * width, 2), x and y of the centres of pixels in units of the map."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    y = (torch.arange(height, device=like.device, dtype=dtype) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=dtype) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)
