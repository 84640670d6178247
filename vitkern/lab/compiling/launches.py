"""The launches that are compiled ahead of time: shapes, dtypes and strides of real models, forward and backward.

The batch is 2 unless a name says otherwise: an integer argument of 1 becomes a constant and compiles another kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vitkern.ops.attention import attention, attention_qkvpacked
from vitkern.ops.layernorm import layernorm
from vitkern.ops.layernorm_mlp import layernorm_mlp
from vitkern.ops.local_attention import local_attention
from vitkern.ops.sparse_attention import sparse_attention
from vitkern.ops.window_attention import window_attention

BATCH = 2
HALF = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """``run()`` calls a public op, and its backward, on CPU tensors with a model's strides; nothing is computed."""

    name: str
    run: Callable[[], object]


def _leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=True)


def _backward(out) -> None:
    out = out[0] if isinstance(out, tuple) else out
    out.backward(torch.empty_like(out))


def _packed(tokens: int, heads: int, head_dim: int, dtype=HALF, bias=None, batch=BATCH, spare=0, **options) -> None:
    """Self-attention on the output of a qkv projection, as a ViT has it. bias: its shape; spare: unused elements at the
    end of each row."""
    if bias is not None:
        options["bias"] = _leaf(*bias, dtype=dtype)
    width = 3 * heads * head_dim
    rows = _leaf(batch, tokens, width + spare, dtype=dtype)[..., :width]
    _backward(attention_qkvpacked(rows.unflatten(-1, (3, heads, head_dim)), **options))


def _described(tokens: int, heads: int, head_dim: int, dtype=HALF, bias=None) -> None:
    """As `_packed`, the forward alone, through tensor descriptors. bias: dtype of one of (1, H, N, N)."""
    from vitkern.kernels.loop.stream_hopper import descriptors

    added = None if bias is None else torch.empty(1, heads, tokens, tokens, dtype=bias)
    with torch.no_grad(), descriptors(True):
        attention_qkvpacked(torch.empty(BATCH, tokens, 3, heads, head_dim, dtype=dtype), bias=added)


def _separate(queries: int, keys: int, heads: int, key_heads: int, head_dim: int, dtype=HALF, **options) -> None:
    """Cross-attention: projections (B, N, H, D), transposed. Options may name masks: key_padding, boolean."""
    q = _leaf(BATCH, queries, heads, head_dim, dtype=dtype)
    k, v = (_leaf(BATCH, keys, key_heads, head_dim, dtype=dtype) for _ in range(2))
    if options.pop("key_padding", False):
        options["key_padding_mask"] = torch.ones(BATCH, keys, dtype=torch.bool)
    if options.pop("boolean", False):
        options["mask"] = torch.ones(BATCH, 1, queries, keys, dtype=torch.bool)
    _backward(attention(*(x.transpose(1, 2) for x in (q, k, v)), **options))


def _windows(
    side: int, window: int, channels: int, heads: int, dtype=HALF, cosine=False, shift=0, padded=False, batch=BATCH,
    spare=0,
) -> None:  # fmt: skip
    """A block of Swin, or of Swin V2 (cosine), on an image of side x side tokens; torchvision pads before it rolls."""
    padding = _leaf(3 * channels, dtype=dtype) if side % window else None
    options = {"logit_scale": _leaf(heads, 1, 1, dtype=torch.float32)} if cosine else {}
    out = window_attention(
        _leaf(batch, side, side, 3 * channels + spare, dtype=dtype)[..., : 3 * channels],
        num_heads=heads,
        window=(window, window),
        shift=(shift, shift),
        table=_leaf((2 * window - 1) ** 2, heads, dtype=torch.float32),
        padding=padding,
        wrap="padded" if padded else "image",
        **options,
    )
    _backward(out)


def _near(
    side: int, channels: int, heads: int, block: int, halo: int, border: str, dtype=HALF, dilation=1, table=False,
    rel=False, padded=False, lse=False, neighbor=None, batch=BATCH, spare=0,
) -> None:  # fmt: skip
    """Local attention on an image of side x side tokens."""
    extent = block + 2 * halo
    reach = extent - 1 if border == "clamp" else block + halo - 1
    options = {}
    if table:
        options["table"] = _leaf(heads, 2 * reach + 1, 2 * reach + 1, dtype=torch.float32)
    if rel:
        options |= {name: _leaf(batch, side, side, heads, extent, dtype=dtype) for name in ("rel_h", "rel_w")}
    if padded:
        options["padding"] = _leaf(3 * channels, dtype=dtype)
    out = local_attention(
        _leaf(batch, side, side, 3 * channels + spare, dtype=dtype)[..., : 3 * channels], num_heads=heads,
        block=(block, block), halo=(halo, halo), border=border, dilation=(dilation, dilation), neighbor=neighbor,
        return_lse=lse, **options,
    )  # fmt: skip
    if lse:
        torch.autograd.backward(out, [torch.empty_like(x) for x in out])
    else:
        _backward(out)


def _sampled(
    queries: int, keys: int, heads: int, head_dim: int, dtype=HALF, sampled=0, gated=False, batch=BATCH
) -> None:
    """A layer of STRec: few queries, or all of them with gates, against the keys of a sequence that may be short."""
    q, k, v = (_leaf(batch, n, heads, head_dim, dtype=dtype).transpose(1, 2) for n in (queries, keys, keys))
    options = dict(key_padding_mask=torch.ones(batch, keys, dtype=torch.bool))
    if sampled:
        options["index"] = torch.arange(sampled).expand(batch, -1)
    if gated:
        options |= dict(query_gate=_leaf(batch, queries, dtype=torch.float32))
        options |= dict(key_gate=_leaf(batch, keys, dtype=torch.float32))
    _backward(sparse_attention(q, k, v, **options))


def _layernorm(tokens: int, channels: int, dtype=HALF, residual=False, batch=BATCH, spare=0) -> None:
    x = _leaf(batch, tokens, channels + spare, dtype=dtype)[..., :channels]
    weight, bias = (_leaf(channels, dtype=dtype) for _ in range(2))
    _backward(layernorm(x, weight, bias, 1e-6, _leaf(batch, tokens, channels, dtype=dtype) if residual else None))


def _mlp(tokens: int, channels: int, dtype=HALF, scaled=False, trained=True, batch=BATCH, **options) -> None:
    """An MLP branch; without its backward (not ``trained``) narrow ones are a single kernel."""
    hidden = 4 * channels
    if scaled:
        options = {"layer_scale": _leaf(channels, dtype=dtype), "row_scale": torch.ones(batch)} | options
    vectors = [_leaf(size, dtype=dtype) for size in (channels, channels, hidden, channels)]
    weights = _leaf(hidden, channels, dtype=dtype), _leaf(channels, hidden, dtype=dtype)
    x = _leaf(batch, tokens, channels, dtype=dtype)
    with torch.set_grad_enabled(trained):
        out = layernorm_mlp(x, *vectors[:2], weights[0], vectors[2], weights[1], vectors[3], eps=1e-6, **options)
    if trained:
        _backward(out)


def _tf32(function: Callable, *arguments, **options) -> None:
    """As ``function``, in float32 with TF32 products allowed."""
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    try:
        function(*arguments, dtype=torch.float32, **options)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


CASES = [
    Case(name, partial(function, *arguments, **options))
    for name, function, arguments, options in (
        # streaming attention
        ("attention-d32", _packed, (577, 12, 32), {}),
        ("attention-d40", _packed, (577, 8, 40), {}),
        ("attention-d64-vit-s-384", _packed, (577, 6, 64), {}),
        ("attention-d80-vit-h-14", _packed, (257, 16, 80), {}),
        ("attention-d96", _packed, (577, 8, 96), {}),
        *((f"attention-d{d}-odd", _packed, (577, 8, d), {}) for d in (20, 24, 36, 72, 104, 112)),
        ("attention-d128", _packed, (1024, 8, 128), {}),
        ("attention-d256", _packed, (1024, 4, 256), {}),
        ("attention-fp16", _packed, (577, 6, 64, torch.float16), {}),
        ("attention-fp32", _packed, (577, 6, 64, torch.float32), {}),
        ("attention-bias", _packed, (577, 12, 64), {"bias": (1, 12, 577, 577)}),
        ("attention-causal", _packed, (577, 12, 64), {"causal": True}),
        ("attention-dropout", _packed, (577, 6, 64), {"dropout_p": 0.1}),
        ("attention-dropout-d128", _packed, (577, 8, 128), {"dropout_p": 0.1}),
        ("attention-dropout-causal", _packed, (577, 8, 32), {"dropout_p": 0.1, "causal": True}),
        ("attention-causal-d80", _packed, (257, 16, 80), {"causal": True}),
        ("attention-cross-masks", _separate, (100, 1024, 8, 8, 32), {"key_padding": True, "boolean": True}),
        ("attention-grouped-heads", _separate, (577, 577, 8, 2, 64), {}),
        *((f"attention-d{d}-bias", _packed, (577, 4, d), {"bias": (1, 4, 577, 577)}) for d in (16, 80, 128, 256)),
        *(
            (f"attention-fp32-d{d}-bias", _packed, (300, 4, d, torch.float32), {"bias": (1, 4, 300, 300)})
            for d in (64, 80, 128, 256)
        ),
        ("attention-tf32", _tf32, (_packed, 577, 6, 64), {}),
        ("attention-d16", _packed, (577, 8, 16), {}),
        ("attention-batch-1", _packed, (577, 6, 64), {"batch": 1}),
        ("attention-batch-1-bias", _packed, (577, 12, 64), {"batch": 1, "bias": (1, 12, 577, 577)}),
        ("attention-one-head", _packed, (577, 1, 64), {}),
        ("attention-one-query", _separate, (1, 577, 8, 8, 64), {}),
        ("attention-odd-strides", _packed, (577, 6, 64), {"spare": 3}),
        ("attention-hopper-d64", _described, (577, 6, 64), {}),
        ("attention-hopper-d64-even", _described, (1024, 6, 64, torch.float16), {}),
        ("attention-hopper-d128", _described, (577, 8, 128), {}),
        ("attention-hopper-bias", _described, (577, 12, 64), {"bias": HALF}),
        ("attention-hopper-d128-bias", _described, (577, 8, 128), {"bias": torch.float32}),
        # one tile per group
        ("short-vit-s-224", _packed, (197, 6, 64), {}),
        ("short-d32-window-49", _packed, (49, 3, 32), {}),
        ("short-d64-tokens-50", _packed, (50, 12, 64), {}),
        ("short-vit-b-32-384", _packed, (145, 12, 64), {}),
        ("short-d64-tokens-128", _packed, (128, 6, 64), {}),
        ("short-d64-tokens-256", _packed, (256, 6, 64), {}),
        ("short-bias-49", _packed, (49, 3, 32), {"bias": (1, 3, 49, 49)}),
        ("short-bias-per-sample", _packed, (50, 12, 64), {"bias": (2, 12, 50, 50)}),
        ("short-masks", _separate, (50, 50, 8, 8, 64), {"key_padding": True, "boolean": True}),
        ("short-cross", _separate, (33, 200, 8, 8, 64), {}),
        ("attention-d32-tokens-197", _packed, (197, 12, 32), {}),
        ("attention-masks-197", _separate, (197, 197, 8, 8, 64), {"key_padding": True, "boolean": True}),
        ("attention-bias-197", _packed, (197, 12, 64), {"bias": (1, 12, 197, 197)}),
        ("short-fp32", _packed, (197, 6, 64, torch.float32), {}),
        *((f"short-d{d}-odd", _packed, (49, 3, d), {}) for d in (20, 24, 36)),
        *(
            (f"short-{n}-by-{m}", _separate, (n, m, 8, 8, 64), {})
            for n, m in ((7, 7), (7, 50), (50, 7), (7, 100), (7, 200))
        ),
        *((f"short-d32-{n}-by-{m}", _separate, (n, m, 8, 8, 32), {}) for n, m in ((7, 50), (50, 7))),
        *(
            (f"short-fp32-{n}-by-{m}", _separate, (n, m, 8, 8, 32, torch.float32), {})
            for n, m in ((7, 7), (7, 50), (50, 7))
        ),
        ("short-fp32-49", _packed, (49, 3, 32, torch.float32), {}),
        ("short-fp16", _packed, (197, 6, 64, torch.float16), {}),
        ("short-batch-1", _packed, (197, 6, 64), {"batch": 1}),
        ("short-batch-1-bias", _packed, (49, 3, 32), {"batch": 1, "bias": (1, 3, 49, 49)}),
        ("short-odd-strides", _packed, (197, 6, 64), {"spare": 3}),
        # windows
        ("window-swin-t-1", _windows, (56, 7, 96, 3), {"shift": 3}),
        ("window-swin-t-1-unshifted", _windows, (56, 7, 96, 3), {}),
        ("window-swin-t-4", _windows, (7, 7, 768, 24), {}),
        ("window-swin-padded", _windows, (60, 7, 96, 3), {"shift": 3}),
        ("window-torchvision-padded", _windows, (60, 7, 96, 3), {"shift": 3, "padded": True}),
        ("window-swin-384", _windows, (96, 12, 128, 4), {"shift": 6}),
        ("window-swin-384-unshifted", _windows, (96, 12, 128, 4), {}),
        ("window-swin-384-padded", _windows, (100, 12, 128, 4), {"shift": 6}),
        ("window-d64", _windows, (56, 7, 192, 3), {"shift": 3}),
        ("window-swinv2-w8", _windows, (64, 8, 96, 3), {"cosine": True, "shift": 4}),
        ("window-swinv2-w8-padded", _windows, (60, 8, 96, 3), {"cosine": True, "shift": 4, "padded": True}),
        ("window-swinv2-w16", _windows, (64, 16, 96, 3), {"cosine": True, "shift": 8}),
        ("window-swinv2-w16-padded", _windows, (60, 16, 96, 3), {"cosine": True, "shift": 8, "padded": True}),
        ("window-swinv2-w8-unshifted", _windows, (64, 8, 96, 3), {"cosine": True}),
        ("window-swinv2-w12", _windows, (48, 12, 128, 4), {"cosine": True, "shift": 6}),
        ("window-swinv2-w16-unshifted", _windows, (64, 16, 96, 3), {"cosine": True}),
        ("window-fp32", _windows, (56, 7, 96, 3, torch.float32), {"shift": 3}),
        ("window-fp16", _windows, (56, 7, 96, 3, torch.float16), {"shift": 3}),
        ("window-batch-1", _windows, (56, 7, 96, 3), {"batch": 1, "shift": 3}),
        ("window-one-group", _windows, (7, 7, 768, 24), {"batch": 1}),
        ("window-odd-strides", _windows, (56, 7, 96, 3), {"spare": 3, "shift": 3}),
        ("window-swin-384-odd-strides", _windows, (96, 12, 128, 4), {"spare": 3, "shift": 6}),
        # local attention
        ("local-nat-1", _near, (56, 64, 2, 1, 3, "clamp"), {"table": True}),
        ("local-dinat-1", _near, (56, 64, 2, 1, 3, "clamp"), {"table": True, "dilation": 8}),
        ("local-nat-4", _near, (7, 512, 16, 1, 3, "clamp"), {"table": True}),
        ("local-nat-k13", _near, (56, 128, 4, 1, 6, "clamp"), {"table": True}),
        ("local-nat-without-table", _near, (56, 64, 2, 1, 3, "clamp"), {}),
        ("local-halonet-h1", _near, (64, 64, 8, 8, 3, "keep"), {"rel": True}),
        ("local-halonet-d32", _near, (32, 256, 8, 8, 3, "keep"), {"rel": True}),
        ("local-sasa", _near, (28, 128, 8, 1, 3, "keep"), {"rel": True}),
        ("local-vitdet-window", _near, (64, 768, 12, 14, 0, "keep"), {"rel": True, "padded": True}),
        ("local-sam-global", _near, (64, 768, 12, 64, 0, "keep"), {"rel": True}),
        ("local-vitdet-h", _near, (64, 1280, 16, 14, 0, "keep"), {"rel": True, "padded": True}),
        ("local-vil", _near, (28, 192, 3, 7, 7, "exclude"), {"table": True, "lse": True}),
        ("local-vil-exact", _near, (28, 192, 3, 1, 7, "exclude"), {"table": True, "lse": True}),
        ("local-vil-cyclic", _near, (28, 192, 3, 7, 7, "wrap"), {"table": True, "lse": True}),
        ("local-vil-neighbour", _near, (28, 192, 3, 7, 7, "exclude"), {"table": True, "lse": True, "neighbor": (1, 0)}),
        ("local-maxvit-grid", _near, (56, 64, 2, 7, 0, "keep"), {"table": True, "dilation": 8}),
        ("local-twins", _near, (56, 64, 2, 7, 0, "keep"), {}),
        ("local-davit-padded", _near, (60, 96, 3, 7, 0, "keep"), {"padded": True}),
        ("local-fp32", _near, (56, 64, 2, 1, 3, "clamp", torch.float32), {"table": True}),
        ("local-halonet-fp32", _near, (64, 64, 8, 8, 3, "keep", torch.float32), {"rel": True}),
        ("local-fp32-d80", _near, (28, 160, 2, 1, 1, "keep", torch.float32), {"rel": True}),
        ("local-fp16", _near, (56, 64, 2, 1, 3, "clamp", torch.float16), {"table": True}),
        ("local-batch-1", _near, (56, 64, 2, 1, 3, "clamp"), {"table": True, "batch": 1}),
        ("local-odd-strides", _near, (56, 64, 2, 1, 3, "clamp"), {"table": True, "spare": 3}),
        # sampled and gated queries
        ("sparse-50", _sampled, (50, 50, 4, 32), {"sampled": 20}),
        ("sparse-50-gated", _sampled, (50, 50, 4, 32), {"gated": True}),
        ("sparse-prefix", _sampled, (5, 20, 4, 32), {}),
        ("sparse-8", _sampled, (8, 8, 4, 32), {"gated": True}),
        ("sparse-128-d64", _sampled, (128, 128, 4, 64), {"gated": True}),
        ("sparse-200", _sampled, (200, 200, 4, 32), {"gated": True}),
        ("sparse-20-of-200", _sampled, (200, 200, 4, 32), {"sampled": 20}),
        *(
            (f"sparse-{n}-by-{m}", _sampled, (n, m, 4, 32), {"gated": True})
            for n, m in ((7, 7), (7, 50), (50, 7), (7, 100), (7, 200))
        ),
        *(
            (f"sparse-fp32-{n}-by-{m}", _sampled, (n, m, 4, 32, torch.float32), {"gated": True})
            for n, m in ((7, 7), (7, 50), (50, 7))
        ),
        ("sparse-fp32", _sampled, (50, 50, 4, 32, torch.float32), {"gated": True}),
        ("sparse-fp16", _sampled, (50, 50, 4, 32, torch.float16), {"gated": True}),
        ("sparse-batch-1", _sampled, (50, 50, 4, 32), {"gated": True, "batch": 1}),
        # pointwise and matrix products
        ("layernorm-96", _layernorm, (3136, 96), {}),
        ("layernorm-192", _layernorm, (197, 192), {}),
        ("layernorm-768", _layernorm, (197, 768), {"residual": True}),
        ("layernorm-1280", _layernorm, (257, 1280), {}),
        ("layernorm-32", _layernorm, (3136, 32), {}),
        ("layernorm-512-fp16", _layernorm, (196, 512, torch.float16), {}),
        ("layernorm-3072", _layernorm, (49, 3072), {}),
        ("layernorm-fp32", _layernorm, (197, 768, torch.float32), {}),
        ("layernorm-one-row", _layernorm, (1, 768), {"batch": 1}),
        ("layernorm-odd-strides", _layernorm, (197, 768), {"spare": 3}),
        ("mlp-96", _mlp, (3136, 96), {}),
        ("mlp-192-scaled", _mlp, (784, 192), {"scaled": True}),
        *((f"mlp-{channels}-inference", _mlp, (784, channels), {"trained": False}) for channels in (96, 192, 256)),
        *(
            (f"mlp-{channels}-post-norm-inference", _mlp, (784, channels), {"trained": False, "post_norm": True})
            for channels in (128, 192, 384)
        ),
        ("mlp-nat-b-inference", _mlp, (3136, 128), {"trained": False, "scaled": True, "row_scale": None}),
        ("mlp-384-inference", _mlp, (196, 384), {"trained": False}),
        ("mlp-256-fp16-tanh", _mlp, (784, 256, torch.float16), {"act": "gelu_tanh"}),
        ("mlp-256-quick-inference", _mlp, (784, 256), {"act": "quick_gelu", "trained": False}),
        ("mlp-384", _mlp, (197, 384), {}),
        ("mlp-768", _mlp, (197, 768), {}),
        ("mlp-1024-quick", _mlp, (257, 1024), {"act": "quick_gelu"}),
        ("mlp-swinv2-96", _mlp, (4096, 96), {"post_norm": True}),
        ("mlp-fp32", _mlp, (784, 192, torch.float32), {"act": "gelu_tanh"}),
        ("mlp-96-tf32", _tf32, (_mlp, 784, 96), {}),
        ("mlp-96-tf32-inference", _tf32, (_mlp, 784, 96), {"trained": False}),
        ("mlp-100", _mlp, (784, 100), {}),
        ("mlp-one-row", _mlp, (1, 192), {"batch": 1, "scaled": True}),
        ("mlp-swinv2-96-scaled", _mlp, (4096, 96), {"post_norm": True, "scaled": True}),
        ("mlp-1024-post-norm", _mlp, (256, 1024), {"post_norm": True}),
    )
]
