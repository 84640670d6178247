"""Attention of ViTDet and SAM: windows or the image, with decomposed relative positions."""

from dataclasses import dataclass, replace

from vitkern.lab.compiling.layer import SCORES, compiled
from vitkern.lab.proving import grouping
from vitkern.lab.proving.integration import Module
from vitkern.lab.specimen import View
from vitkern.lab.specimens._local import Local, Pattern, problem

NAME = "decomposed_attention"


@dataclass(frozen=True)
class Decomposed(Local):
    """Windows, or the image where ``window`` is 0, with logits of learnt vectors of rows and columns."""

    window: int = 0
    op = NAME

    @property
    def width(self) -> int:
        return self.window or self.side

    @property
    def seen(self) -> int:
        return self.width**2

    @property
    def vectors(self) -> int:
        return 2 * self.width

    def pattern(self):
        return Pattern(self.width, rel=True, padding=self.side % self.width > 0)

    def groups(self, **tensors):
        return grouping.decomposed(**tensors, num_heads=self.heads, width=self.width)

    def problem(self, batch):
        shape = 2 * self.width - 1, self.head_dim
        padding = dict(padding=(3 * self.channels,)) if self.side % self.width else {}
        options = dict(window=(self.window,) * 2) if self.window else {}
        return self._grouped(batch, options, rel_pos_h=shape, rel_pos_w=shape, **padding)

    def checked(self, images):
        """Of large images as many heads as float64 has room for."""
        heads = max(1, min(self.heads, SCORES // (self.side**2 * self.seen)))
        if heads == self.heads:
            return self.problem(images)
        return replace(self, heads=heads, channels=heads * self.head_dim).problem(1)

    def __str__(self) -> str:
        return f"{super().__str__()} {f'window {self.window}' if self.window else 'global'}"


LAYERS = (
    Decomposed("ViTDet-B, SAM-B local", 64, 768, 12, 14, batch=8, compiled="local-vitdet-window", everywhere=True),
    Decomposed("ViTDet-B, SAM-B", 64, 768, 12, batch=4, compiled="local-sam-global", everywhere=True),
    Decomposed("SAM-H local", 64, 1280, 16, 14, batch=4, compiled="local-vitdet-h", everywhere=True),
    Decomposed("SAM-H", 64, 1280, 16, batch=2),
    Decomposed("ViTDet-B at 224", 14, 768, 12, quick=True),
)

SPECIMEN = View(
    name=NAME,
    of="local_attention",
    check=(problem("7x9, windows of 4 that stick out", (7, 9), (4, 4), rel=True, padding=True, family=NAME),),
    layers=LAYERS,
    launches=compiled(LAYERS),
    modules={"DecomposedAttention": Module((2, 5, 6, 32), dict(dim=32, num_heads=2, window_size=4))},
)
