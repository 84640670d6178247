"""LayerNorm, two linear layers with an activation between, and the residual: the MLP branch of a block."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

import vitkern
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
from vitkern.lab.specimens import _rows
from vitkern.lab.specimens._layernorm_mlp import PARAMETERS, SCALES, MLPCase, draw, edges, problem, tiles


def _gradients() -> Iterator[GradientCase]:
    plain = problem("C=4 F=6", 1, 3, 4, 6)
    scales = problem("two samples, LayerScale, DropPath, gelu_tanh", 2, 3, 4, 5, scales=True, act="gelu_tanh")
    post = problem("post-norm, LayerScale, DropPath", 2, 3, 4, 5, scales=True, post_norm=True)
    wide = problem("70 rows of 20, F=70", 2, 35, 20, 70, scales=True, act="quick_gelu")
    square = problem("fc2 is fc1, LayerScale the norm's weight", 2, 2, 4, 4, scales=True)
    yield GradientCase(plain, full=True)
    yield GradientCase(problem("C=3 F=4, quick_gelu", 1, 2, 3, 4, act="quick_gelu"), full=True, sample=True)
    yield GradientCase(scales, full=True)
    yield GradientCase(post, full=True)
    for act in ("quick_gelu", "gelu_tanh"):
        yield GradientCase(problem(f"post-norm, {act}", 1, 3, 5, 7, post_norm=True, act=act), seeds=2)
    yield GradientCase(without(plain, "norm_weight", "norm_bias", "fc1_bias", "fc2_bias"), seeds=2)
    yield GradientCase(without(post, "norm_weight", "norm_bias", "layer_scale"), seeds=2)
    yield GradientCase(square, seeds=2, tied=dict(fc2_weight="fc1_weight", layer_scale="norm_weight"))
    yield GradientCase(wide, seeds=2, ordered=True)
    yield GradientCase(problem("C=264, norm of its own", 2, 2, 264, 5, scales=True), sample=True)
    yield GradientCase(problem("C=264, post-norm", 2, 2, 264, 5, scales=True, post_norm=True))
    yield GradientCase(problem("C=520, split", 2, 2, 520, 5, scales=True))
    yield GradientCase(problem("C=520, split, post-norm", 2, 2, 520, 5, scales=True, post_norm=True))
    for one in (plain, scales, post, wide):  # nothing is kept, and up to 256 channels one kernel does it all
        yield GradientCase(replace(one, name=f"{one.name}, value only", gradients=()))
    yield from (GradientCase(only(scales, name)) for name in ("x", *PARAMETERS, "layer_scale"))
    yield from (GradientCase(only(post, name)) for name in ("norm_weight", "fc1_weight", "layer_scale"))


def _beyond(tensors, size, *, plan: str):
    from vitkern.kernels import layernorm_mlp as kernels

    x, row_scale = tensors(lambda s: (s, 16)), tensors(lambda s: (s,), torch.float32)
    norm = [tensors(lambda s: (16,)) for _ in range(2)]
    fc1, fc2 = (tensors(lambda s: (16, 16)) for _ in range(2))
    biases, layer_scale = [tensors(lambda s: (16,)) for _ in range(2)], tensors(lambda s: (16,))
    kernels.layernorm_mlp_forward(
        x, *norm, fc1, biases[0], fc2, biases[1], layer_scale, row_scale, 1e-6, "gelu", False, plan, plan == "two"
    )


def _offsets() -> list[OffsetCase]:
    return [
        scaled("_mlp_fwd", "rows", _beyond, 5, 2**27, plan="one"),
        scaled("_norm_linear_fwd", "rows", _beyond, 5, 2**27, plan="two"),
        *_rows.offsets(),
    ]


@dataclass(frozen=True)
class Mlp(Layer):
    """``tokens`` rows of C an image, hidden width 4 C; ``post_norm``: the block of SwinV2; ``act``: the exact GELU
    unless given; ``scales``: LayerScale's and DropPath's, which there are."""

    tokens: int
    channels: int
    post_norm: bool = False
    act: str = ""
    scales: tuple[str, ...] = ()
    op = "layernorm_mlp"

    @property
    def _options(self) -> dict:
        return {name: value for name, value in (("post_norm", self.post_norm), ("act", self.act)) if value}

    def problem(self, batch):
        sizes = batch, self.tokens, self.channels, 4 * self.channels
        whole = problem(self.layer, *sizes, scales=bool(self.scales), **self._options)
        missing = [name for name in SCALES if self.scales and name not in self.scales]
        return without(whole, *missing) if missing else whole

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        width, hidden = self.channels, 4 * self.channels
        x = leaf(batch, self.tokens, width + spare, dtype=dtype)[..., :width]
        shapes = (width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,)
        scales = dict(layer_scale=leaf(width, dtype=dtype), row_scale=torch.ones(batch))
        options = self._options | {name: scales[name] for name in self.scales}
        with torch.set_grad_enabled(trained):
            out = vitkern.layernorm_mlp(x, *(leaf(*shape, dtype=dtype) for shape in shapes), eps=1e-6, **options)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        unit, weights = batch * self.tokens * self.channels, 8 * self.channels**2
        flops = (32 if backward else 16) * unit * self.channels
        return itemsize * (unit * (3 if backward else 2) + weights * (2 if backward else 1)), flops

    def __str__(self) -> str:
        terms = " post-norm" * self.post_norm + f" {self.act}" * bool(self.act) + "".join(f" {s}" for s in self.scales)
        return f"{self.layer} {self.tokens} x C{self.channels}{terms}"


LAYERS = (
    Mlp("Swin-T stage 1", 3136, 96, compiled="mlp-96", everywhere=True),
    Mlp("Swin-B stage 1", 3136, 128),
    Mlp("Swin-T stage 2", 784, 192),
    Mlp("ViT-Ti", 197, 192),
    Mlp("Swin-B stage 2", 784, 256),
    Mlp("SwinV2-T stage 1", 4096, 96, post_norm=True, compiled="mlp-swinv2-96"),
    Mlp("SwinV2-T stage 2", 1024, 192, post_norm=True),
    Mlp("SwinV2-T stage 3", 256, 384, post_norm=True),
    Mlp("ViT-S", 197, 384, quick=True, compiled="mlp-384"),
    Mlp("Swin-B stage 3", 196, 512),
    Mlp("ViT-B", 197, 768, compiled="mlp-768"),
    Mlp("ViT-L", 197, 1024),
    Mlp("ViT-H/14", 257, 1280),
    Mlp("CLIP ViT-L/14", 257, 1024, act="quick_gelu", timed=False, compiled="mlp-1024-quick"),
    Mlp("Swin-T stage 2", 784, 192, scales=SCALES, timed=False, compiled="mlp-192-scaled", everywhere=True),
    Mlp("SwinV2-T stage 1", 4096, 96, True, scales=SCALES, timed=False, compiled="mlp-swinv2-96-scaled"),
    Mlp("SwinV2-L stage 3", 256, 1024, True, timed=False, compiled="mlp-1024-post-norm", everywhere=True),
    Mlp("odd rows", 784, 100, timed=False, compiled="mlp-100"),
)


def _launches() -> Iterator[Launch]:
    yield from compiled(LAYERS)

    def rows(tokens, channels, **options):
        return Mlp("rows", tokens, channels, **options)

    inference, tf32 = dict(trained=False), dict(everywhere=True, tf32=True)
    for channels in (96, 192):
        yield Launch(f"mlp-{channels}-inference", rows(784, channels), inference, everywhere=True)
    yield Launch("mlp-256-inference", rows(784, 256), inference)
    yield Launch("mlp-256-quick-inference", rows(784, 256, act="quick_gelu"), inference)
    yield Launch("mlp-384-inference", rows(196, 384), inference, everywhere=True)
    for channels in (128, 192, 384):
        everywhere = channels != 192
        post = rows(784, channels, post_norm=True)
        yield Launch(f"mlp-{channels}-post-norm-inference", post, inference, everywhere=everywhere)
    nat = Mlp("NAT-B stage 1", 3136, 128, scales=("layer_scale",))
    yield Launch("mlp-nat-b-inference", nat, inference, everywhere=True)
    tanh = dict(act="gelu_tanh")
    yield Launch("mlp-256-fp16-tanh", rows(784, 256, **tanh), dict(dtype=torch.float16), everywhere=True)
    yield Launch("mlp-fp32", rows(784, 192, **tanh), dict(dtype=torch.float32), everywhere=True)
    yield Launch("mlp-96-tf32", rows(784, 96), **tf32)
    yield Launch("mlp-96-tf32-inference", rows(784, 96), inference, **tf32)
    yield Launch("mlp-one-row", Mlp("a class token", 1, 192, scales=SCALES), dict(batch=1))


def _gelu_alone(generator):
    """Products by one and a scale above all else: the mean error is that of the activation."""
    eye = torch.eye(64, dtype=torch.float64)
    zero = dict.fromkeys(("fc1_bias", "fc2_bias", "norm_bias"), torch.zeros(64, dtype=torch.float64))
    weights = dict(fc1_weight=eye, fc2_weight=1024 * eye, norm_weight=torch.ones(64, dtype=torch.float64))
    return problem("", 2, 20, 64, 64).inputs(generator) | weights | zero


_TWO = problem("two kernels, scales", 3, 17, 40, 88, scales=True)
_POST = problem("two kernels, post-norm, scales", 3, 17, 40, 88, scales=True, post_norm=True, act="quick_gelu")
_WIDE = problem("wide rows", 2, 18, 264, 72, scales=True, act="gelu_tanh")
_EVEN = problem("whole blocks", 2, 32, 64, 128, act="gelu_tanh")
_SPLIT = problem("library products", 2, 20, 520, 72, scales=True)
_SPLIT_POST = problem("library products, post-norm", 2, 20, 520, 72, scales=True, post_norm=True)
_PLAIN = problem("plain", 3, 17, 40, 88)
_SCALED = problem("layer scale", 3, 17, 40, 88, scales=True)
_ROWS, _HIDDEN = problem("whole rows, hidden 96", 1, 20, 64, 96), problem("hidden 128", 1, 20, 40, 128)
TRIALS = (
    *quick(SINGLE, _TWO, forward_alone(_TWO), apart=1),
    *quick(SINGLE, _POST, forward_alone(_POST), _WIDE, _EVEN, forward_alone(_EVEN)),
    *quick(SINGLE, _ROWS, _HIDDEN, forward_alone(_ROWS), forward_alone(_HIDDEN)),
    *quick(SINGLE, without(_SCALED, "row_scale"), without(_SCALED, "fc2_bias")),
    *quick(SINGLE, forward_alone(without(_POST, "norm_weight", "norm_bias", "layer_scale"))),
    *quick(HALF, problem("hidden 192, blocks of a GPU", 1, 20, 40, 192), arch=90),
    *quick(SINGLE, replace(problem("activation alone", 2, 20, 64, 64), inputs=_gelu_alone), pool="activation"),
    *quick(HALF, _TWO, forward_alone(_TWO)),
    *quick(BRAIN, _POST, forward_alone(_EVEN)),
    *quick(SINGLE, _SPLIT, _SPLIT_POST, without(_PLAIN, "norm_weight", "norm_bias", "fc1_bias", "fc2_bias")),
    *quick(HALF, _SPLIT, pool=None),  # the library rounds its products, which the ideal does not
    *quick(HALF, _EVEN, problem("quick GELU", 2, 20, 64, 64, act="quick_gelu")),
)
CHECKS = Checks(TRIALS, (), ("test_layernorm_mlp.py",))


def _branch(x, *parameters):
    return vitkern.layernorm_mlp(x, *parameters[:6], eps=1e-6, layer_scale=parameters[6])


SPECIMEN = Specimen(
    name="layernorm_mlp",
    check=(
        problem("C=96 exact GELU", 2, 25, 96, 384),
        problem("C=96 post-norm", 2, 25, 96, 384, post_norm=True),
        problem("C=128 tanh GELU, LayerScale, DropPath", 2, 20, 128, 256, scales=True, act="gelu_tanh"),
        problem("C=40 quick GELU", 1, 17, 40, 88, act="quick_gelu"),
        problem("C=320 exact GELU", 1, 19, 320, 640),
        problem("C=320 post-norm, LayerScale, DropPath", 2, 9, 320, 640, scales=True, post_norm=True),
    ),
    case=MLPCase,
    draw=draw,
    tiles=tiles,
    weight=3,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=with_many(
        _launches(), *(f"mlp-{name}" for name in ("384", "768", "1024-quick", "384-inference")), everywhere=False
    ),
    judges={
        "layernorm_mlp": CHECKS,
        **dict.fromkeys(("layernorm", "rows/layernorm", "rows/tiles"), replace(CHECKS, trials=TRIALS[:5])),
        "rows/blocks": replace(CHECKS, trials=TRIALS[:15]),
        **dict.fromkeys(("rows/activations", "rows/epilogues", "rows/matmul", "rows/mlp"), CHECKS),
    },
    integration={
        "layernorm_mlp": Integration(
            _branch,
            lambda n: [(2, n, 32), (32,), (32,), (64, 32), (64,), (32, 64), (32,), (32,)],
            products=4 * 2 * 5 * 32 * 64,
            under_autocast=(torch.float32,),
        )
    },
    faults=(problem("mlp", 2, 3, 32, 64), problem("mlp, scales, post norm", 2, 3, 32, 64, scales=True, post_norm=True)),
    bounded=_rows.BOUNDED
    | {
        "*.norm_weight": "C elements",
        "*.norm_bias": "C elements",
        "*.layer_scale": "C elements",
        "*.fc?_bias": "one element a channel",
        "_norm_linear_fwd.args[[]0]": "one element a hidden channel",
        "_mlp_fwd.fc?": "C <= 256 here: a weight of 2^31 elements has 8 million hidden channels",
        "_norm_linear_fwd.fc1": "C <= 256 here: a weight of 2^31 elements has 8 million hidden channels",
    },
    exceptions={
        ("mlp-96-tf32", "_matmul", 120): Excuse(
            "spills: ", "8 bytes in the product without an epilogue, outside its loop"
        )
    }
    | {
        ("mlp-100", kernel, 90): Excuse(
            "widest global load is 16 bits",
            "100 channels are no multiple of eight elements, and 28 lanes of a row are masked one by one",
        )
        for kernel in ("_layernorm_fwd", "_pointwise")
    },
    turns=_rows.TURNS
    | dict.fromkeys(("_norm_linear_fwd", "_mlp_fwd"), lambda a, programs: -(-a["hidden"] // a["BLOCK_N"])),
    survivors=_rows.SURVIVORS
    | {
        "mlp._load_weight:drop-int64:1": Survivor(
            "outer.to(tl.int64) -> outer",
            "whole-row kernels have at most 256 channels: the product passes 2^31 with 8 million hidden "
            "channels, 2^31 elements of one weight",
        ),
    },
    modules={"Mlp": Module((2, 5, 32), dict(dim=32, hidden_dim=64))},
)
