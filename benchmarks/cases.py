"""The only list of shapes: each is a layer of a model that people run. Sizes are per image.

``quick`` marks one small case an operator. ``problem(batch)`` is the case as ``python -m vitkern check`` sees it:
inputs, operator, reference. What is timed is what was verified.
"""

from dataclasses import dataclass

from vitkern.lab import problems


@dataclass(frozen=True)
class Attention:
    """heads H, tokens N, head dim D; ``bias``: a learned bias (H, N, N) shared by the batch."""

    layer: str
    heads: int
    tokens: int
    head_dim: int
    bias: bool = False
    batch: int = 64
    quick: bool = False
    op = "attention"

    def problem(self, batch: int):
        bias = (1, self.heads, self.tokens, self.tokens) if self.bias else None
        return problems.attention_problem(self.layer, (batch, self.heads, self.tokens, self.head_dim), bias=bias)

    def __str__(self) -> str:
        return f"{self.layer} H{self.heads} N{self.tokens} D{self.head_dim}{' learned bias' if self.bias else ''}"


@dataclass(frozen=True)
class Window:
    """A square image of ``side`` tokens, C channels; head dim is C / H; ``cosine``: the scores of SwinV2."""

    layer: str
    side: int
    channels: int
    heads: int
    window: int
    shift: int = 0
    cosine: bool = False
    batch: int = 64
    quick: bool = False
    op = "window_attention"

    def problem(self, batch: int):
        sizes = dict(
            heads=self.heads, dim=self.channels // self.heads, batch=batch, shift=(self.shift,) * 2, cosine=self.cosine
        )
        return problems.window_problem(self.layer, (self.side,) * 2, (self.window,) * 2, **sizes)

    def __str__(self) -> str:
        shift = f" shift {self.shift}" if self.shift else ""
        return f"{self.layer} {self.side}x{self.side} C{self.channels} window {self.window}{shift}"


@dataclass(frozen=True)
class LayerNorm:
    """``tokens`` rows of C an image; ``residual``: added first, the sum returned too."""

    layer: str
    tokens: int
    channels: int
    residual: bool = False
    batch: int = 64
    quick: bool = False
    op = "layernorm"

    def problem(self, batch: int):
        return problems.layernorm_problem(self.layer, batch * self.tokens, self.channels, residual=self.residual)

    def __str__(self) -> str:
        return f"{self.layer} {self.tokens} x C{self.channels}{' + residual' if self.residual else ''}"


@dataclass(frozen=True)
class Mlp:
    """``tokens`` rows of C an image, hidden width 4 C, exact GELU; ``post_norm``: the block of SwinV2."""

    layer: str
    tokens: int
    channels: int
    post_norm: bool = False
    batch: int = 64
    quick: bool = False
    op = "layernorm_mlp"

    def problem(self, batch: int):
        options = dict(post_norm=True) if self.post_norm else {}
        return problems.mlp_problem(self.layer, batch, self.tokens, self.channels, 4 * self.channels, **options)

    def __str__(self) -> str:
        return f"{self.layer} {self.tokens} x C{self.channels}{' post-norm' if self.post_norm else ''}"


CASES = (
    Attention("ViT-S/16 224", 6, 197, 64, quick=True),
    Attention("ViT-B/16 224", 12, 197, 64),
    Attention("ViT-L/16 256", 16, 257, 64),
    Attention("ViT-B/16 384", 12, 577, 64, batch=32),
    Attention("ViT-H/14 224", 16, 257, 80),
    Attention("BEiT-B/16 224", 12, 197, 64, bias=True),
    Attention("BEiT-B/16 384", 12, 577, 64, bias=True, batch=32),
    Attention("iGPT grid, without its mask", 16, 1024, 64, batch=16),
    Attention("ViTDet-B global", 12, 4096, 64, batch=4),
    Attention("ViT-22B head width", 12, 577, 128, batch=16),
    Window("Swin-T stage 1", 56, 96, 3, 7),
    Window("Swin-T stage 1", 56, 96, 3, 7, 3),
    Window("Swin-T stage 2", 28, 192, 6, 7),
    Window("Swin-T stage 2", 28, 192, 6, 7, 3),
    Window("Swin-T stage 3", 14, 384, 12, 7),
    Window("Swin-T stage 3", 14, 384, 12, 7, 3, quick=True),
    Window("Swin-T stage 4", 7, 768, 24, 7),
    Window("Swin-B stage 1", 56, 128, 4, 7, 3),
    Window("Swin-B stage 2", 28, 256, 8, 7, 3),
    Window("Swin-B stage 3", 14, 512, 16, 7, 3),
    Window("Swin-B stage 4", 7, 1024, 32, 7),
    Window("SwinV2-T w8 stage 1", 64, 96, 3, 8, 4, cosine=True),
    Window("SwinV2-T w8 stage 3", 16, 384, 12, 8, 4, cosine=True),
    Window("SwinV2-T w16 stage 1", 64, 96, 3, 16, 8, cosine=True),
    Window("SwinV2-T w16 stage 3", 16, 384, 12, 16, cosine=True),
    LayerNorm("Swin-T stage 1", 3136, 96),
    LayerNorm("Swin-T stage 2", 784, 192),
    LayerNorm("ViT-S", 197, 384, quick=True),
    LayerNorm("ViT-B", 197, 768),
    LayerNorm("ViT-B", 197, 768, residual=True),
    LayerNorm("ViT-H", 257, 1280),
    Mlp("Swin-T stage 1", 3136, 96),
    Mlp("Swin-B stage 1", 3136, 128),
    Mlp("Swin-T stage 2", 784, 192),
    Mlp("Swin-B stage 2", 784, 256),
    Mlp("SwinV2-T stage 1", 4096, 96, post_norm=True),
    Mlp("ViT-S", 197, 384, quick=True),
    Mlp("Swin-B stage 3", 196, 512),
    Mlp("ViT-B", 197, 768),
    Mlp("ViT-L", 197, 1024),
    Mlp("ViT-H/14", 257, 1280),
)
OPS = tuple(dict.fromkeys(case.op for case in CASES))

QUICK = tuple(case for case in CASES if case.quick)


def batch_for(case, *, gpu: bool, quick: bool) -> int:
    """Images in a timed call."""
    if quick:
        return 1
    return case.batch if gpu else max(1, case.batch // 8)
