"""The cases of ``python -m vitkern check``: operator, inputs, reference. The tests on a GPU run the same ones.

Small, so that Triton's interpreter gets through them, and awkward: token counts around and across tile boundaries,
odd head dimensions, rows without a key, images that the window does not divide.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

OPS = ("attention", "window_attention", "layernorm", "layernorm_mlp")
_FILES = {"layernorm_mlp": "mlp"}


@dataclass(frozen=True)
class Case:
    """One operator on one set of inputs.

    ``inputs(generator)`` returns float64 (or bool, or int) CPU tensors by argument name; ``gradients`` names those that
    get one. ``outputs`` names what the operator returns, the first ``differentiable`` of which have a gradient.
    """

    op: str
    name: str
    inputs: Callable[[Generator], dict[str, Tensor]]
    gradients: tuple[str, ...]
    options: dict = field(default_factory=dict)
    function: str = ""
    outputs: tuple[str, ...] = ("out",)
    differentiable: int = 1
    formula: Callable | None = None

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"

    @property
    def run(self) -> Callable:
        """The public function of `vitkern.ops`."""
        return self._function("ops")

    @property
    def reference(self) -> Callable:
        """The same function of `vitkern.reference`, or ``formula``; also takes ``low_precision``."""
        return self.formula or self._function("reference")

    def _function(self, layer: str) -> Callable:
        module = importlib.import_module(f"vitkern.{layer}.{_FILES.get(self.op, self.op)}")
        return getattr(module, self.function or self.op)


def normal(generator: Generator, *shape: int, std: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * std


def attention_case(
    name: str, shape: tuple, *, keys: int = 0, kv_heads: int = 0, bias=None, extra=None, outputs=("out",), **options
) -> Case:
    """``shape`` (B, H, N, D); ``bias`` a learned bias's shape; ``extra(generator)`` tensors without a gradient."""
    batch, heads, tokens, dim = shape

    def inputs(generator):
        kv = (batch, kv_heads or heads, keys or tokens, dim)
        tensors = dict(q=normal(generator, *shape), k=normal(generator, *kv), v=normal(generator, *kv))
        if bias is not None:
            tensors["bias"] = normal(generator, *bias)
        return tensors | (extra(generator) if extra else {})

    gradients = ("q", "k", "v") if bias is None else ("q", "k", "v", "bias")
    return Case("attention", name, inputs, gradients, options, outputs=outputs)


def packed_case(name: str, batch: int, tokens: int, heads: int, dim: int) -> Case:
    def inputs(generator):
        return dict(qkv=normal(generator, batch, tokens, 3, heads, dim))

    def formula(qkv, low_precision=None):
        from vitkern.reference.attention import attention

        return attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0), low_precision=low_precision).transpose(1, 2)

    return Case("attention", name, inputs, ("qkv",), function="attention_qkvpacked", formula=formula)


def _random_mask(*shape: int, empty_row: bool) -> Callable:
    def make(generator):
        mask = torch.rand(*shape, generator=generator) < 0.7
        if empty_row:
            mask[..., 3, :] = False
        return dict(mask=mask)

    return make


def _padding(batch: int, keys: int) -> Callable:
    """Entry b keeps all but the last 7 b keys."""
    return lambda g: dict(key_padding_mask=torch.arange(keys)[None, :] < keys - 7 * torch.arange(batch)[:, None])


def window_case(
    name: str, image: tuple, window: tuple, *, heads=2, dim=16, batch=1, shift=(0, 0), cosine=False, **options
) -> Case:
    """``image`` (img_h, img_w); a padding vector is given where the window does not divide the image."""
    channels = heads * dim
    padded = any(side % cell for side, cell in zip(image, window, strict=True))
    rows = (2 * window[0] - 1) * (2 * window[1] - 1)

    def inputs(generator):
        tensors = dict(qkv=normal(generator, batch, *image, 3 * channels), table=normal(generator, rows, heads))
        if padded:
            tensors["padding"] = normal(generator, 3 * channels)
        if cosine:
            tensors["logit_scale"] = 2.0 + normal(generator, heads, std=0.2)
        return tensors

    names = ["qkv", "table"] + ["padding"] * padded + ["logit_scale"] * cosine
    return Case(
        "window_attention", name, inputs, tuple(names), dict(num_heads=heads, window=window, shift=shift, **options)
    )


def layernorm_case(name: str, rows: int, channels: int, *, residual: bool = False, offset: float = 0.0) -> Case:
    def inputs(generator):
        tensors = dict(
            x=offset + normal(generator, rows, channels),
            weight=1 + normal(generator, channels, std=0.2),
            bias=normal(generator, channels),
        )
        return tensors | (dict(residual=normal(generator, rows, channels)) if residual else {})

    if residual:
        names, outputs = ("x", "weight", "bias", "residual"), ("out", "sum")
    else:
        names, outputs = ("x", "weight", "bias"), ("out",)
    return Case("layernorm", name, inputs, names, dict(eps=1e-6), outputs=outputs, differentiable=len(outputs))


def mlp_case(
    name: str, batch: int, tokens: int, channels: int, hidden: int, *, scales: bool = False, **options
) -> Case:
    """``scales``: LayerScale and a DropPath factor that drops one sample."""

    def inputs(generator):
        tensors = dict(
            x=normal(generator, batch, tokens, channels),
            norm_weight=1 + normal(generator, channels, std=0.2),
            norm_bias=normal(generator, channels, std=0.2),
            fc1_weight=normal(generator, hidden, channels, std=channels**-0.5),
            fc1_bias=normal(generator, hidden, std=0.2),
            fc2_weight=normal(generator, channels, hidden, std=hidden**-0.5),
            fc2_bias=normal(generator, channels, std=0.2),
        )
        if scales:
            tensors["layer_scale"] = normal(generator, channels)
            tensors["row_scale"] = torch.tensor([1.25] * (batch - 1) + [0.0], dtype=torch.float64)
        return tensors

    names = ("x", "norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias") + (
        "layer_scale",
    ) * scales
    return Case("layernorm_mlp", name, inputs, names, dict(eps=1e-5) | options)


CASES = (
    attention_case("N=1", (2, 2, 1, 16)),
    attention_case("N=49 D=32", (1, 2, 49, 32)),
    packed_case("N=50 D=24 packed", 1, 50, 2, 24),
    attention_case("N=197 D=64", (1, 1, 197, 64)),
    attention_case("N=67 D=32 learned bias over the batch", (2, 1, 67, 32), bias=(1, 1, 67, 67)),
    attention_case(
        "N=49 bias per sample, mask, an empty row",
        (2, 1, 49, 16),
        bias=(2, 1, 49, 49),
        extra=_random_mask(1, 1, 49, 49, empty_row=True),
    ),
    attention_case("N=33 M=65 causal", (1, 2, 33, 32), keys=65, causal=True),
    attention_case("N=40 M=56 key padding", (2, 1, 40, 32), keys=56, extra=_padding(2, 56)),
    attention_case("N=50 D=20 additive mask", (1, 2, 50, 20), extra=lambda g: dict(mask=normal(g, 50, 50))),
    attention_case("N=33 four heads on two", (1, 4, 33, 32), kv_heads=2),
    attention_case(
        "N=20 M=270 streaming, log-sum-exp", (1, 1, 20, 32), keys=270, outputs=("out", "lse"), return_lse=True
    ),
    attention_case("N=70 D=128 scale 0.2", (1, 1, 70, 128), scale=0.2),
    window_case("7x14 window 7", (7, 14), (7, 7)),
    window_case("14x14 window 7 shift 3", (14, 14), (7, 7), shift=(3, 3)),
    window_case("10x9 window 7 shift 3, rolled then padded", (10, 9), (7, 7), shift=(3, 3), wrap="image"),
    window_case("10x9 window 7 shift 3, padded then rolled", (10, 9), (7, 7), shift=(3, 3), wrap="padded"),
    window_case("12x8 window 6x4 shift 3x0, regions forbidden", (12, 8), (6, 4), shift=(3, 0), mask_value=None),
    window_case("8x16 window 8 shift 4, cosine", (8, 16), (8, 8), shift=(0, 4), cosine=True),
    layernorm_case("33 rows of 96", 33, 96),
    layernorm_case("5 rows of 100, mean 3", 5, 100, offset=3.0),
    layernorm_case("17 rows of 768, residual", 17, 768, residual=True),
    layernorm_case("3 rows of 1280", 3, 1280),
    mlp_case("C=96 exact GELU", 2, 25, 96, 384),
    mlp_case("C=96 post-norm", 2, 25, 96, 384, post_norm=True),
    mlp_case("C=128 tanh GELU, LayerScale, DropPath", 2, 20, 128, 256, scales=True, act="gelu_tanh"),
    mlp_case("C=40 quick GELU", 1, 17, 40, 88, act="quick_gelu"),
    mlp_case("C=320 exact GELU", 1, 19, 320, 640),
    mlp_case("C=320 post-norm, LayerScale, DropPath", 2, 9, 320, 640, scales=True, post_norm=True),
)
