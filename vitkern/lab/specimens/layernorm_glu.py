"""A norm, a gated linear unit, a linear layer and the residual: the gated MLP branch of a block."""

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
from vitkern.lab.specimens._layernorm_glu import ACTIVATIONS, NORMS, GLUCase, draw, edges, problem, tiles


def _gradients() -> Iterator[GradientCase]:
    plain = problem("C=4 F=3", 1, 3, 4, 3)
    pair = problem("two weights, LayerScale, DropPath", 2, 3, 4, 5, packed=False, scales=True, act="gelu")
    yield GradientCase(plain, full=True)
    yield GradientCase(pair, full=True, sample=True)
    for act in ACTIVATIONS:
        if act != "relu":  # whose slope jumps
            yield GradientCase(problem(f"gate last, {act}", 1, 3, 5, 7, gate_last=True, act=act), seeds=2)
    for norm in ("rms", "none"):
        yield GradientCase(problem(f"norm {norm}", 2, 3, 5, 7, norm=norm, scales=True), seeds=2)
    yield GradientCase(without(plain, "norm_weight", "norm_bias", "fc1_bias", "fc2_bias"), seeds=2)
    yield GradientCase(problem("70 rows of 20, F=70", 2, 35, 20, 70, scales=True), seeds=2, ordered=True)
    split = problem("C=520, split", 2, 2, 520, 5, scales=True)
    yield GradientCase(split, sample=True)
    yield GradientCase(only(split, "x"))
    yield GradientCase(problem("C=520, split, two weights", 2, 2, 520, 5, packed=False))
    yield GradientCase(replace(plain, name="value only", gradients=()))
    yield from (GradientCase(only(pair, name)) for name in pair.gradients)


def _beyond(tensors, size, *, which: str, deep: bool = False):
    """Gates of many rows; ``deep``: of many hidden channels."""
    from vitkern.kernels.rows import gated_matmul, gates, matmul

    rows, hidden = ((lambda s: 20), (lambda s: s)) if deep else ((lambda s: s), (lambda s: 16))

    def matrix(width=hidden, dtype=HALF_DTYPE):
        return tensors(lambda s: (rows(s), width(s)), dtype)

    def double(s):
        return 2 * hidden(s)

    out, pre, width = matrix(), None if deep else matrix(double), hidden(size)
    if which == "_gate_fwd":
        gates.gate_rows(pre, 0, width, out, act="silu", exact=False)
    elif which == "_gated_matmul":
        bias = [tensors(lambda s: (hidden(s),)) for _ in range(2)]
        weights = [tensors(lambda s: (hidden(s), 16)) for _ in range(2)]
        args = (*bias, pre, 0, width, out)
        gated_matmul.gated_multiply(matrix(lambda s: 16), *weights, args, act="silu")
    else:
        args = (pre, 0, width, matrix(), matrix(double), matrix(double, torch.float32))
        matmul.pointwise(out, gates.gate_backward, args, act="silu")


def _offsets() -> list[OffsetCase]:
    from vitkern.kernels.machine.blocks import Config

    row = Config(1, 64, 4, 1)
    one_row = {"matmul_config": lambda *_, **__: (row, 64), "pointwise_config": lambda *_: row}
    return [
        *(
            scaled(kernel, "rows of gates", _beyond, 5, 2**27, one_row, which=kernel)
            for kernel in ("_gate_fwd", "_gated_matmul", "_pointwise")
        ),
        scaled("_gated_matmul", "hidden channels", _beyond, 5, 2**27, which="_gated_matmul", deep=True),
    ]


@dataclass(frozen=True)
class Glu(Layer):
    """``tokens`` rows of C an image, F hidden channels."""

    tokens: int
    channels: int
    hidden: int
    act: str = "silu"
    norm: str = "layer"
    gate_last: bool = False
    packed: bool = True
    scales: bool = False
    op = "layernorm_glu"

    @property
    def _options(self) -> dict:
        return dict(act=self.act, norm=self.norm, gate_last=self.gate_last)

    def problem(self, batch):
        sizes = batch, self.tokens, self.channels, self.hidden
        return problem(self.layer, *sizes, packed=self.packed, scales=self.scales, **self._options)

    def eager(self, options):
        from vitkern.ops.branch import activate

        def branch(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, **others):
            weight, bias, eps = others.get("norm_weight"), others.get("norm_bias"), options["eps"]
            width = x.shape[-1:]
            if self.norm == "layer":
                y = F.layer_norm(x, width, weight, bias, eps)
            else:
                y = F.rms_norm(x, width, weight, eps) if self.norm == "rms" else x
            if self.packed:
                gate, value = F.linear(y, fc1_weight, fc1_bias).chunk(2, -1)
            else:
                gate, value = (
                    F.linear(y, fc1_weight, fc1_bias),
                    F.linear(y, others["value_weight"], others["value_bias"]),
                )
            gate, value = (value, gate) if self.gate_last else (gate, value)
            y = F.linear(activate(gate, self.act) * value, fc2_weight, fc2_bias)
            y = y if others.get("layer_scale") is None else y * others["layer_scale"]
            row_scale = others.get("row_scale")
            return x + (y if row_scale is None else y * row_scale.view(-1, *[1] * (y.dim() - 1)))

        return branch

    def launch(self, *, batch=layers.BATCH, dtype=layers.HALF, spare=0, trained=True):
        width, hidden = self.channels, self.hidden
        first = 2 * hidden if self.packed else hidden
        x = leaf(batch, self.tokens, width + spare, dtype=dtype)[..., :width]
        shapes = (width,), (width,), (first, width), (first,), (width, hidden), (width,)
        parameters = [leaf(*shape, dtype=dtype) for shape in shapes]
        parameters[len(NORMS[self.norm]) : 2] = [None] * (2 - len(NORMS[self.norm]))
        options = self._options
        if not self.packed:
            options |= dict(value_weight=leaf(hidden, width, dtype=dtype), value_bias=leaf(hidden, dtype=dtype))
        if self.scales:
            options |= dict(layer_scale=leaf(width, dtype=dtype), row_scale=torch.ones(batch))
        with torch.set_grad_enabled(trained):
            out = vitkern.layernorm_glu(x, *parameters, eps=1e-6, **options)
        if trained:
            layers.backward(out)

    def _work(self, batch, itemsize, backward):
        rows, weights = batch * self.tokens, 3 * self.channels * self.hidden
        moved = rows * self.channels * (3 if backward else 2) + weights * (2 if backward else 1)
        return itemsize * moved, (4 if backward else 2) * rows * weights

    def __str__(self) -> str:
        terms = f" {self.act}" + " gate last" * self.gate_last + " two weights" * (not self.packed)
        return f"{self.layer} {self.tokens} x C{self.channels} F{self.hidden}{terms}" + " scaled" * self.scales


LAYERS = (
    Glu("DINOv2-g", 257, 1536, 4096, quick=True, compiled="glu-1536", everywhere=True, scales=True),
    Glu("EVA02-Ti", 197, 192, 512, packed=False, compiled="glu-192-two", everywhere=True),
    Glu("EVA02-S", 197, 384, 1024, packed=False),
    Glu("DINOv3-S+", 201, 384, 1536, packed=False, scales=True, compiled="glu-384-scaled"),
    Glu("AIMv2-L", 256, 1024, 2816, norm="rms", packed=False, compiled="glu-1024-rms"),
    Glu("T5 1.1 small", 512, 512, 1024, act="gelu_tanh", norm="rms", packed=False, compiled="glu-512-t5"),
    Glu("GluMlp", 197, 384, 768, act="sigmoid", gate_last=True, timed=False, compiled="glu-384-last", everywhere=True),
    Glu("bilinear", 197, 128, 256, act="identity", norm="none", timed=False, compiled="glu-128-bilinear"),
    Glu("ReGLU", 197, 256, 512, act="relu", timed=False, compiled="glu-256-relu"),
    Glu("GEGLU", 197, 256, 512, act="gelu", timed=False, compiled="glu-256-gelu"),
)


# Two images have an odd number of rows, 64 have whole tiles: other kernels.
VARIED = "1536", "384-scaled", "192-two", "384-last", "128-bilinear", "256-relu", "256-gelu", "384-inference"
VARIED += "fp32", "fp16", "tf32"


def _launches() -> Iterator[Launch]:
    yield from compiled(LAYERS)
    rows = Glu("rows", 197, 384, 768, timed=False)
    yield Launch("glu-384-inference", rows, dict(trained=False), everywhere=True)
    yield Launch("glu-fp32", replace(rows, act="gelu"), dict(dtype=torch.float32))
    yield Launch("glu-fp16", replace(rows, gate_last=True), dict(dtype=torch.float16))
    yield Launch("glu-tf32", replace(rows, channels=192), everywhere=True, tf32=True)


_TWO = problem("two kernels, scales", 3, 17, 40, 88, scales=True)
_LAST = problem("gate last", 2, 18, 264, 72, gate_last=True, act="gelu_tanh")
_PAIR = problem("two weights, norm rms", 2, 20, 40, 72, packed=False, norm="rms", act="sigmoid")
_EVEN = problem("whole blocks", 2, 32, 64, 128, norm="none", act="relu")
_SPLIT = problem("library products", 2, 20, 520, 72, scales=True, gate_last=True)
_SPLIT_PAIR = problem("library products, two weights", 2, 20, 520, 72, packed=False, act="identity")
_GELU = problem("gelu, gate last", 2, 20, 24, 40, gate_last=True, act="gelu")
_SPLIT_BARE = without(_SPLIT, "fc1_bias", "fc2_bias", "layer_scale")
TRIALS = (
    *quick(SINGLE, _TWO, forward_alone(_TWO), apart=1),
    *quick(SINGLE, _LAST, _PAIR, _EVEN, _GELU, forward_alone(_EVEN), without(_PAIR, "fc1_bias", "value_bias")),
    *quick(SINGLE, _SPLIT, _SPLIT_PAIR, _SPLIT_BARE),
    *quick(HALF, problem("hidden 192, blocks of a GPU", 1, 150, 136, 192, act="silu"), arch=90),
    *quick(SINGLE, problem("nine blocks of rows", 1, 290, 16, 130), arch=0),
    *quick(HALF, _TWO, _LAST, _EVEN),
    *quick(BRAIN, _PAIR, _TWO),
    *quick(HALF, _SPLIT, pool=None),  # the library rounds its products, which the ideal does not
)
CHECKS = Checks(TRIALS)


def _branch(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, layer_scale):
    """Weights of a fifth of their size: two products of normal numbers are multiplied."""
    first, second = (0.2 * fc1_weight, fc1_bias), (0.2 * fc2_weight, fc2_bias)
    return vitkern.layernorm_glu(x, norm_weight, norm_bias, *first, *second, eps=1e-6, layer_scale=layer_scale)


SPECIMEN = Specimen(
    name="layernorm_glu",
    check=(
        problem("C=96 SwiGLU", 2, 25, 96, 256),
        problem(
            "C=128 GLU, gate last, LayerScale, DropPath", 2, 20, 128, 96, scales=True, gate_last=True, act="sigmoid"
        ),
        problem("C=40 GEGLU, two weights, norm rms", 1, 17, 40, 88, packed=False, norm="rms", act="gelu_tanh"),
        problem("C=64 ReGLU, norm rms", 1, 19, 64, 72, norm="rms", act="relu"),
        problem("C=520 bilinear, two weights", 1, 19, 520, 72, packed=False, act="identity"),
        problem("C=520 GEGLU, gate last, LayerScale, DropPath", 2, 9, 520, 64, scales=True, gate_last=True, act="gelu"),
    ),
    case=GLUCase,
    draw=draw,
    tiles=tiles,
    weight=2,
    edges=tuple(edges()),
    gradients=tuple(_gradients()),
    offsets=_offsets,
    layers=LAYERS,
    launches=with_many(_launches(), *(f"glu-{name}" for name in VARIED), everywhere=False),
    judges=dict.fromkeys(("layernorm_glu", "rows/gated_matmul", "rows/gates"), CHECKS),
    integration={
        "layernorm_glu": Integration(
            _branch,
            lambda n: [(2, n, 8), (8,), (8,), (8, 8), (8,), (8, 4), (8,), (8,)],  # of normal weights more grows large
            products=6 * 2 * 5 * 8 * 4,
            under_autocast=(torch.float32,),
        )
    },
    faults=(problem("glu", 2, 3, 32, 64), problem("glu, two weights, scales", 2, 3, 32, 64, packed=False, scales=True)),
    bounded={
        "_gate_fwd.args[[][012]]": "None: products that are in memory have their biases, and are kept as they are",
        "_gated_matmul.args[[][01]]": "one element a column, and columns are counted in 31 bits",
    },
    turns={"_gated_matmul": lambda a, programs: -(-a["inner"] // a["BLOCK_K"])},
    exceptions={
        ("glu-tf32", "_matmul", 120): Excuse("spills: ", "8 bytes in the product without an epilogue, outside its loop")
    },
    survivors={
        "gates.gate_with_slope:narrow-accumulator:1": Survivor(
            "tl.float32 -> tl.float16", "1 is exact in float16, and is only multiplied with what is float32"
        ),
        "gates._gate_fwd:drop-float32:1": Survivor(
            "tl.load(where + gate_at, mask=inside, other=0.0).to(tl.float32) -> tl.load(where + gate_at, mask=inside, "
            "other=0.0)",
            "the bias that is added first is float32, zeros where there is none, and widens it just so",
        ),
        "gates.gate_rows:wrong-block:2": Survivor(
            "config.block_n -> config.block_m", "more programs than tiles: those past the last have no rows"
        ),
        "gated_matmul._gated_matmul:wrong-constant:3": Survivor(
            "0.0 -> 1.0", "past the inner dimension the rows are 0, and columns past the last are not stored"
        ),
    },
    modules={"GluMlp": Module((2, 5, 32), dict(dim=32, hidden_dim=48))},
)
