"""What tells that the kernels of windows are broken, and what nothing can tell."""

from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.specimens._window_attention import problem

_PADDED = problem("padded, shifted", (5, 11), (4, 5), shift=(1, 2), wrap="padded", batch=2, dim=8)
_EXACT = problem("exact, shifted", (8, 15), (4, 5), shift=(1, 3), mask_value=None, dim=24)
_TABLE = (
    *quick(SINGLE, _EXACT, _PADDED, apart=1),
    *quick(
        SINGLE,
        problem("cosine, rolled then padded", (5, 6), (4, 5), shift=(2, 1), cosine=True, batch=2),
        problem("two blocks of rows, cosine", (7, 14), (7, 7), shift=(3, 3), cosine=True, dim=8),
        problem("no shift, padded", (6, 7), (4, 5), dim=8),
        problem("one axis", (8, 10), (4, 5), shift=(0, 2), mask_value=-1.5),
        problem("no shift, cosine", (4, 10), (4, 5), cosine=True, dim=8),
        problem("no shift", (8, 10), (4, 5), scale=0.4),
    ),
)
_HALF = quick(HALF, problem("cosine", (8, 10), (4, 5), shift=(1, 1), cosine=True))
_WINDOWS = (
    *_TABLE,
    *quick(SINGLE, problem("streamed, cosine, table", (4, 7), (4, 5), shift=(1, 2), dim=36, cosine=True)),
    *quick(BRAIN, _PADDED),
    *_HALF,
)
_STREAMED = (
    *quick(SINGLE, problem("streamed, padded, cosine", (4, 7), (4, 5), shift=(0, 1), dim=40, cosine=True)),
    *quick(
        SINGLE,
        problem("streamed, padded", (5, 9), (4, 5), shift=(1, 2), dim=40, heads=1, wrap="padded"),
        problem("streamed, two rows", (8, 5), (4, 5), shift=(2, 0), dim=36, heads=1, batch=2, mask_value=None),
        pool=None,
    ),
)

_OWN = ("test_window_attention.py",)
_LOOP = Checks(_STREAMED)
_ON_ONE_TILE = Checks(_TABLE, (), _OWN)
JUDGES = {
    "attention": Checks(_STREAMED[:1]),
    "window_attention": Checks(_WINDOWS, (), _OWN),
    "loop/heads": _LOOP,
    "loop/norms": Checks(_STREAMED + _HALF),
    "loop/scores": Checks(_STREAMED + _WINDOWS[:4], (), _OWN),
    "loop/stream": _LOOP,
    "loop/stream_backward": _LOOP,
    "loop/stream_bias": _LOOP,
    "loop/tokens": Checks(_WINDOWS, (), _OWN),
    "machine/numbers": Checks(_WINDOWS[:4], (), _OWN),
    "machine/tiles": Checks(_STREAMED + _WINDOWS[:4] + _HALF),
    "tile/relative_table": _ON_ONE_TILE,
    "tile/short_attention": _ON_ONE_TILE,
    "tile/short_attention_backward": _ON_ONE_TILE,
}

SURVIVORS = {
    "relative_table._reduce_table:narrow-accumulator:1": Survivor(
        "tl.float32 -> tl.float16",
        "zero is exact in float16 and the sum is float32 from the first addition on; compiled, the changing type is "
        "refused",
    ),
    "relative_table._reduce_table:shift-index:1": Survivor(
        "tl.program_id(0) -> (tl.program_id(0) + 1)",
        "the head is taken modulo the number of heads, so the programs of a block of entries swap heads among them",
    ),
    "scores.regions:drop-mask-term:3": Survivor(
        "(group % cols == cols - 1) & (SHIFT_W > 0) -> (group % cols == cols - 1)",
        "without a shift the later region begins at WINDOW_W, past the last column: it is empty",
    ),
    "scores.tile_and_regions:wrong-index:1": Survivor(
        "group -> (group * 0)",
        "the tile is one that all groups share: its hook does not look at the group",
    ),
    "tokens.window:compare:7": Survivor(
        "SHIFT_W > 0 -> (SHIFT_W >= 0)",
        "with a shift of 0 only x >= wrap_w >= img_w would wrap, which both branches call padding and nobody reads",
    ),
}
