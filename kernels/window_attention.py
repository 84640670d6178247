"""Shifted-window attention where the windows live in the image: the kernels find each token where the qkv product left
it, and nothing is rolled, padded or partitioned.

    out = softmax(scale q k^T + table[offset] + region mask) v   per head and window (Swin, arXiv 2103.14030, 3.2)
    cosine: scores head_scale * q/|q| . k/|k| + table[offset]    (Swin V2, arXiv 2111.09883, equation 2)

Legend: B images of img_h x img_w tokens, C channels, H heads, D = C / H, N = window_h * window_w tokens, G windows.
"""

import torch
import triton.language as tl

from .loop import scores, tokens
from .loop.problem import PLAIN_ROWS, UNIT_ROWS, Problem, image_rows, per_token, unit_last
from .loop.stream import stream_forward
from .loop.stream_backward import stream_dkdv, stream_dq
from .loop.stream_bias import stream_bias_gradient
from .tile.blocks import short_tile
from .tile.relative_table import expand_table, reduce_table
from .tile.short_attention import LOG2_OF_E, held_bias, run_forward, short_takes
from .tile.short_attention_backward import run_backward


def _is_short(qkv, num_heads, window):
    """Whether a window is one tile of `short_attention`; a larger one streams."""
    size = window[0] * window[1]
    return short_takes(size, size, qkv.shape[3] // (3 * num_heads), qkv.element_size(), True)


def _counts(qkv, window):
    """Windows along an image's height and width."""
    return -(-qkv.shape[1] // window[0]), -(-qkv.shape[2] // window[1])


def _problem(qkv, padding, head_scale, num_heads, window, shift, wrap, scale, mask_value):
    batch, img_h, img_w, packed = qkv.shape
    rows, cols = counts = _counts(qkv, window)
    size, head_dim = window[0] * window[1], packed // 3 // num_heads
    exact = rows * window[0] == img_h and cols * window[1] == img_w
    args = tokens.window_args((img_h, img_w), wrap, counts, window, shift, exact)
    score, score_args = scores.plain, ()
    if any(shift) and mask_value != 0.0:
        score = scores.regions
        score_args = (args[0][4:], mask_value * LOG2_OF_E, *args[1:5])
    return Problem(
        batch * rows * cols, num_heads, num_heads, size, size, head_dim, scale,
        tokens.window, tokens.window, args, args, score, score_args,
        padding=_padding(qkv, padding, num_heads, window), head_scale=head_scale,
        norm=PLAIN_ROWS if head_scale is None else UNIT_ROWS,
    )  # fmt: skip


def _with_table(problem, table, window):
    """The problem for the streaming kernels, whose score hook adds the table too."""
    if table is None:
        return problem
    padded = -(-problem.n // 128) * 128
    tile = (expand_table(table, window, padded, padded), tl.constexpr(padded), tl.constexpr(padded))
    if problem.score is scores.regions:
        return problem._replace(score=scores.tile_and_regions, score_args=(tile, problem.score_args))
    return problem._replace(score=scores.tile, score_args=tile)


def _bias(table, problem, window):
    """The table for the short kernels."""
    return None if table is None else held_bias(expand_table(table, window, *short_tile(problem.n, problem.m)))


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
    return out, qkv.new_empty((batch, num_heads, img_h, img_w), dtype=torch.float32)


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
    problem = _problem(qkv, padding, head_scale, num_heads, window, shift, wrap, scale, mask_value)
    rows = *image_rows(qkv, problem.head_dim, 3), *image_rows(out, problem.head_dim, 1)
    if _is_short(qkv, num_heads, window):
        run_forward(problem, *rows, bias=_bias(table, problem, window))
    else:
        stream_forward(_with_table(problem, table, window), *rows, per_token(lse))
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
    problem = _problem(qkv, padding, head_scale, num_heads, window, shift, wrap, scale, mask_value)
    wants_table = table is not None and needs[1]
    (q, k, v), gradients = image_rows(qkv, problem.head_dim, 3), image_rows(dqkv, problem.head_dim, 3)
    (grad_rows,), (out_rows,) = image_rows(grad, problem.head_dim, 1), image_rows(out, problem.head_dim, 1)
    if _is_short(qkv, num_heads, window):
        bias = _bias(table, problem, window)
        dbias, dpadding, dhead_scale = run_backward(
            problem, grad_rows, q, k, v, *gradients, bias=bias, bias_grad=wants_table
        )
    else:
        problem, delta, dbias = _with_table(problem, table, window), torch.empty_like(lse), None
        lse, (dq, dk, dv) = per_token(lse), gradients
        dhead_scale = stream_dq(problem, q, k, v, out_rows, grad_rows, lse, delta, dq)
        dpadding = stream_dkdv(problem, q, k, v, grad_rows, lse, delta, dk, dv)
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
