"""A photograph with a heat map over it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

# From cold to hot, as Turbo has them (Mikhailov, 2019).
_COLOURS = np.array(
    [(48, 18, 59), (62, 155, 254), (70, 248, 132), (225, 221, 55), (240, 91, 18), (122, 4, 3)], np.float32
)
_OPACITY = 0.65  # where it is hottest; it goes down to a quarter of that
Box = tuple[float, float, float, float]  # left, top, right, bottom


def overlay(photograph: "Image", heat: Tensor, box: Box | None = None) -> "Image":
    """``photograph`` with ``heat`` (grid_h, grid_w), from its smallest number to its largest, over the ``box`` in
    pixels that the model saw; the whole photograph unless given. What lies outside is darkened.

    Raises:
        ImportError: Pillow is not installed.
    """
    from PIL import Image

    width, height = photograph.size
    left, top, right, bottom = box or (0.0, 0.0, float(width), float(height))
    spread = heat.detach().float().cpu()
    spread = (spread - spread.min()) / (spread.max() - spread.min()).clamp(min=torch.finfo(torch.float32).tiny)
    # where the middle of each pixel lies in the box, from -1 to 1
    x = ((torch.arange(width) + 0.5 - left) / (right - left)) * 2 - 1
    y = ((torch.arange(height) + 0.5 - top) / (bottom - top)) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    inside = (grid.abs() <= 1).all(-1)[0].numpy()[..., None]
    hot = F.grid_sample(spread[None, None], grid, padding_mode="border", align_corners=False)[0, 0].numpy()
    steps = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(hot, steps, channel) for channel in _COLOURS.T], -1)
    opacity = _OPACITY * (0.25 + 0.75 * hot[..., None])
    pixels = np.asarray(photograph.convert("RGB"), np.float32)
    mixed = np.where(inside, pixels * (1 - opacity) + colours * opacity, pixels * 0.4)
    return Image.fromarray(mixed.round().astype(np.uint8))


def box_seen(preprocess: Callable[["Image"], Tensor], size: tuple[int, int]) -> Box:
    """The part of a photograph of ``size`` (width, height) that ``preprocess`` keeps, where it resizes, crops and
    normalises: found with images of which each pixel says where it lies.

    Args:
        preprocess: an RGB image -> (3, height, width).
    """
    from PIL import Image

    width, height = size
    across, down = (np.linspace(0, 255, n).round().astype(np.uint8) for n in size)
    shapes = np.zeros((height, width, 3), np.uint8)
    black, white = (preprocess(Image.fromarray(shapes + value)) for value in (np.uint8(0), np.uint8(255)))
    shapes[..., 0], shapes[..., 1] = across[None], down[:, None]
    places = (preprocess(Image.fromarray(shapes)) - black) / (white - black)  # from 0 to 1, in the middles of pixels
    found = []
    for line, extent in ((places[0].mean(0), width), (places[1].mean(1), height)):
        count = line.shape[0]
        position = torch.arange(count, dtype=torch.float64) + 0.5
        line = line.double() * (extent - 1) + 0.5
        slope = ((position - position.mean()) * (line - line.mean())).sum() / (
            position - position.mean()
        ).square().sum()
        first = line.mean() - slope * position.mean()
        found.append((float(first), float(first + slope * count)))
    (left, right), (top, bottom) = found
    return left, top, right, bottom
