"""Layers of dense attention: those of models, and sizes that are there to be compiled."""

import contextlib
from dataclasses import dataclass

import torch

import vitkern
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.layer import SCORES, Layer, leaf
from vitkern.lab.specimens._attention import key_padding
from vitkern.lab.specimens._attention_case import problem


@dataclass(frozen=True)
class Attention(Layer):
    """heads H, tokens N, head dim D; ``keys`` M where they are of other tensors; ``bias``: learned, (H, N, M), shared
    by the batch; ``masked``: the last keys of most images are padding."""

    heads: int
    tokens: int
    head_dim: int
    keys: int = 0
    bias: bool = False
    masked: bool = False
    op = "attention"

    @property
    def scores(self) -> int:
        return self.heads * self.tokens * (self.keys or self.tokens)

    def problem(self, batch: int, queries: int = 0, heads: int = 0):
        n, m, h = queries or self.tokens, self.keys or self.tokens, heads or self.heads
        options = dict(keys=m, bias=(1, h, n, m) if self.bias else None)
        if self.masked:
            options["extra"] = key_padding(batch, m)
        return problem(self.layer, (batch, h, n, self.head_dim), **options)

    def checked(self, images: int):
        """Of very long sequences one head, and no more queries than float64 has room for."""
        if self.scores <= SCORES:
            return self.problem(images)
        return self.problem(1, max(1, min(self.tokens, SCORES // (self.keys or self.tokens))), heads=1)

    def launch(
        self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True, key_heads=0, boolean=False,
        biases=1, bias_dtype=None, descriptors=False, sinks=False, width=0, **options,
    ):  # fmt: skip
        """Self-attention on the output of a qkv projection; where there are ``keys``, on projections (B, N, H, D).

        key_heads: that the H share. boolean: a mask of every sample too. biases: that the batch has, 1 or ``batch``.
        descriptors: through Hopper's kernel. sinks: one of each head. width: of v where it is not D. options: of the
        operator.
        """
        from vitkern.kernels.loop import stream_hopper

        n, m, h, dim = self.tokens, self.keys or self.tokens, self.heads, self.head_dim
        if self.bias:
            options["bias"] = leaf(biases, h, n, m, dtype=bias_dtype or dtype)
        if sinks:
            options["sinks"] = leaf(h, dtype=dtype)
        if self.masked:
            options["key_padding_mask"] = torch.ones(batch, m, dtype=torch.bool)
        if boolean:
            options["mask"] = torch.ones(batch, 1, n, m, dtype=torch.bool)
        with (
            stream_hopper.descriptors(True) if descriptors else contextlib.nullcontext(),
            torch.set_grad_enabled(trained),
        ):
            if self.keys:
                shapes = (n, h, dim), (m, key_heads or h, dim), (m, key_heads or h, width or dim)
                q, k, v = (leaf(batch, *shape, dtype=dtype).transpose(1, 2) for shape in shapes)
                out = vitkern.attention(q, k, v, **options)
            else:
                rows = leaf(batch, n, 3 * h * dim + spare, dtype=dtype)[..., : 3 * h * dim]
                out = vitkern.attention_qkvpacked(rows.unflatten(-1, (3, h, dim)), **options)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        n, m = self.tokens, self.keys or self.tokens
        width = self.heads * self.head_dim
        bias = self.bias * self.heads * n * m * (1 + backward)
        # Forward: q, out and k, v. Backward: q, dout, dq and k, v, dk, dv.
        moved = batch * width * (3 * n + 4 * m if backward else 2 * (n + m)) + bias
        return itemsize * moved, (10 if backward else 4) * batch * width * n * m

    def __str__(self) -> str:
        keys = f" M{self.keys}" if self.keys else ""
        terms = " learned bias" * self.bias + " key mask" * self.masked
        return f"{self.layer} H{self.heads} N{self.tokens}{keys} D{self.head_dim}{terms}"


_TIMED = (
    Attention("ViT-Ti/16 224", 3, 197, 64),
    Attention("ViT-S/16 224", 6, 197, 64, quick=True, compiled="short-vit-s-224", everywhere=True),
    Attention("ViT-B/16 224", 12, 197, 64),
    Attention("ViT-L/16 224", 16, 197, 64),
    Attention("ViT-L/14 224", 16, 257, 64),
    Attention("ViT-H/14 224", 16, 257, 80, compiled="attention-d80-vit-h-14", everywhere=True),
    Attention("DINOv2-g/14 224", 24, 257, 64),
    Attention("DINOv2-g/14 518", 24, 1370, 64, batch=8),
    Attention("ViT-B/16 384", 12, 577, 64, batch=32),
    Attention("ViT-B/16 384, no class token", 12, 576, 64, masked=True, batch=32),
    Attention("BEiT-B/16 224", 12, 197, 64, bias=True, compiled="attention-bias-197"),
    Attention("BEiT-B/16 384", 12, 577, 64, bias=True, batch=32, compiled="attention-bias", everywhere=True),
    Attention("PVT-S stage 1", 1, 3136, 64, keys=49, compiled="attention-pvt-1", everywhere=True),
    Attention("PVT-S stage 2", 2, 784, 64, keys=49),
    Attention("PVT-S stage 3", 5, 196, 64, keys=49),
    Attention("PVT-S stage 4", 8, 50, 64, keys=50),
    Attention("iGPT grid, without its mask", 16, 1024, 64, batch=16),
    Attention("ViT-22B head width", 12, 577, 128, batch=16),
    Attention("SAM-B global, ViTDet-B", 12, 4096, 64, batch=4),
    Attention("SAM-H global", 16, 4096, 80, batch=2),
    Attention("pixel ViT 224", 3, 50176, 64, batch=1),
)


def _sized(name: str, what: str, *sizes: int, everywhere: bool = False, **fields) -> Attention:
    """A layer that is there to be compiled."""
    return Attention(what, *sizes, compiled=name, everywhere=everywhere, timed=False, **fields)


FEW = ((7, 7), (7, 50), (50, 7), (7, 100), (7, 200))  # a shape of the tile each: queries, keys
LAYERS = (
    *_TIMED,
    # streaming
    _sized("attention-d32", "narrow heads", 12, 577, 32),
    _sized("attention-d40", "heads of two tiles", 8, 577, 40, everywhere=True),
    _sized("attention-d64-vit-s-384", "ViT-S/16 384", 6, 577, 64, everywhere=True),
    _sized("attention-d96", "heads of two tiles", 8, 577, 96),
    *(
        _sized(f"attention-d{d}-odd", "odd heads", 8, 577, d, everywhere=d in (20, 104))
        for d in (20, 24, 36, 72, 104, 112)
    ),
    _sized("attention-d128", "wide heads", 8, 1024, 128, everywhere=True),
    _sized("attention-d256", "widest heads", 4, 1024, 256),
    _sized("attention-d16-bias", "narrowest heads", 4, 577, 16, bias=True),
    *(_sized(f"attention-d{d}-bias", "wide heads", 4, 577, d, bias=True, everywhere=True) for d in (80, 128, 256)),
    _sized("attention-d16", "narrowest heads", 8, 577, 16),
    _sized("attention-one-head", "one head", 1, 577, 64),
    _sized("attention-one-query", "pooling by attention", 8, 1, 64, keys=577),
    _sized("attention-d32-tokens-197", "narrow heads", 12, 197, 32),
    # one tile per group
    _sized("short-d32-window-49", "a window of Swin-T", 3, 49, 32),
    _sized("short-d64-tokens-50", "ViT-B/32 224", 12, 50, 64, everywhere=True),
    _sized("short-vit-b-32-384", "ViT-B/32 384", 12, 145, 64),
    _sized("short-d64-tokens-128", "half a tile", 6, 128, 64, everywhere=True),
    _sized("short-d64-tokens-256", "a whole tile", 6, 256, 64),
    _sized("short-bias-49", "a window of Swin-T", 3, 49, 32, bias=True),
    _sized("short-cross", "few queries", 8, 33, 64, keys=200),
    _sized("short-padded-40", "padded sentences", 8, 40, 64, everywhere=True, masked=True),
    *(_sized(f"short-d{d}-odd", "odd heads", 3, 49, d) for d in (20, 24, 36)),
    *(_sized(f"short-d{d}-mobilevit", "MobileViT-S", 4, n, d, everywhere=True) for n, d in ((64, 48), (16, 60))),
    *(_sized(f"short-{n}-by-{m}", "few tokens", 8, n, 64, keys=m, everywhere=True) for n, m in FEW),
    *(_sized(f"short-d32-{n}-by-{m}", "few tokens", 8, n, 32, keys=m, everywhere=True) for n, m in FEW[1:3]),
)
