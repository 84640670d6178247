"""Attention of HaloNet: blocks of queries with a halo of keys, and relative logits of the query."""

from dataclasses import dataclass

import torch

from vitkern.lab.compiling.layer import Launch, compiled
from vitkern.lab.proving import grouping
from vitkern.lab.proving.integration import Module
from vitkern.lab.specimen import View
from vitkern.lab.specimens._local import Local, Pattern, problem

NAME = "halo_attention"


@dataclass(frozen=True)
class Halo(Local):
    """Each block of queries sees its own tokens and ``halo`` more on every side, with logits of learnt vectors."""

    block: int = 8
    halo: int = 3
    op = NAME

    @property
    def extent(self) -> int:
        return self.block + 2 * self.halo

    @property
    def seen(self) -> int:
        return self.extent**2

    @property
    def vectors(self) -> int:
        return 2 * self.extent

    def pattern(self):
        return Pattern(self.block, self.halo, rel=True)

    def groups(self, **tensors):
        return grouping.halo(**tensors, num_heads=self.heads, block=self.block, halo=self.halo)

    def problem(self, batch):
        shape = 2 * self.extent - 1, self.head_dim
        options = dict(block=self.block, halo=self.halo)
        return self._grouped(batch, options, function="halo_attention_qkvpacked", height_rel=shape, width_rel=shape)

    def __str__(self) -> str:
        return f"{super().__str__()} block {self.block} halo {self.halo}"


LAYERS = (
    Halo("HaloNet-H1 stage 1", 64, 64, 8, compiled="local-halonet-h1"),
    Halo("HaloNet-H1 stage 2", 32, 128, 8),
    Halo("HaloNet-H1 stage 3", 16, 256, 8),
    Halo("HaloNet-H1 stage 4", 8, 512, 8, quick=True),
    Halo("HaloNet-26-T stage 3", 16, 256, 8, halo=2),
    Halo("HaloNet-26-T stage 4", 8, 512, 8, halo=2),
    Halo("HaloNet, heads of 32", 32, 256, 8, compiled="local-halonet-d32", everywhere=True, timed=False),
)

SPECIMEN = View(
    name=NAME,
    of="local_attention",
    check=(problem("8x8, blocks of 4, halo 1, rows and columns", (8, 8), (4, 4), (1, 1), rel=True, family=NAME),),
    layers=LAYERS,
    launches=(*compiled(LAYERS), Launch("local-halonet-fp32", LAYERS[0], dict(dtype=torch.float32))),
    modules={"HaloAttention": Module((2, 32, 8, 4), dict(dim=32, num_heads=2, block_size=4, halo_size=1))},
)
