"""Hook: where token i of a group lives.

``TOKENS(group, i, strides, args) -> offset, inside`` with ``i`` [BLOCK] int32 the index of a token within its group,
``offset`` [BLOCK] int64 the place of its row in units of ``ALIGN`` elements (the launcher divides every stride by
``ALIGN``, so that the compiler sees the alignment), and ``inside`` [BLOCK] false where the token is padding and has no
row. The caller masks ``i`` beyond the group.
"""

import triton
import triton.language as tl

from ..machine.numbers import all_plain, disguised


@triton.jit
def dense(group, i, strides, args):
    """Groups are batch entries. strides (batch, token); args ()."""
    return group.to(tl.int64) * strides[0] + i.to(tl.int64) * strides[1], i >= 0


@triton.jit
def window(group, i, strides, args):
    """Groups are the windows of a cyclically shifted, padded image, row-major within each image (Swin, arXiv
    2103.14030, section 3.2).

    strides (image, y, x), disguised; args: see `window_args`. A token past the wrap, or past the image, is padding;
    EXACT says that there is none.
    """
    sizes, WINDOW_H, WINDOW_W, SHIFT_H, SHIFT_W, EXACT = args
    img_h, img_w, wrap_h, wrap_w, rows, cols = all_plain(sizes)
    strides = all_plain(strides)
    line = group // cols  # row of windows, counted over all images
    image = line // rows
    window_y = (line - image * rows) * WINDOW_H
    window_x = (group - line * cols) * WINDOW_W
    # What the group does not change is a term of its own: a loop over groups computes it once.
    within = (i // WINDOW_W).to(tl.int64) * strides[1] + (i % WINDOW_W).to(tl.int64) * strides[2]
    start = image.to(tl.int64) * strides[0] + (window_y + SHIFT_H).to(tl.int64) * strides[1]
    offset = within + (start + (window_x + SHIFT_W).to(tl.int64) * strides[2])
    y = i // WINDOW_W + window_y
    x = i % WINDOW_W + window_x
    inside = i >= 0
    if SHIFT_H > 0:
        wrapped = y + SHIFT_H >= wrap_h
        offset -= tl.where(wrapped, tl.cast(wrap_h, tl.int64) * strides[1], 0)
        if not EXACT:
            inside = inside & (y < wrap_h) & (tl.where(wrapped, y + SHIFT_H - wrap_h, y + SHIFT_H) < img_h)
    elif not EXACT:
        inside = inside & (y < img_h)
    if SHIFT_W > 0:
        wrapped = x + SHIFT_W >= wrap_w
        offset -= tl.where(wrapped, tl.cast(wrap_w, tl.int64) * strides[2], 0)
        if not EXACT:
            inside = inside & (x < wrap_w) & (tl.where(wrapped, x + SHIFT_W - wrap_w, x + SHIFT_W) < img_w)
    elif not EXACT:
        inside = inside & (x < img_w)
    return offset, inside


def window_args(image, wrap, counts, window, shift, exact):
    """Args of `window`: pairs of ints, of tokens but for ``counts``, of windows. The roll wraps at ``wrap``: the image
    size where it is rolled and then padded (timm), the padded size where it is padded and then rolled (transformers,
    torchvision).
    """
    sizes = tuple(disguised(n) for n in (*image, *wrap, *counts))
    return sizes, *(tl.constexpr(n) for n in (*window, *shift, exact))
