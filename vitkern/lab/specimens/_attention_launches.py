"""What of dense attention is compiled ahead of time, and what is known to be imperfect in it."""

import torch

from vitkern.lab.compiling import layer as layers
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, compiled, with_many
from vitkern.lab.compiling.matrix import ARCHITECTURES
from vitkern.lab.specimens._attention_layers import FEW, LAYERS, Attention

_SMALL, _BASE = Attention("ViT-S/16 384", 6, 577, 64), Attention("ViT-B/16 384", 12, 577, 64)
_HUGE, _WIDE = Attention("ViT-H/14 224", 16, 257, 80), Attention("wide heads", 8, 577, 128)
_BIASED, _SHORT = Attention("BEiT-B/16 384", 12, 577, 64, bias=True), Attention("ViT-S/16 224", 6, 197, 64)
_WINDOW, _SHARED = Attention("a window of Swin-T", 3, 49, 32), Attention("ViT-B/32 224", 12, 50, 64, bias=True)
_WINDOW_BIASED = Attention("a window of Swin-T", 3, 49, 32, bias=True)
_FP16, _FP32, _DROPS = dict(dtype=torch.float16), dict(dtype=torch.float32), dict(dropout_p=0.1)


def _hopper(name: str, layer: Attention, **options) -> Launch:
    return Launch(f"attention-hopper-{name}", layer, dict(trained=False, descriptors=True, **options), alone=90)


_ONCE = (
    *compiled(LAYERS),
    Launch("attention-fp16", _SMALL, _FP16),
    Launch("attention-fp32", _SMALL, _FP32),
    Launch("attention-tf32", _SMALL, tf32=True),
    Launch("attention-causal", _BASE, dict(causal=True), everywhere=True),
    Launch("attention-causal-d80", _HUGE, dict(causal=True)),
    Launch("attention-dropout", _SMALL, _DROPS, everywhere=True),
    Launch("attention-cap-sinks", _SMALL, dict(softcap=50.0, sinks=True), everywhere=True),
    Launch("attention-wide-values", Attention("values twice as wide", 8, 577, 32, 577), dict(width=64)),
    Launch("attention-dropout-d128", _WIDE, _DROPS, everywhere=True),
    Launch("attention-dropout-causal", Attention("narrow heads", 8, 577, 32), _DROPS | dict(causal=True)),
    Launch("attention-cross-masks", Attention("100 queries", 8, 100, 32, 1024, masked=True), dict(boolean=True)),
    Launch("attention-masks-197", Attention("ViT", 8, 197, 64, 197, masked=True), dict(boolean=True)),
    Launch("attention-grouped-heads", Attention("grouped heads", 8, 577, 64, 577), dict(key_heads=2)),
    *(
        Launch(f"attention-fp32-d{d}-bias", Attention("biased", 4, 300, d, bias=True), _FP32, everywhere=d != 80)
        for d in (64, 80, 128, 256)
    ),
    Launch("attention-split", Attention("one long image", 1, 2048, 64), dict(batch=1), everywhere=True),
    Launch("attention-batch-1", _SMALL, dict(batch=1)),
    Launch("attention-batch-1-bias", _BIASED, dict(batch=1)),
    Launch("attention-odd-strides", _SMALL, dict(spare=3)),
    _hopper("d64", _SMALL),
    _hopper("d64-even", Attention("whole blocks", 6, 1024, 64), **_FP16),
    _hopper("d128", _WIDE),
    _hopper("bias", _BIASED),
    _hopper("d128-bias", Attention("wide heads", 8, 577, 128, bias=True), bias_dtype=torch.float32),
    Launch("short-bias-per-sample", _SHARED, dict(biases=layers.BATCH)),
    Launch("short-masks", Attention("padded", 8, 50, 64, 50, masked=True), dict(boolean=True)),
    Launch("short-fp32", _SHORT, _FP32),
    Launch("short-fp32-49", _WINDOW, _FP32, everywhere=True),
    *(
        Launch(f"short-fp32-{n}-by-{m}", Attention("few tokens", 8, n, 32, m), _FP32, everywhere=True)
        for n, m in FEW[:3]
    ),
    Launch("short-fp16", _SHORT, _FP16),
    Launch("short-batch-1", _SHORT, dict(batch=1)),
    Launch("short-batch-1-bias", _WINDOW_BIASED, dict(batch=1)),
    Launch("short-odd-strides", _SHORT, dict(spare=3)),
    # windows of 64 images, and the batch of contrastive training
    Launch("short-d32-window-49-batch-4096", _WINDOW, dict(batch=4096), everywhere=True),
    Launch("short-bias-49-batch-4096", _WINDOW_BIASED, dict(batch=4096), everywhere=True),
    Launch("short-d64-tokens-50-batch-1024", Attention("ViT-B/32 224", 12, 50, 64), dict(batch=1024), everywhere=True),
    Launch("short-d64-bias-50-batch-1024", _SHARED, dict(batch=1024), everywhere=True),
)
# with more groups, keys and queries are not split
LAUNCHES = with_many(_ONCE, "attention-pvt-1", "attention-d256", "attention-grouped-heads")

_STREAM, _TILE = ("_stream_fwd", "_stream_bwd_dq", "_stream_bwd_dkdv"), ("_short_fwd", "_short_bwd")
_NARROW = Excuse(
    "widest global load is 64 bits", "rows of 20, 36 and 60 half-precision elements start at multiples of 8 bytes only"
)
_UNROLLED = Excuse(
    "spills: ", "full float32 has no tensor cores: products over 256 dimensions are unrolled, at the smallest tile"
)
_FOUR_OPERANDS = Excuse(
    "spills: ", "at most 8 bytes, outside the products: four operands of 256 dimensions and a tile of the sum"
)
_ODD_ROWS = Excuse(
    "widest global load is 16 bits", "rows at odd strides start at any element, so that is the widest load"
)
_BY_ELEMENT = Excuse("spills: ", "rows at odd strides are loaded by the element, and each address takes registers")
EXCEPTIONS = {
    **{(f"attention-d{d}-odd", one, arch): _NARROW for d in (20, 36) for one in _STREAM for arch in ARCHITECTURES},
    **{(f"short-d{d}-odd", one, 80): _NARROW for d in (20, 36) for one in _TILE},
    **{("short-d60-mobilevit", one, arch): _NARROW for one in _TILE for arch in ARCHITECTURES},
    ("short-d48-mobilevit", "_short_fwd", 100): Excuse(
        "spills: ", "24 bytes beside the 128 registers that let four programs share a multiprocessor"
    ),
    **{(f"short-d{d}-odd", one, 90): _NARROW._replace(tritons=("3.6",)) for d in (20, 36) for one in _TILE},
    **{("attention-fp32-d256-bias", one, arch): _UNROLLED for one in _STREAM[1:] for arch in ARCHITECTURES},
    ("attention-fp32-d256-bias", "_stream_bwd_bias", 90): _UNROLLED._replace(tritons=("3.6",)),
    ("attention-dropout", "_stream_bwd_dq", 90): Excuse(
        "spills: ",
        "48 bytes: what is kept of the probabilities is a tile beside them and their slopes",
        tritons=("3.6",),
    ),
    **{("attention-d256-bias", "_stream_bwd_bias", arch): _FOUR_OPERANDS for arch in (80, 120)},
    ("attention-odd-strides", "_stream_fwd", 942): _ODD_ROWS,
    ("attention-odd-strides", "_stream_fwd", 90): _ODD_ROWS._replace(tritons=("3.6",)),
    ("short-odd-strides", "_stream_fwd", 120): _ODD_ROWS,
    ("short-odd-strides", "_stream_bwd_dq", 120): _BY_ELEMENT,
    ("short-odd-strides", "_short_fwd", 90): Excuse(
        ("spills: ", "widest global load is 16 bits"),
        "rows at odd strides are loaded by the element, and each address takes registers beside 256 columns",
        tritons=("3.6",),
    ),
}
