"""Attention with decomposed relative positions: MViTv2 (arXiv 2112.01526), ViTDet (arXiv 2203.16527), SAM (arXiv
2304.02643)."""

from collections.abc import Callable

import torch
from torch import Tensor

from vitkern.dispatch import autocast
from vitkern.ops.checks import check_same, check_scale, check_shape, check_tensor
from vitkern.ops.local_attention import local_attention
from vitkern.ops.local_attention.checks import check_locality
from vitkern.ops.projection import projected
from vitkern.ops.relative_logits import places, queries_of, relative_logits, resized
from vitkern.ops.window_attention.checks import int_pair


def decomposed_attention(
    qkv: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    *,
    num_heads: int,
    window: tuple[int, int] | None = None,
    padding: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale q k^T + q . Rh + q . Rw) v over the image or over windows; differentiable in every tensor.

    The score of a key i rows above and j columns left of its query gets q . rel_pos_h[i + size_h - 1] and
    q . rel_pos_w[j + size_w - 1], with q as it is, not scaled (MViTv2, arXiv 2112.01526, equations 4 and 5). No bias of
    all queries and keys is in memory. Windows that reach beyond the image are filled up with tokens that are seen.

    Args:
        qkv: (B, img_h, img_w, 3 * C) in natural token order, the channels split as (3, H, D); float16, bfloat16,
            float32, float64.
        rel_pos_h, rel_pos_w: (2 size_h - 1, D) and (2 size_w - 1, D), the dtype of ``qkv``, for a window or image of
            (size_h, size_w). Of another length they are interpolated linearly.
        num_heads: H, divides C.
        window: (height, width) in tokens; None: the image is one.
        padding: (3 * C,) what ``qkv`` is beyond the image, as a rule the bias of its projection; zeros by default.
        scale: factor of q k^T; D ** -0.5 by default.

    Returns:
        (B, img_h, img_w, C), contiguous, in the dtype of ``qkv`` (under autocast: the autocast dtype).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit; the message says which.
    """
    op = "decomposed_attention"
    check_tensor(op, "qkv", qkv, ndim=4)
    image = qkv.shape[1:3]
    size = (max(image[0], 1), max(image[1], 1)) if window is None else int_pair(op, "window", window)
    if min(size) <= 0:
        raise ValueError(f"{op}: window is not usable: got {window}; expected sizes above 0, or None for the image.")
    check_locality(op, qkv, num_heads, size, (0, 0), "keep", (1, 1))
    head_dim = qkv.shape[-1] // (3 * num_heads)
    for name, table in (("rel_pos_h", rel_pos_h), ("rel_pos_w", rel_pos_w)):
        check_tensor(op, name, table)
        check_shape(op, name, table, (None, head_dim), f"(2 size - 1, D) with D = {head_dim}")
        if table.shape[0] == 0:
            raise ValueError(f"{op}: {name} is empty: got {tuple(table.shape)}; expected (2 size - 1, D).")
    if padding is not None:
        check_tensor(op, "padding", padding)
        check_shape(op, "padding", padding, (qkv.shape[-1],), f"(3 C,) = ({qkv.shape[-1]},)")
    check_scale(op, scale)
    qkv, rel_pos_h, rel_pos_w, padding = autocast(qkv, rel_pos_h, rel_pos_w, padding)
    check_same(op, qkv=qkv, rel_pos_h=rel_pos_h, rel_pos_w=rel_pos_w, padding=padding)
    q, logits = queries_of(qkv, num_heads), []
    for axis, table, side in ((1, rel_pos_h, size[0]), (2, rel_pos_w, size[1])):
        entries = places(qkv.shape[axis], side, qkv.device) - torch.arange(side, device=qkv.device) + side - 1
        logits.append(relative_logits(q, resized(table, 2 * side - 1), axis, entries))
    return local_attention(
        qkv, num_heads=num_heads, block=size, rel_h=logits[0], rel_w=logits[1], padding=padding, scale=scale
    )


def projected_decomposed_attention(
    x: Tensor,
    project: Callable[[Tensor], Tensor],
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    *,
    num_heads: int,
    window: tuple[int, int] | None = None,
    scale: float | None = None,
) -> Tensor:
    """`decomposed_attention` of tokens (B, img_h, img_w, C) that ``project`` turns into qkv, padded with zeros before.

    ``project`` is called on the image, and on (1, C) zeros where windows reach beyond it; anything but a plain linear
    layer without hooks once, with all rows (tokens, C).
    """
    op = "projected_decomposed_attention"
    check_tensor(op, "x", x, ndim=4)
    padded = window is not None and any(n % size for n, size in zip(x.shape[1:3], window, strict=True))
    qkv, padding = projected(op, x, project, num_heads, padded)
    return decomposed_attention(
        qkv, rel_pos_h, rel_pos_w, num_heads=num_heads, window=window, padding=padding, scale=scale
    )
