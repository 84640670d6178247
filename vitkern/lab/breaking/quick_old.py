"""The problems that decide whether a mutant lives: small, and each of several features at once, so that most mutants
die in the first second. Ordered from the telling to the special.
"""

import dataclasses
import functools
import zlib
from dataclasses import dataclass

import torch

from vitkern.lab.proving.problems import (
    Problem,
    attention_problem,
    key_padding,
    layernorm_problem,
    local_problem,
    mlp_problem,
    packed_problem,
    random_mask,
    sparse_problem,
    window_problem,
)
from vitkern.lab.proving.verify import Trial

SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Quick:
    """A problem in a dtype.

    apart: every operand lies in a larger tensor of its own, so that no two have a stride in common; its rows are longer
    by a multiple of this many elements.
    pool: the problems whose mean errors rule (b) adds up; None where they say nothing, because the tensors are small
    or the ideal has no error.
    arch: whose block sizes run; 0 the interpreter's own.
    descriptors: Hopper's variant runs where it can.
    """

    problem: Problem
    dtype: torch.dtype
    apart: int = 0
    pool: str | None = "all"
    arch: int = 0
    descriptors: bool = False

    def trial(self) -> Trial:
        """With what it should give; imports no kernel."""
        arrange = functools.partial(_apart, unit=self.apart) if self.apart else None
        return Trial(self.problem, self.dtype, torch.device("cpu"), arrange=arrange)


Trials = tuple[Quick, ...]


def _apart(name: str, tensor: torch.Tensor, *, unit: int) -> torch.Tensor:
    if tensor.dim() < 2 or not tensor.is_floating_point():
        return tensor
    seed = zlib.crc32(name.encode())
    larger = [size + 1 + (seed >> 3 * axis) % 8 for axis, size in enumerate(tensor.shape)]
    larger[-1] = tensor.shape[-1] + unit * (larger[-1] - tensor.shape[-1])
    place = tensor.new_zeros(larger)[tuple(slice(0, size) for size in tensor.shape)]
    return place.copy_(tensor)


def _in(dtype: torch.dtype, *problems: Problem, **options) -> Trials:
    return tuple(Quick(problem, dtype, **options) for problem in problems)


def _forward_only(problem: Problem) -> Problem:
    return dataclasses.replace(problem, name=f"{problem.name}, forward alone", gradients=())


def _both_masks(generator):
    return random_mask(1, 1, 19, 21, empty_row=True)(generator) | key_padding(2, 21)(generator)


_LSE = dict(outputs=("out", "lse"), return_lse=True)
_GROUPED = attention_problem(
    "grouped heads, bias, masks", (2, 2, 19, 40), keys=21, kv_heads=1, bias=(1, 2, 19, 21), extra=_both_masks, **_LSE
)
_CAUSAL = attention_problem("causal, more keys", (2, 2, 18, 20), keys=37, causal=True, **_LSE)
_CAUSAL_QUERIES = attention_problem("causal, more queries", (1, 2, 37, 16), keys=18, causal=True)
_CAUSAL_EVEN = attention_problem("causal, whole key blocks", (1, 2, 18, 16), keys=32, causal=True)
_FAR_BELOW = attention_problem(
    "logits far below zero",
    (1, 1, 18, 40),
    keys=20,
    extra=lambda _: dict(mask=torch.full((18, 20), -300.0, dtype=torch.float64)),
)
_EVEN = attention_problem("whole blocks", (1, 2, 32, 64), kv_heads=1, scale=0.3)
_FEW = attention_problem("few, grouped heads", (2, 4, 5, 20), keys=19, kv_heads=2, **_LSE)
_BIASES = tuple(
    attention_problem(f"streamed, bias {shape}", (2, 2, 18, 40), keys=20, bias=shape)
    for shape in ((2, 1, 18, 20), (2, 2, 18, 20), (1, 1, 18, 20), (1, 2, 1, 20), (2, 2, 18, 1))
)
_ALONG = attention_problem("causal, bias of the batch", (3, 2, 17, 16), keys=20, bias=(1, 1, 17, 20), causal=True)
_STREAMED_WINDOWS = (
    window_problem("streamed, padded, cosine", (4, 7), (4, 5), shift=(0, 1), dim=40, cosine=True),
    window_problem("streamed, padded", (5, 9), (4, 5), shift=(1, 2), dim=40, heads=1, wrap="padded"),
    window_problem("streamed, two rows", (8, 5), (4, 5), shift=(2, 0), dim=36, heads=1, batch=2, mask_value=None),
)
_HALF_CAUSAL = attention_problem(
    "causal, grouped", (1, 2, 20, 64), keys=33, kv_heads=1, causal=True, bias=(1, 2, 20, 33)
)
_HALF_LONG = attention_problem("long rows", (1, 1, 20, 80), keys=150)
_GPU_LOOP = attention_problem("blocks of a GPU", (1, 1, 70, 40), keys=96)
_HALF_MORE = attention_problem("grouped, bias", (1, 2, 33, 72), keys=50, kv_heads=1, bias=(1, 2, 33, 50))

STREAMED: Trials = (
    *_in(SINGLE, _FEW, _GROUPED, _CAUSAL, apart=1),
    *_in(SINGLE, _EVEN, _CAUSAL_QUERIES, _STREAMED_WINDOWS[0]),
    *_in(SINGLE, _CAUSAL_EVEN, _FAR_BELOW, pool=None),
    *_in(SINGLE, *_BIASES[:2], pool=None),
    *_in(BRAIN, _HALF_CAUSAL, pool=None),
    *_in(BRAIN, _HALF_MORE),
    *_in(HALF, _HALF_CAUSAL, pool=None),
    *_in(HALF, _HALF_LONG, _HALF_MORE),
    *_in(HALF, _GPU_LOOP, arch=90),
    *_in(SINGLE, *_BIASES[2:], _ALONG, *_STREAMED_WINDOWS[1:], pool=None),
)

_ROWS = _forward_only(attention_problem("rows", (2, 4, 35, 72), keys=50, kv_heads=2, scale=0.3, **_LSE))
_ROWS_BIASED = _forward_only(
    attention_problem("rows, bias", (2, 2, 35, 72), keys=50, bias=(2, 2, 35, 50), scale=0.3, **_LSE)
)
HOPPER: Trials = (
    *_in(HALF, _ROWS, apart=8, descriptors=True),
    *_in(HALF, _ROWS_BIASED, apart=8, descriptors=True),
    *_in(BRAIN, _forward_only(packed_problem("packed rows", 2, 37, 3, 80, **_LSE)), descriptors=True),
    *_in(HALF, _forward_only(attention_problem("whole blocks", (1, 2, 32, 128), **_LSE)), descriptors=True),
    *_in(HALF, _forward_only(attention_problem("one token", (3, 2, 1, 72), **_LSE)), descriptors=True, pool=None),
    *_in(
        HALF,
        _forward_only(attention_problem("rows, blocks of a GPU", (1, 1, 130, 40), keys=140)),
        descriptors=True,
        arch=90,
    ),
)

_SHORT_HELD = attention_problem(
    "bias of the batch",
    (3, 2, 19, 24),
    keys=30,
    bias=(1, 2, 19, 30),
    extra=random_mask(3, 1, 19, 30, empty_row=True),
    **_LSE,
)
_SHORT_STRIDED = attention_problem("bias of each", (3, 2, 49, 16), keys=33, bias=(3, 2, 49, 33), **_LSE)
_SHORT_CHUNK = attention_problem("bias of the batch, two blocks of rows", (3, 2, 49, 16), keys=33, bias=(2, 49, 33))
_SHORT_HEADS = attention_problem("bias of the sample", (3, 2, 20, 16), keys=18, bias=(3, 1, 20, 18))
_SHORT_PACKED = packed_problem("packed", 3, 19, 2, 24)
_SHORT_ROWS = packed_problem("packed, several blocks of rows", 1, 70, 2, 64)
SHORT: Trials = (
    *_in(SINGLE, _SHORT_HELD, _SHORT_STRIDED, apart=1),
    *_in(SINGLE, _SHORT_PACKED, _SHORT_CHUNK, _SHORT_HEADS),
    *_in(BRAIN, _SHORT_HELD, _SHORT_PACKED),
    *_in(HALF, _SHORT_ROWS, _SHORT_STRIDED),
)

_PADDED = window_problem("padded, shifted", (5, 11), (4, 5), shift=(1, 2), wrap="padded", batch=2, dim=8)
_EXACT = window_problem("exact, shifted", (8, 15), (4, 5), shift=(1, 3), mask_value=None, dim=24)
_STREAMED_TABLE = window_problem("streamed, cosine, table", (4, 7), (4, 5), shift=(1, 2), dim=36, cosine=True)
WINDOWS: Trials = (
    *_in(SINGLE, _EXACT, _PADDED, apart=1),
    *_in(
        SINGLE,
        window_problem("cosine, rolled then padded", (5, 6), (4, 5), shift=(2, 1), cosine=True, batch=2),
        window_problem("two blocks of rows, cosine", (7, 14), (7, 7), shift=(3, 3), cosine=True, dim=8),
        window_problem("no shift, padded", (6, 7), (4, 5), dim=8),
        window_problem("one axis", (8, 10), (4, 5), shift=(0, 2), mask_value=-1.5),
        window_problem("no shift, cosine", (4, 10), (4, 5), cosine=True, dim=8),
        window_problem("no shift", (8, 10), (4, 5), scale=0.4),
        _STREAMED_TABLE,
    ),
    *_in(BRAIN, _PADDED),
    *_in(HALF, window_problem("cosine", (8, 10), (4, 5), shift=(1, 1), cosine=True)),
)

_AROUND = local_problem("around each, dilated", (7, 11), (1, 1), (1, 1), "clamp", dilation=(1, 2), table=True, lse=True)
_BLOCKS = local_problem("blocks and a halo", (4, 6), (2, 3), (1, 1), rel=True, table=True, batch=2, dim=24)
_OUT = local_problem("windows that stick out", (5, 6), (4, 4), rel=True, padding=True)
LOCAL: Trials = (
    *_in(SINGLE, _AROUND, _BLOCKS, _OUT, apart=1),
    *_in(
        SINGLE,
        local_problem("cyclic", (5, 4), (2, 3), (2, 3), "wrap", table=True, heads=1, lse=True),
        local_problem("chunks", (5, 8), (2, 3), (2, 3), "exclude", table=True, heads=1),
        local_problem("one of the chunks around", (6, 9), (3, 3), (3, 3), "exclude", neighbor=(-1, 1), heads=1),
        local_problem("around each, zeros outside", (5, 6), (1, 1), (1, 2), rel=True, heads=1),
        local_problem("around each, far", (9, 6), (1, 1), (4, 2), "clamp", table=True, heads=1),
        local_problem("grid", (4, 6), (2, 3), dilation=(2, 2), table=True),
    ),
    *_in(SINGLE, local_problem("three chunks", (9, 3), (3, 3), (3, 3), "wrap", heads=1, dim=8), pool=None),
    *_in(BRAIN, _AROUND, _BLOCKS),
    *_in(HALF, _BLOCKS, _OUT),
    *_in(HALF, local_problem("blocks of a GPU", (9, 9), (1, 1), (1, 1), "clamp", table=True, heads=1), arch=90),
)

_NORMS = (
    layernorm_problem("75 rows of 40, residual", 75, 40, residual=True, offset=1.0),
    layernorm_problem("33 rows of 96, mean 3", 33, 96, offset=3.0),
    layernorm_problem("70 rows of 64", 70, 64),
)


def _bare(problem: Problem, *names: str) -> Problem:
    """``problem`` without some operands."""

    def inputs(generator):
        return problem.inputs(generator) | dict.fromkeys(names)

    kept = tuple(name for name in problem.gradients if name not in names)
    return dataclasses.replace(problem, name=f"{problem.name}, no {', '.join(names)}", inputs=inputs, gradients=kept)


def _flat_rows(generator):
    """x + residual is one number in a row, which half precision does not hold: a mean of it must be of what is kept."""
    x = torch.arange(20.0, dtype=torch.float64)[:, None].expand(20, 64) / 7
    parameters = _NORMS[2].inputs(generator)
    return parameters | dict(x=x, residual=torch.full_like(x, 40.3))


_FLAT = dataclasses.replace(layernorm_problem("flat rows", 20, 64, residual=True), inputs=_flat_rows)
NORMS: Trials = (
    *_in(SINGLE, _NORMS[0], apart=1),
    *_in(SINGLE, *_NORMS[1:], _bare(_NORMS[1], "weight", "bias")),
    *_in(BRAIN, *_NORMS[:2]),
    *_in(HALF, *_NORMS[:2]),
    *_in(HALF, _FLAT, pool=None),
)

_TWO = mlp_problem("two kernels, scales", 3, 17, 40, 88, scales=True)
_TWO_POST = mlp_problem("two kernels, post-norm, scales", 3, 17, 40, 88, scales=True, post_norm=True, act="quick_gelu")
_WIDE = mlp_problem("wide rows", 2, 18, 264, 72, scales=True, act="gelu_tanh")
_EVEN_MLP = mlp_problem("whole blocks", 2, 32, 64, 128, act="gelu_tanh")
_LIBRARY = mlp_problem("library products", 2, 20, 520, 72, scales=True)
_LIBRARY_POST = mlp_problem("library products, post-norm", 2, 20, 520, 72, scales=True, post_norm=True)
_PLAIN = mlp_problem("plain", 3, 17, 40, 88)
_PLAIN_SCALED = mlp_problem("layer scale", 3, 17, 40, 88, scales=True)
_EVEN_ROWS = mlp_problem("whole rows, hidden 96", 1, 20, 64, 96)
_EVEN_HIDDEN = mlp_problem("hidden 128", 1, 20, 40, 128)
_GPU_BLOCKS = mlp_problem("hidden 192, blocks of a GPU", 1, 20, 40, 192)


def _gelu_alone(generator):
    """Products by one and a scale above all else: the mean error is that of the activation."""
    eye = torch.eye(64, dtype=torch.float64)
    zero = dict.fromkeys(("fc1_bias", "fc2_bias", "norm_bias"), torch.zeros(64, dtype=torch.float64))
    weights = dict(fc1_weight=eye, fc2_weight=1024 * eye, norm_weight=torch.ones(64, dtype=torch.float64))
    return mlp_problem("", 2, 20, 64, 64).inputs(generator) | weights | zero


_GELU = dataclasses.replace(mlp_problem("activation alone", 2, 20, 64, 64), inputs=_gelu_alone)


MLPS: Trials = (
    *_in(SINGLE, _TWO, _forward_only(_TWO), apart=1),
    *_in(SINGLE, _TWO_POST, _forward_only(_TWO_POST), _WIDE, _EVEN_MLP, _forward_only(_EVEN_MLP)),
    *_in(SINGLE, _EVEN_ROWS, _EVEN_HIDDEN, _forward_only(_EVEN_ROWS), _forward_only(_EVEN_HIDDEN)),
    *_in(SINGLE, _bare(_PLAIN_SCALED, "row_scale"), _bare(_PLAIN_SCALED, "fc2_bias")),
    *_in(SINGLE, _forward_only(_bare(_TWO_POST, "norm_weight", "norm_bias", "layer_scale"))),
    *_in(HALF, _GPU_BLOCKS, arch=90),
    *_in(SINGLE, _GELU, pool="activation"),
    *_in(HALF, _TWO, _forward_only(_TWO)),
    *_in(BRAIN, _TWO_POST, _forward_only(_EVEN_MLP)),
    *_in(SINGLE, _LIBRARY, _LIBRARY_POST, _bare(_PLAIN, "norm_weight", "norm_bias", "fc1_bias", "fc2_bias")),
    *_in(HALF, _LIBRARY, pool=None),  # the library rounds its products, which the ideal does not
    *_in(HALF, _EVEN_MLP, mlp_problem("quick GELU", 2, 20, 64, 64, act="quick_gelu")),
)

_GATED = sparse_problem("gates, padding", 2, 2, 37, 50, 20, gated=True, padded=True, scale=0.4)
_SAMPLED = sparse_problem("sampled, gates", 2, 3, 40, 33, 32, sampled=35, gated=True)

SPARSE: Trials = (
    *_in(SINGLE, _GATED, _SAMPLED, apart=1),
    *_in(SINGLE, sparse_problem("empty sequence", 2, 1, 20, 16, 16, padded=True), _SAMPLED),
    *_in(SINGLE, sparse_problem("even tiles", 1, 2, 64, 64, 16, gated=True), arch=90),
    *_in(HALF, _GATED, _SAMPLED, sparse_problem("keys that fill the tile", 1, 2, 70, 64, 64, sampled=66)),
    *_in(HALF, sparse_problem("steep gates", 1, 2, 33, 64, 24, gated=True, strength=1e3)),
    *_in(BRAIN, _GATED, sparse_problem("many keys", 1, 1, 40, 200, 32, gated=True, padded=True)),
)
