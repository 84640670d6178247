"""Attention of ViL: chunks and those around them, exact, cut off or cyclic, with global tokens."""

import functools
from dataclasses import dataclass

import torch

from vitkern.lab.compiling.layer import compiled
from vitkern.lab.proving import grouping
from vitkern.lab.proving.integration import Module
from vitkern.lab.proving.problem import Problem
from vitkern.lab.specimen import View
from vitkern.lab.specimens._local import Local, Near, Pattern, problem

NAME = "vil_attention"


@functools.lru_cache(maxsize=4)
def _vil(channels: int, heads: int, window: int, num_global: int):
    from vitkern.nn import ViLAttention

    with torch.device("meta"):  # its projections are not run
        return ViLAttention(channels, heads, window, num_global=num_global, rel_pos=False)


@dataclass(frozen=True)
class ChunksProblem(Problem):
    """What `vitkern.nn.ViLAttention` does between its projections for the tokens of the image."""

    @property
    def run(self):
        def run(qkv, *, num_heads, side, window, num_global):
            return _vil(qkv.shape[-1] // 3, num_heads, window, num_global)._local(qkv, (side, side))

        return run


@dataclass(frozen=True)
class Chunks(Local):
    """Each token sees its chunk, the eight around it, and ``num_global`` tokens that come before those of the image."""

    window: int = 7
    num_global: int = 1
    op = NAME

    @property
    def seen(self) -> float:
        count = self.side // self.window
        return ((3 * count - 2) / count * self.window) ** 2 + self.num_global

    @property
    def keys(self) -> int:
        return 9 * self.window**2 + self.num_global

    def pattern(self):
        return Pattern(self.window, self.window, "exclude", lse=True)

    def groups(self, **tensors):
        sizes = dict(side=self.side, window=self.window, num_global=self.num_global)
        return grouping.chunks(**tensors, num_heads=self.heads, **sizes)

    def problem(self, batch):
        options = dict(side=self.side, window=self.window, num_global=self.num_global)
        return self._grouped(batch, options, ChunksProblem, tokens=self.num_global + self.side**2)

    def __str__(self) -> str:
        return f"{super().__str__()} chunks of {self.window}, {self.num_global} global"


def _with_table(launch: str, block: int = 7, border: str = "exclude", **options) -> Near:
    """What the kernels see of a layer whose relative positions are learnt."""
    pattern = Pattern(block, 7, border, table=True, lse=True, neighbor=options.pop("neighbor", None))
    return Near("ViL-S stage 2", 28, 192, 3, pattern, compiled=launch, timed=False, **options)


LAYERS = (
    Chunks("ViL-T stage 1", 56, 48, 1),
    Chunks("ViL-T stage 2", 28, 96, 3, quick=True),
    Chunks("ViL-S stage 1", 56, 96, 3),
    _with_table("local-vil", everywhere=True),
    _with_table("local-vil-exact", block=1),
    _with_table("local-vil-cyclic", border="wrap", everywhere=True),
    _with_table("local-vil-neighbour", neighbor=(1, 0)),
)

_TABLE = dict(table=True, family=NAME)
SPECIMEN = View(
    name=NAME,
    of="local_attention",
    check=(
        problem("7x8, chunks of 3, log-sum-exp", (7, 8), (3, 3), (3, 3), "exclude", lse=True, **_TABLE),
        problem("7x8, cyclic chunks of 3", (7, 8), (3, 3), (3, 3), "wrap", **_TABLE),
    ),
    layers=LAYERS,
    launches=compiled(LAYERS),
    modules={
        "ViLAttention": Module((2, 31, 32), dict(dim=32, num_heads=2, window=3), ((5, 6),), one_batch=True),
        "ViLDenseAttention": Module((2, 31, 32), dict(dim=32, num_heads=2, size=(5, 6))),
    },
)
