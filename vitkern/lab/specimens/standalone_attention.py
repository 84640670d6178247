"""Stand-alone self-attention: a window around each pixel, zeros outside the image."""

from dataclasses import dataclass

from vitkern.lab.compiling.layer import compiled
from vitkern.lab.proving import grouping
from vitkern.lab.proving.integration import Module
from vitkern.lab.specimen import View
from vitkern.lab.specimens._local import Local, Pattern, problem

NAME = "standalone_attention"


@dataclass(frozen=True)
class Standalone(Local):
    """Each token sees kernel x kernel tokens around it, zeros outside, with logits of learnt vectors."""

    kernel: int = 7
    op = NAME
    scale = 1.0

    @property
    def seen(self) -> int:
        return self.kernel**2

    @property
    def vectors(self) -> int:
        return self.kernel  # 2 * kernel of half a head

    def pattern(self):
        return Pattern(halo=self.kernel // 2, rel=True)

    def groups(self, **tensors):
        return grouping.standalone(**tensors, num_heads=self.heads, kernel=(self.kernel,) * 2)

    def problem(self, batch):
        shape = self.heads, self.kernel, self.head_dim // 2
        return self._grouped(batch, dict(kernel=(self.kernel,) * 2), rel_h=shape, rel_w=shape)

    def __str__(self) -> str:
        return f"{super().__str__()} kernel {self.kernel}"


LAYERS = (
    Standalone("SASA ResNet-26 stage 1", 56, 64, 8),
    Standalone("SASA ResNet-26 stage 2", 28, 128, 8, compiled="local-sasa", everywhere=True),
    Standalone("SASA ResNet-26 stage 3", 14, 256, 8, quick=True),
    Standalone("SASA ResNet-26 stage 4", 7, 512, 8),
)

SPECIMEN = View(
    name=NAME,
    of="local_attention",
    check=(problem("5x6, 3x3 around each, zeros outside", (5, 6), (1, 1), (1, 1), rel=True, family=NAME),),
    layers=LAYERS,
    launches=compiled(LAYERS),
    modules={"StandaloneAttention": Module((2, 5, 6, 32), dict(dim=32, num_heads=2, kernel_size=3), one_batch=True)},
)
