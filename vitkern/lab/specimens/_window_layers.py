"""Windows as layers of models that people run."""

from dataclasses import dataclass

import torch

import vitkern
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.layer import Layer, leaf
from vitkern.lab.specimens._window_attention import problem


@dataclass(frozen=True)
class Window(Layer):
    """A square image of ``side`` tokens, C channels; head dim is C / H; ``cosine``: the scores of SwinV2; ``table``: of
    biases; ``wrap``: "padded" for torchvision, which pads before it rolls."""

    side: int
    channels: int
    heads: int
    window: int
    shift: int = 0
    cosine: bool = False
    table: bool = True
    wrap: str = "image"
    op = "window_attention"

    @property
    def scores(self) -> int:
        return self.heads * self.side**2 * self.window**2

    def problem(self, batch):
        sizes = dict(heads=self.heads, dim=self.channels // self.heads, batch=batch, shift=(self.shift,) * 2)
        wrap = dict(wrap=self.wrap) if self.wrap != "image" else {}
        terms = dict(cosine=self.cosine, table=self.table)
        return problem(self.layer, (self.side,) * 2, (self.window,) * 2, **sizes, **terms, **wrap)

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        width, operands = 3 * self.channels, {}
        if self.table:
            operands["table"] = leaf((2 * self.window - 1) ** 2, self.heads, dtype=torch.float32)
        if self.side % self.window:
            operands["padding"] = leaf(width, dtype=dtype)
        if self.cosine:
            operands["logit_scale"] = leaf(self.heads, 1, 1, dtype=torch.float32)
        qkv = leaf(batch, self.side, self.side, width + spare, dtype=dtype)[..., :width]
        options = dict(num_heads=self.heads, window=(self.window,) * 2, shift=(self.shift,) * 2, wrap=self.wrap)
        with torch.set_grad_enabled(trained):
            out = vitkern.window_attention(qkv, **operands, **options)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        unit = batch * self.side**2 * self.channels
        return itemsize * unit * (7 if backward else 4), (10 if backward else 4) * unit * self.window**2

    def __str__(self) -> str:
        terms = (f" shift {self.shift}" if self.shift else "") + ("" if self.table else " no bias")
        padded = " padded, then rolled" if self.wrap == "padded" else ""
        return f"{self.layer} {self.side}x{self.side} C{self.channels} window {self.window}{terms}{padded}"


def _kept(name: str, *sizes, **options) -> Window:
    """A layer that is compiled and not timed."""
    return Window(*sizes, compiled=name, timed=False, **options)


SWIN = Window("Swin-T stage 1", 56, 96, 3, 7, 3, compiled="window-swin-t-1", everywhere=True)
LAST = Window("Swin-T stage 4", 7, 768, 24, 7, compiled="window-swin-t-4")
LARGE = Window("Swin-B 384 stage 1", 96, 128, 4, 12, 6, batch=32, compiled="window-swin-384", everywhere=True)
LAYERS = (
    Window("Swin-T stage 1", 56, 96, 3, 7, compiled="window-swin-t-1-unshifted", everywhere=True),
    SWIN,
    Window("Swin-T stage 2", 28, 192, 6, 7),
    Window("Swin-T stage 2", 28, 192, 6, 7, 3),
    Window("Swin-T stage 3", 14, 384, 12, 7),
    Window("Swin-T stage 3", 14, 384, 12, 7, 3, quick=True),
    LAST,
    Window("Swin-B stage 1", 56, 128, 4, 7, 3),
    Window("Swin-B stage 2", 28, 256, 8, 7, 3),
    Window("Swin-B stage 3", 14, 512, 16, 7, 3),
    Window("Swin-B stage 4", 7, 1024, 32, 7),
    LARGE,
    Window("Swin-B 384 stage 3", 24, 512, 16, 12, 6, batch=32),
    Window("SwinV2-T w8 stage 1", 64, 96, 3, 8, 4, cosine=True, compiled="window-swinv2-w8", everywhere=True),
    Window("SwinV2-T w8 stage 2", 32, 192, 6, 8, 4, cosine=True),
    Window("SwinV2-T w8 stage 3", 16, 384, 12, 8, 4, cosine=True),
    Window("SwinV2-T w8 stage 4", 8, 768, 24, 8, cosine=True),
    Window("SwinV2-T w16 stage 1", 64, 96, 3, 16, 8, cosine=True, compiled="window-swinv2-w16", everywhere=True),
    Window("SwinV2-T w16 stage 2", 32, 192, 6, 16, 8, cosine=True),
    Window("SwinV2-T w16 stage 3", 16, 384, 12, 16, cosine=True),
    Window("SwinV2-B w24 stage 1", 96, 128, 4, 24, 12, cosine=True, batch=32),
    Window("SwinV2-B w24 stage 2", 48, 256, 8, 24, 12, cosine=True, batch=32),
    Window("SwinV2-B w24 stage 3", 24, 512, 16, 24, cosine=True, batch=32),
    Window("SAM-B local, with Swin's table", 64, 768, 12, 14, batch=8),
    Window("MaxViT-T stage 1", 56, 64, 2, 7),
    Window("Twins-SVT-S stage 1", 56, 64, 2, 7, table=False, compiled="window-twins", everywhere=True),
    Window("Twins-SVT-S stage 3", 14, 256, 8, 7, table=False),
    Window("DaViT-T stage 1", 56, 96, 3, 7, table=False),
    Window("DaViT-T stage 3", 14, 384, 12, 7, table=False),
    _kept("window-swin-padded", "Swin-T at 240 stage 1", 60, 96, 3, 7, 3, everywhere=True),
    _kept("window-torchvision-padded", "Swin-T at 240 stage 1", 60, 96, 3, 7, 3, wrap="padded"),
    _kept("window-swin-384-unshifted", "Swin-B 384 stage 1", 96, 128, 4, 12, everywhere=True),
    _kept("window-swin-384-padded", "Swin-B at 400 stage 1", 100, 128, 4, 12, 6, everywhere=True),
    _kept("window-d64", "Swin-T stage 1, heads of 64", 56, 192, 3, 7, 3),
    _kept("window-swinv2-w8-padded", "SwinV2-T w8 at 240 stage 1", 60, 96, 3, 8, 4, cosine=True, wrap="padded"),
    _kept("window-swinv2-w16-padded", "SwinV2-T w16 at 240 stage 1", 60, 96, 3, 16, 8, cosine=True, wrap="padded"),
    _kept("window-swinv2-w8-unshifted", "SwinV2-T w8 stage 1", 64, 96, 3, 8, cosine=True, everywhere=True),
    _kept("window-swinv2-w12", "SwinV2-B w12 at 192 stage 1", 48, 128, 4, 12, 6, cosine=True),
    _kept("window-swinv2-w16-unshifted", "SwinV2-T w16 stage 1", 64, 96, 3, 16, cosine=True, everywhere=True),
)
