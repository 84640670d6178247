"""Neighbourhood attention, dilated too: NAT (arXiv 2204.07143) and DiNAT (arXiv 2209.15001)."""

import torch
from torch import Tensor

from vitkern.dispatch import autocast
from vitkern.ops.checks import check_same, check_scale, check_shape, check_tensor
from vitkern.ops.local_attention import local_attention
from vitkern.ops.local_attention.checks import LIMIT
from vitkern.ops.window_attention.checks import int_pair


def neighborhood_attention(
    qkv: Tensor,
    *,
    num_heads: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    table: Tensor | None = None,
    padding: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of each token over the kernel_h x kernel_w tokens around it; differentiable in every tensor.

    Near the border the window is moved inside the image and keeps its size (NAT, arXiv 2204.07143, section 3.1). With a
    dilation, a token sees every dilation-th one of its row and column (DiNAT, arXiv 2209.15001). An image one token
    high with kernel (1, k) is the one-dimensional kind. A NaN reaches more queries than see it, as
    `vitkern.local_attention` says.

    Args:
        qkv: (B, img_h, img_w, 3 * C) in natural token order, the channels split as (3, H, D); float16, bfloat16,
            float32, float64.
        num_heads: H, divides C.
        kernel: (kernel_h, kernel_w) in tokens, odd.
        dilation: (dilation_h, dilation_w), at least 1.
        table: (H, 2 kernel_h - 1, 2 kernel_w - 1) relative-position biases; [h, dy + kernel_h - 1, dx + kernel_w - 1]
            is added to the score of a key dy, dx steps after the query.
        padding: (3 * C,) what ``qkv`` is on padded tokens, as a rule the bias of its projection. An image smaller than
            kernel * dilation is padded to that at the bottom and right, and needs it.
        scale: factor of the scores; D ** -0.5 by default.

    Returns:
        (B, img_h, img_w, C), contiguous, in the dtype of ``qkv`` (under autocast: the autocast dtype).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit; the message says which.
    """
    op = "neighborhood_attention"
    check_tensor(op, "qkv", qkv, ndim=4)
    kernel, dilation = _check(op, qkv, num_heads, kernel, dilation, table, scale)
    img_h, img_w = qkv.shape[1:3]
    size = (max(img_h, kernel[0] * dilation[0]), max(img_w, kernel[1] * dilation[1]))
    is_padded = size != (img_h, img_w)
    if padding is not None:
        check_tensor(op, "padding", padding)
        check_shape(op, "padding", padding, (qkv.shape[-1],), f"(3 C,) = ({qkv.shape[-1]},)")
    if is_padded:
        if padding is None:
            raise ValueError(
                f"{op}: the image is smaller than kernel * dilation: got image {(img_h, img_w)}, kernel {kernel}, "
                f"dilation {dilation}; expected padding, the value of qkv on padded tokens. Pass the bias of the qkv "
                "projection (zeros where it has none)."
            )
        qkv, outside = autocast(qkv, padding)
        check_same(op, qkv=qkv, padding=outside)
        qkv = _padded(qkv, size, outside)
    halo = (kernel[0] // 2, kernel[1] // 2)
    out = local_attention(
        qkv, num_heads=num_heads, block=(1, 1), halo=halo, border="clamp", dilation=dilation, table=table, scale=scale
    )
    return out[:, :img_h, :img_w].contiguous() if is_padded else out


def _padded(x: Tensor, size: tuple[int, int], value: Tensor) -> Tensor:
    """(B, img_h, img_w, C) with tokens that hold ``value`` (C,) below and to the right, up to ``size``."""
    batch, img_h, img_w, _ = x.shape
    x = torch.cat([x, value.expand(batch, img_h, size[1] - img_w, -1)], 2)
    return torch.cat([x, value.expand(batch, size[0] - img_h, size[1], -1)], 1)


def _check(
    op: str,
    qkv: Tensor,
    num_heads: int,
    kernel: tuple[int, int],
    dilation: tuple[int, int],
    table: Tensor | None,
    scale: float | None,
) -> tuple[tuple[int, int], tuple[int, int]]:
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise TypeError(f"{op}: num_heads is no integer: got {num_heads!r}; expected an int above 0.")
    if num_heads <= 0 or qkv.shape[-1] == 0 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(
            f"{op}: qkv does not split into q, k, v and heads: got {qkv.shape[-1]} channels, num_heads = {num_heads}; "
            "expected a multiple of 3 * num_heads."
        )
    kernel, dilation = int_pair(op, "kernel", kernel), int_pair(op, "dilation", dilation)
    if min(kernel) <= 0 or any(size % 2 == 0 for size in kernel):
        raise ValueError(
            f"{op}: kernel has no centre: got {kernel}; expected odd sizes. A window of even size around a token is "
            "not defined; take one more or one less."
        )
    if min(dilation) <= 0 or max(*kernel, *dilation) >= LIMIT:
        raise ValueError(
            f"{op}: dilation or kernel is not usable: got dilation {dilation}, kernel {kernel}; expected sizes above 0 "
            f"and below {LIMIT}."
        )
    if table is not None:
        check_tensor(op, "table", table)
        shape = (num_heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1)
        check_shape(op, "table", table, shape, f"(H, 2 kernel_h - 1, 2 kernel_w - 1) = {shape}")
        if table.device != qkv.device:
            raise ValueError(f"{op}: devices differ: got qkv on {qkv.device}, table on {table.device}; expected one.")
    check_scale(op, scale)
    return kernel, dilation
