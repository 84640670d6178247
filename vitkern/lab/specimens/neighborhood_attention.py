"""Attention of NAT and DiNAT: a window around each token, moved inside the image, dilated."""

from dataclasses import dataclass

from vitkern.lab.compiling.layer import compiled
from vitkern.lab.proving.integration import Module
from vitkern.lab.proving.problem import Problem, normal
from vitkern.lab.specimen import View
from vitkern.lab.specimens._local import Local, Pattern, problem

NAME = "neighborhood_attention"


@dataclass(frozen=True)
class Neighborhood(Local):
    """Each token sees kernel x kernel tokens around it, with a table of biases."""

    kernel: int
    dilation: int = 1
    op = NAME

    @property
    def seen(self) -> int:
        return self.kernel**2

    def pattern(self):
        return Pattern(halo=self.kernel // 2, border="clamp", dilation=self.dilation, table=True)

    def problem(self, batch):
        rows = 2 * self.kernel - 1

        def inputs(generator):
            qkv = normal(generator, batch, self.side, self.side, 3 * self.channels)
            return dict(qkv=qkv, table=normal(generator, self.heads, rows, rows))

        options = dict(num_heads=self.heads, kernel=(self.kernel,) * 2, dilation=(self.dilation,) * 2)
        return Problem(self.op, self.layer, inputs, ("qkv", "table"), options)

    def __str__(self) -> str:
        dilation = f" dilation {self.dilation}" if self.dilation > 1 else ""
        return f"{self.layer} {self.side}x{self.side} C{self.channels} kernel {self.kernel}{dilation}"


LAYERS = (
    Neighborhood("NAT-T stage 1", 56, 64, 2, 7, compiled="local-nat-1", everywhere=True),
    Neighborhood("NAT-T stage 2", 28, 128, 4, 7),
    Neighborhood("NAT-T stage 3", 14, 256, 8, 7, quick=True),
    Neighborhood("NAT-T stage 4", 7, 512, 16, 7, compiled="local-nat-4"),
    Neighborhood("DiNAT-T stage 1", 56, 64, 2, 7, 8, compiled="local-dinat-1"),
    Neighborhood("DiNAT-T stage 2", 28, 128, 4, 7, 4),
    Neighborhood("DiNAT-T stage 3", 14, 256, 8, 7, 2),
    Neighborhood("NAT of a wide window", 56, 128, 4, 13, compiled="local-nat-k13", timed=False),
)

_AROUND = dict(border="clamp", table=True, family=NAME)
SPECIMEN = View(
    name=NAME,
    of="local_attention",
    check=(
        problem("7x9, 3x5 around each", (7, 9), (1, 1), (1, 2), **_AROUND),
        problem("11x8, 3x3, dilation 3x2", (11, 8), (1, 1), (1, 1), dilation=(3, 2), **_AROUND),
    ),
    layers=LAYERS,
    launches=compiled(LAYERS),
    modules={"NeighborhoodAttention": Module((2, 5, 6, 32), dict(dim=32, num_heads=2, kernel_size=3))},
)
