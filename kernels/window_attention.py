"""Shifted-window attention where the windows live in the image: the kernels find each token where the qkv product left
it, and nothing is rolled, padded or partitioned.

    out = softmax(scale q k^T + table[offset] + region mask) v   per head and window (Swin, arXiv 2103.14030, 3.2)
    cosine: scores head_scale * q/|q| . k/|k| + table[offset]    (Swin V2, arXiv 2111.09883, equation 2)

Legend: B images of img_h x img_w tokens, C channels, H heads, D = C / H, N = window_h * window_w tokens, G windows.
"""

import torch
import triton.language as tl

from . import scores, tokens
from .configs import short_takes, short_tile
from .relative_table import expand_table, reduce_table
from .short_attention import LOG2_OF_E, Bias, Geometry, View, run_forward
from .short_attention_backward import run_backward
from .stream import Rows, Stream, stream_forward, unit_last
from .stream_backward import stream_backward
from .stream_bias import stream_bias_gradient


def _is_short(qkv, num_heads, window):
    """Whether a window is one tile of `short_attention`; a larger one streams."""
    size = window[0] * window[1]
    return short_takes(size, size, qkv.shape[3] // (3 * num_heads), qkv.element_size(), True)


def _counts(qkv, window):
    """Windows along an image's height and width."""
    return -(-qkv.shape[1] // window[0]), -(-qkv.shape[2] // window[1])


def _geometry(qkv, num_heads, window, shift, wrap, scale, mask_value):
    batch, img_h, img_w, packed = qkv.shape
    rows, cols = _counts(qkv, window)
    (window_h, window_w), (shift_h, shift_w) = ([tl.constexpr(n) for n in pair] for pair in (window, shift))
    size = window[0] * window[1]
    exact = tl.constexpr(rows * window[0] == img_h and cols * window[1] == img_w)
    args = (img_h, img_w, wrap[0], wrap[1], rows, cols, window_h, window_w, shift_h, shift_w, exact)
    score, score_args = scores.plain, ()
    if any(shift) and mask_value != 0.0:
        score = scores.regions
        score_args = (rows, cols, mask_value * LOG2_OF_E, window_h, window_w, shift_h, shift_w)
    head_dim = packed // 3 // num_heads
    return Geometry(
        batch * rows * cols,
        num_heads,
        size,
        size,
        head_dim,
        scale,
        tokens.window,
        tokens.window,
        args,
        args,
        score,
        score_args,
    )


def _stream(geometry, table, padding, head_scale, window):
    """`Stream` of the same problem: the table joins the score hook."""
    g = geometry
    score, score_args = g.score, g.score_args
    if table is not None:
        padded = -(-g.queries // 128) * 128
        tile = (expand_table(table, window, padded, padded), tl.constexpr(padded), tl.constexpr(padded))
        score, score_args = (
            (scores.tile_and_regions, (tile, score_args)) if score is scores.regions else (scores.tile, tile)
        )
    return Stream(
        g.groups, g.heads, g.heads, g.queries, g.keys, g.head_dim, g.scale, g.q_tokens, g.k_tokens, g.q_args, g.k_args,
        score, score_args, padding=padding, cosine=head_scale,
    )  # fmt: skip


def _rows(packed, head_dim, parts):
    return [Rows(*view) for view in _views(packed, head_dim, parts)]


def _views(packed, head_dim, parts):
    """`View` of each of ``parts`` consecutive slices of the channels of (B, img_h, img_w, parts * C)."""
    return [View(part, head_dim, part.stride()[:3]) for part in packed.chunk(parts, -1)]


def _bias(table, geometry, window):
    if table is None:
        return None
    rows, columns = short_tile(geometry.queries, geometry.keys)
    return Bias(
        expand_table(table, window, rows, columns),
        (0, rows * columns, columns, 1),
        "held" if columns <= 64 else "baked",
    )


def _padding(qkv, padding, num_heads, window):
    """(3, H, D) in the dtype of ``qkv`` where some window sticks out of the image, else None."""
    if qkv.shape[1] % window[0] == 0 and qkv.shape[2] % window[1] == 0:
        return None
    return padding.to(qkv.dtype).contiguous().view(3, num_heads, -1)


def window_attention_outputs(qkv, table, padding, head_scale, num_heads, window, shift, wrap, scale, mask_value):
    """(out (B, img_h, img_w, C), lse): the log-sum-exp is empty where the backward needs none."""
    batch, img_h, img_w, packed = qkv.shape
    out = qkv.new_empty((batch, img_h, img_w, packed // 3))
    if _is_short(qkv, num_heads, window):
        return out, qkv.new_empty(0, dtype=torch.float32)
    rows, cols = _counts(qkv, window)
    return out, qkv.new_empty((batch * rows * cols, num_heads, window[0] * window[1]), dtype=torch.float32)


def window_attention_forward(qkv, table, padding, head_scale, num_heads, window, shift, wrap, scale, mask_value):
    """Attention within each window.

    Args:
        qkv: (B, img_h, img_w, 3 C), natural token order.
        table: ((2 window_h - 1)(2 window_w - 1), H) of any float dtype, or None.
        padding: (3 C,), what a token outside the image holds; needed where the window does not divide the image.
        head_scale: (H,) float32 makes it cosine attention with these factors; ``scale`` is ignored then.
        window, shift, wrap: pairs of ints; the roll by ``shift`` is modulo ``wrap``: the image size, or the padded
        size. mask_value: added between tokens of different regions; may be -inf.
    """
    out, lse = window_attention_outputs(
        qkv, table, padding, head_scale, num_heads, window, shift, wrap, scale, mask_value
    )
    qkv = unit_last(qkv)
    geometry = _geometry(qkv, num_heads, window, shift, wrap, scale, mask_value)
    padding = _padding(qkv, padding, num_heads, window)
    if _is_short(qkv, num_heads, window):
        views = *_views(qkv, geometry.head_dim, 3), *_views(out, geometry.head_dim, 1)
        run_forward(geometry, *views, bias=_bias(table, geometry, window), padding=padding, head_scale=head_scale)
    else:
        rows = *_rows(qkv, geometry.head_dim, 3), *_rows(out, geometry.head_dim, 1)
        stream_forward(_stream(geometry, table, padding, head_scale, window), *rows, lse)
    return out, lse


def window_attention_gradients(
    grad, out, lse, qkv, table, padding, head_scale, num_heads, window, shift, wrap, scale, mask_value, needs
):  # fmt: skip
    """(dqkv, dtable, dpadding, dhead_scale), each like its input; empty where there is no such input or ``needs`` is
    false."""
    inputs = (qkv, table, padding, head_scale)
    return tuple(
        x.new_empty(x.shape) if x is not None and needed else qkv.new_empty(0)
        for x, needed in zip(inputs, needs, strict=True)
    )


def window_attention_backward(
    grad, out, lse, qkv, table, padding, head_scale, num_heads, window, shift, wrap, scale, mask_value, needs
):  # fmt: skip
    """Gradients of `window_attention_forward`; deterministic."""
    dqkv = qkv.new_empty(qkv.shape)
    qkv, grad = unit_last(qkv), unit_last(grad)
    geometry = _geometry(qkv, num_heads, window, shift, wrap, scale, mask_value)
    vector = _padding(qkv, padding, num_heads, window)
    wants_table = table is not None and needs[1]
    inputs, gradients = _views(qkv, geometry.head_dim, 3), _views(dqkv, geometry.head_dim, 3)
    (grad_view,), (out_view,) = _views(grad, geometry.head_dim, 1), _views(out, geometry.head_dim, 1)
    if _is_short(qkv, num_heads, window):
        dbias, dpadding, dhead_scale = run_backward(
            geometry, grad_view, *inputs, *gradients,
            bias=_bias(table, geometry, window), bias_grad=wants_table, padding=vector, head_scale=head_scale,
        )  # fmt: skip
    else:
        problem, delta, dbias = _stream(geometry, table, vector, head_scale, window), torch.empty_like(lse), None
        q, k, v, *gradients = (Rows(*view) for view in (*inputs, *gradients))
        out_rows, grad_rows = Rows(*out_view), Rows(*grad_view)
        dpadding, dhead_scale = stream_backward(problem, q, k, v, out_rows, grad_rows, lse, delta, *gradients)
        if wants_table:
            dbias = stream_bias_gradient(problem, q, k, v, grad_rows, lse, delta, per_group=False, per_head=True)[0]
    if padding is not None:
        # Through the normalisation of a zero vector a gradient grows by 1e12: finite in float32, and kept finite in
        # float16.
        largest = torch.finfo(padding.dtype).max
        dpadding = torch.zeros_like(padding) if dpadding is None else dpadding.clamp(-largest, largest)
    dtable = None if dbias is None else reduce_table(dbias, window)
    results = (dqkv, dtable, dpadding, dhead_scale)
    tensors = (qkv, table, padding, head_scale)
    return tuple(
        result.reshape(x.shape).to(x.dtype) if x is not None and needed else qkv.new_empty(0)
        for result, x, needed in zip(results, tensors, needs, strict=True)
    )
