"""What of windows is compiled ahead of time, and what is known to be imperfect in it."""

import torch

from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, compiled, with_many
from vitkern.lab.specimens._window_layers import LARGE, LAST, LAYERS, SWIN

_USUAL = (
    *compiled(LAYERS),
    Launch("window-fp32", SWIN, dict(dtype=torch.float32)),
    Launch("window-fp16", SWIN, dict(dtype=torch.float16)),
    Launch("window-batch-1", SWIN, dict(batch=1)),
    Launch("window-one-group", LAST, dict(batch=1)),
    Launch("window-odd-strides", SWIN, dict(spare=3)),
    Launch("window-swin-384-odd-strides", LARGE, dict(spare=3)),
)
_WALKED = (
    *("swin-t-1", "swin-t-1-unshifted", "swin-padded", "swinv2-w8", "swinv2-w8-unshifted"),
    *("fp32", "fp16", "odd-strides"),
)
LAUNCHES = with_many(
    with_many(_USUAL, *(f"window-{name}" for name in _WALKED)),
    *("window-d64", "window-swinv2-w8-padded", "window-twins"),
    everywhere=True,
)

# Of the backward whose programs walk over windows, launch and architecture: accesses that spill, of the instructions of
# a turn, and where it is known how many % more instructions 8 warps issue, which spill nothing.
_WALKING = {
    ("window-swin-padded-batch-64", 80): (35, 1800, 70),
    ("window-swin-padded-batch-64", 100): (58, 2141, 19),
    ("window-swin-padded-batch-64", 120): (70, 1769, 77),
    ("window-swinv2-w8-batch-64", 80): (20, 2015, 0),
    ("window-swinv2-w8-batch-64", 120): (6, 1995, 0),
    ("window-swinv2-w8-unshifted-batch-64", 80): (6, 1663, 0),
    ("window-swinv2-w8-unshifted-batch-64", 120): (21, 1613, 0),
    ("window-swinv2-w8-padded-batch-64", 80): (114, 2463, 0),
    ("window-swinv2-w8-padded-batch-64", 90): (119, 2273, 0),
    ("window-swinv2-w8-padded-batch-64", 100): (58, 2578, 0),
    ("window-swinv2-w8-padded-batch-64", 120): (93, 2421, 0),
}


def _few(accesses: int, turn: int, more: int) -> Excuse:
    cost = f"{accesses} of the {turn} instructions of a turn" + (f"; 8 warps issue {more} % more" if more else "")
    return Excuse("spills: ", f"sums over windows beside a tile of scores: {cost}")


_BY_ELEMENT = Excuse("spills: ", "rows at odd strides are loaded by the element, and each address takes registers")
EXCEPTIONS = {
    **{(launch, "_short_bwd", arch): _few(*cost) for (launch, arch), cost in _WALKING.items()},
    ("window-swinv2-w8-batch-64", "_short_bwd", 90): _few(15, 1864, 0)._replace(tritons=("3.9",)),
    ("window-d64-batch-64", "_short_bwd", 120): _few(7, 690, 0),
    ("window-d64-batch-64", "_short_bwd", 80): Excuse(
        "spills: ", "22 of the 748 instructions of a turn, at half the rows and 8 warps; with 4 warps 143 of 1981"
    ),
    ("window-swin-padded-batch-64", "_short_bwd", 90): _few(12, 1649, 39)._replace(tritons=("3.9",)),
    ("window-d64-batch-64", "_short_bwd", 90): _few(12, 1478, 41)._replace(tritons=("3.6",)),
    ("window-odd-strides", "_short_bwd", 90): _BY_ELEMENT._replace(tritons=("3.6",)),
    ("window-odd-strides-batch-64", "_short_fwd", 90): _BY_ELEMENT._replace(tritons=("3.6",)),
    ("window-odd-strides-batch-64", "_short_bwd", 90): _BY_ELEMENT._replace(tritons=("3.6",)),
    ("window-odd-strides", "_short_bwd", 120): _BY_ELEMENT,
    ("window-odd-strides-batch-64", "_short_fwd", 120): _BY_ELEMENT,
    ("window-odd-strides-batch-64", "_short_bwd", 120): _BY_ELEMENT,
    ("window-swin-384-padded", "_stream_bwd_dkdv", 100): Excuse(
        "spills: ", "8 accesses of 1966 instructions, at the limit of 255 registers"
    ),
}
