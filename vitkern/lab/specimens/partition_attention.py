"""Attention of MaxViT: windows, which `window_attention` has, and grids of tokens spread over the image."""

from dataclasses import dataclass

from vitkern.lab.compiling.layer import compiled
from vitkern.lab.proving import grouping
from vitkern.lab.proving.integration import Module
from vitkern.lab.specimen import View
from vitkern.lab.specimens._local import Local, Pattern, problem

NAME = "partition_attention"


@dataclass(frozen=True)
class Grid(Local):
    """Each token sees size x size tokens spread evenly over the image, with a table of biases."""

    size: int = 7
    op = "local_attention"

    @property
    def seen(self) -> int:
        return self.size**2

    def pattern(self):
        return Pattern(self.size, dilation=self.side // self.size, table=True)

    def groups(self, **tensors):
        return grouping.grid(**tensors, num_heads=self.heads, size=self.size)

    def problem(self, batch):
        sides = (2 * self.size - 1,) * 2
        options = dict(block=(self.size,) * 2, dilation=(self.side // self.size,) * 2)
        return self._grouped(batch, options, table=(self.heads, *sides))

    def __str__(self) -> str:
        return f"{super().__str__()} grid {self.size}"


LAYERS = (
    Grid("MaxViT-T stage 1", 56, 64, 2, compiled="local-maxvit-grid"),
    Grid("MaxViT-T stage 2", 28, 128, 4),
    Grid("MaxViT-T stage 3", 14, 256, 8, quick=True),
)

SPECIMEN = View(
    name=NAME,
    of="local_attention",
    check=(problem("8x12, grid of 4", (8, 12), (4, 4), dilation=(2, 3), table=True, family=NAME),),
    layers=LAYERS,
    launches=compiled(LAYERS),
    modules={"PartitionAttention": Module((2, 6, 6, 32), dict(dim=32, num_heads=2, size=3, partition="grid"))},
)
