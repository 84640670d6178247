"""LayerNorm, an MLP over the tokens of each channel, and the residual: the token-mixing half of a Mixer block."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import vitkern
from vitkern.lab.addressing.offset_case import HALF as HALF_DTYPE
from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.addressing.offset_case import scaled
from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, quick
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, Layer, compiled, leaf, with_many
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.proving.integration import Integration, Module
from vitkern.lab.proving.problem import forward_alone, only, without
from vitkern.lab.specimen import Specimen
from vitkern.lab.specimens._token_mixing import MixingCase, draw, edges, problem, tiles


def _gradients() -> Iterator[GradientCase]:
    plain = problem("3 tokens of 4, S=5", 1, 3, 4, 5)
    scales = problem("three images, DropPath", 3, 4, 5, 3, scales=True, act="gelu_tanh")
    yield GradientCase(plain, full=True)
    yield GradientCase(scales, full=True, sample=True)
    yield GradientCase(problem("quick_gelu", 2, 3, 5, 7, act="quick_gelu"), seeds=2)
    yield GradientCase(without(plain, "norm_weight", "norm_bias", "fc1_bias", "fc2_bias"), seeds=2)
    yield GradientCase(problem("35 tokens of 70, S=33", 2, 35, 70, 33, scales=True), seeds=2, ordered=True)
    yield GradientCase(replace(plain, name="value only", gradients=()))
    yield from (GradientCase(only(scales, name)) for name in scales.gradients)


def _product(tensors, size, *, hook: str, dims):
    """A weight times images; ``dims(size)``: (B, R, C) of the product."""
    from vitkern.kernels.rows import mixing

    def image(dtype=HALF_DTYPE, inner=None):
        return tensors(lambda s: (dims(s)[0], inner or dims(s)[1], dims(s)[2]), dtype)

    weight, x = tensors(lambda s: (dims(s)[1], 16)), image(inner=16)
    args = {
        "activate_tokens": lambda: (tensors(lambda s: (dims(s)[1],)), image(), image()),
        "add_tokens": lambda: (None, tensors(lambda s: (dims(s)[0],), torch.float32), image(), image()),
        "activation_backward": lambda: (
            image(), image(), image(), tensors(lambda s: dims(s)[:2], torch.float32)
        ),
    }[hook]()  # fmt: skip
    mixing.mix_tokens(weight, x, getattr(mixing, hook), args, rows=dims(size)[1])


def _gradient(tensors, size, *, left, right):
    from vitkern.kernels.rows import mixing

    mixing.mix_weight_backward(tensors(left), tensors(right))


def _offsets() -> list[OffsetCase]:
    small, images = (lambda s: (1, 16, 16)), (lambda s: (s, 16, 1))
    rows, channels = (lambda s: (1, s, 16)), (lambda s: (1, 16, s))
    hooks = ("activate_tokens", "add_tokens", "activation_backward")
    return [
        *(scaled("_mix_tokens", f"images, {hook}", _product, 5, 2**27, hook=hook, dims=images) for hook in hooks),
        scaled("_mix_tokens", "channels", _product, 70, 2**27, hook="add_tokens", dims=channels),
        scaled("_mix_tokens", "rows", _product, 70, 2**27, hook="add_tokens", dims=rows),
        scaled("_mix_weight_bwd", "rows", _gradient, 70, 2**27, left=rows, right=small),
        scaled("_mix_weight_bwd", "columns", _gradient, 70, 2**27, left=small, right=rows),
    ]


@dataclass(frozen=True)
class Mixing(Layer):
    """``tokens`` of C channels an image, S hidden tokens."""

    tokens: int
    channels: int
    hidden: int
    scales: bool = False
    op = "token_mixing"

    def problem(self, batch):
        return problem(self.layer, batch, self.tokens, self.channels, self.hidden, scales=self.scales)

    def eager(self, options):
        def branch(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, row_scale=None):
            y = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, options["eps"]).transpose(1, 2)
            y = F.linear(F.gelu(F.linear(y, fc1_weight, fc1_bias)), fc2_weight, fc2_bias).transpose(1, 2)
            return x + (y if row_scale is None else y * row_scale.view(-1, 1, 1))

        return branch

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        tokens, width, hidden = self.tokens, self.channels, self.hidden
        x = leaf(batch, tokens, width + spare, dtype=dtype)[..., :width]
        shapes = (width,), (width,), (hidden, tokens), (hidden,), (tokens, hidden), (tokens,)
        row_scale = torch.ones(batch) if self.scales else None
        with torch.set_grad_enabled(trained):
            out = vitkern.token_mixing(
                x, *(leaf(*shape, dtype=dtype) for shape in shapes), eps=1e-6, row_scale=row_scale
            )
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        unit, weights = batch * self.tokens * self.channels, 2 * self.tokens * self.hidden
        flops = (8 if backward else 4) * unit * self.hidden
        return itemsize * (unit * (3 if backward else 2) + weights * (2 if backward else 1)), flops

    def __str__(self) -> str:
        return f"{self.layer} {self.tokens} x C{self.channels} S{self.hidden}" + " scaled" * self.scales


LAYERS = (
    Mixing("Mixer-S/16", 196, 512, 256, quick=True, compiled="mixing-512", everywhere=True),
    Mixing("Mixer-B/16", 196, 768, 384, scales=True, compiled="mixing-768"),
    Mixing("Mixer-L/16", 196, 1024, 512),
    Mixing("Mixer-S/32", 49, 512, 256, compiled="mixing-49"),
)


VARIED = "768", "512", "49", "inference", "fp32", "fp16"  # other kernels for 64 images than for two


def _launches() -> Iterator[Launch]:
    yield from compiled(LAYERS)
    yield Launch("mixing-inference", LAYERS[0], dict(trained=False))
    yield Launch("mixing-fp32", LAYERS[0], dict(dtype=torch.float32), everywhere=True)
    yield Launch("mixing-fp16", LAYERS[0], dict(dtype=torch.float16))


_SCALED = problem("three images, DropPath", 3, 17, 40, 35, scales=True)
_WIDE = problem("wide", 2, 70, 72, 40, act="gelu_tanh")
_EVEN = problem("whole blocks", 3, 32, 64, 64, act="quick_gelu")
TRIALS = (
    *quick(SINGLE, _SCALED, forward_alone(_SCALED), apart=1),
    *quick(SINGLE, _WIDE, _EVEN, forward_alone(_EVEN)),
    *quick(SINGLE, without(_SCALED, "norm_weight", "norm_bias", "fc1_bias", "fc2_bias")),
    *quick(HALF, problem("blocks of a GPU", 2, 70, 136, 150), arch=90),
    *quick(HALF, _SCALED, _EVEN),
    *quick(BRAIN, _WIDE, _SCALED),
)

SPECIMEN = Specimen(
    name="token_mixing",
    check=(
        problem("49 tokens of 64, S=32", 2, 49, 64, 32),
        problem("17 tokens of 40, S=35, DropPath", 3, 17, 40, 35, scales=True, act="gelu_tanh"),
        problem("70 tokens of 100, S=72", 1, 70, 100, 72, act="quick_gelu"),
    ),
    case=MixingCase,
    draw=draw,
    tiles=tiles,
    weight=2,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=with_many(_launches(), *(f"mixing-{name}" for name in VARIED), everywhere=False),
    judges=dict.fromkeys(("token_mixing", "rows/mixing"), Checks(TRIALS)),
    integration={
        "token_mixing": Integration(
            lambda x, *weights: vitkern.token_mixing(x, *weights, eps=1e-6),
            lambda n: [(n, 6, 32), (32,), (32,), (16, 6), (16,), (6, 16), (6,)],
            products=4 * 5 * 6 * 32 * 16,
            under_autocast=(torch.float32,),
        )
    },
    faults=(problem("mixing", 2, 9, 32, 16), problem("mixing, DropPath", 2, 9, 32, 16, scales=True)),
    bounded={
        "_mix_tokens.*_tokens.bias": "one element a token",
        "_mix_tokens.EPILOGUE=*": "a hook of matmul.py, whose signature is another",
        "_mix_tokens.*.row_scale": "one element an image, and images are counted in 31 bits",
    },
    exceptions={
        (name, "_mix_weight_bwd", 100): Excuse("spills: ", "8 bytes, stored once and loaded once")
        for name in ("mixing-512", "mixing-768", "mixing-fp16", "mixing-fp16-batch-64", "mixing-768-batch-64")
    },
    turns={
        "_mix_tokens": lambda a, programs: -(-a["inner"] // a["BLOCK_K"]),
        "_mix_weight_bwd": lambda a, programs: -(-a["inner"] // a["BLOCK_K"]) * -(-a["images"] // 32),
    },
    survivors={
        "mixing._load_rows:drop-float32:1": Survivor(
            "tl.load(pointer + row, mask=row < rows, other=0.0).to(tl.float32) -> tl.load(pointer + row, "
            "mask=row < rows, other=0.0)",
            "the values are added to a float32 accumulator, which widens them just so",
        ),
        "mixing.add_tokens:drop-other:1": Survivor(
            "tl.load(base + where, mask=inside, other=0.0) -> tl.load(base + where, mask=inside)",
            "masked lanes are outside the image, which the store leaves out",
        ),
        "mixing.activation_backward:wrong-constant:1": Survivor(
            "0.0 -> 1.0", "outside the image the product is 0, whatever the slope, and hidden is not stored"
        ),
        "mixing._blocks:wrong-block:2": Survivor(
            "config.block_n -> config.block_m",
            "another block size, the same for products and their partial sums: slower, and not wrong",
        ),
    },
    modules={"TokenMixing": Module((2, 9, 32), dict(dim=32, seq_len=9, tokens_dim=16))},
)
