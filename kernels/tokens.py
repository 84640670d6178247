"""Hook 1: where token i of a group lives.

``TOKENS(group, i, strides, args) -> offset, inside`` with ``i`` [BLOCK] int32 the index of a token within its group, ``offset`` [BLOCK]
int64 the place of its row in units of ``ALIGN`` elements (the launcher divides every stride by ``ALIGN``, so that the compiler sees the
alignment), and ``inside`` [BLOCK] false where the token is padding and has no row. The caller masks ``i`` beyond the group.
"""

import triton
import triton.language as tl


@triton.jit
def dense(group, i, strides, args):
    """Groups are batch entries. strides (batch, token); args ()."""
    return group.to(tl.int64) * strides[0] + i.to(tl.int64) * strides[1], i >= 0


@triton.jit
def window(group, i, strides, args):
    """Groups are the windows of a cyclically shifted, padded image, row-major within each image (Swin, arXiv 2103.14030, section 3.2).

    strides (image, y, x); args (img_h, img_w, wrap_h, wrap_w, rows, cols, WINDOW_W, SHIFT_H, SHIFT_W, WINDOW_H), the last four constexpr.
    ``rows`` and ``cols`` count windows. The roll wraps at ``wrap``: img_h where the image is rolled and then padded (timm), the padded
    height where it is padded and then rolled (transformers, torchvision). A token past the wrap, or past the image, is padding.
    """
    img_h, img_w, wrap_h, wrap_w, rows, cols, WINDOW_W, SHIFT_H, SHIFT_W, WINDOW_H = args
    image = group // (rows * cols)
    y = (group // cols) % rows * WINDOW_H + i // WINDOW_W
    x = group % cols * WINDOW_W + i % WINDOW_W
    inside = (y < wrap_h) & (x < wrap_w)
    y += SHIFT_H
    x += SHIFT_W
    y = tl.where(y >= wrap_h, y - wrap_h, y)
    x = tl.where(x >= wrap_w, x - wrap_w, x)
    inside = inside & (y < img_h) & (x < img_w)
    return image.to(tl.int64) * strides[0] + y.to(tl.int64) * strides[1] + x.to(tl.int64) * strides[2], inside
