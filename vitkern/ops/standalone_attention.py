"""Stand-alone self-attention: each pixel sees the k x k around it (Ramachandran et al., arXiv 1906.05909)."""

import torch
from torch import Tensor

from vitkern.dispatch import autocast
from vitkern.ops.checks import check_number, check_same, check_scale, check_shape, check_tensor
from vitkern.ops.local_attention import local_attention
from vitkern.ops.local_attention.checks import check_locality
from vitkern.ops.relative_logits import queries_of
from vitkern.ops.window_attention.checks import int_pair


def standalone_attention(
    qkv: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    *,
    num_heads: int,
    kernel: tuple[int, int] = (7, 7),
    scale: float = 1.0,
) -> Tensor:
    """softmax(scale q . (k + r)) v over the kernel_h x kernel_w tokens around each; differentiable in every tensor.

    r is the vector of the key's offset: half of it belongs to the row, half to the column (arXiv 1906.05909, equation
    3 and below). Beyond the image, keys and values are zero and stay in the softmax, with the score q . r.

    Args:
        qkv: (B, img_h, img_w, 3 * C) in natural token order, the channels split as (3, H, D), D even; float16,
            bfloat16, float32, float64.
        rel_h, rel_w: (H, kernel_h, D / 2) and (H, kernel_w, D / 2), the dtype of ``qkv``: the two halves of r, from
            the uppermost row and the leftmost column on.
        num_heads: H, divides C.
        kernel: (kernel_h, kernel_w) in tokens, odd.
        scale: factor of all scores; the paper has none.

    Returns:
        (B, img_h, img_w, C), contiguous, in the dtype of ``qkv`` (under autocast: the autocast dtype).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit; the message says which.
    """
    op = "standalone_attention"
    check_tensor(op, "qkv", qkv, ndim=4)
    kernel = int_pair(op, "kernel", kernel)
    if min(kernel) <= 0 or any(size % 2 == 0 for size in kernel):
        raise ValueError(f"{op}: kernel has no centre: got {kernel}; expected odd sizes. Take one more or one less.")
    halo = (kernel[0] // 2, kernel[1] // 2)
    check_locality(op, qkv, num_heads, (1, 1), halo, "keep", (1, 1))
    head_dim = qkv.shape[-1] // (3 * num_heads)
    if head_dim % 2:
        raise ValueError(
            f"{op}: a head does not split into a row and a column half: got D = {head_dim}; expected an even number. "
            "Take fewer heads or more channels."
        )
    for name, table, size in (("rel_h", rel_h, kernel[0]), ("rel_w", rel_w, kernel[1])):
        check_tensor(op, name, table)
        shape = (num_heads, size, head_dim // 2)
        check_shape(op, name, table, shape, f"(H, kernel, D / 2) = {shape}")
    check_number(op, "scale", scale, "a finite number above 0")
    check_scale(op, scale)
    qkv, rel_h, rel_w = autocast(qkv, rel_h, rel_w)
    check_same(op, qkv=qkv, rel_h=rel_h, rel_w=rel_w)
    rows, columns = queries_of(qkv, num_heads).chunk(2, -1)  # (B, img_h, img_w, H, D / 2) each
    logits = [
        torch.einsum("byxhd,hed->byxhe", half, table if scale == 1.0 else table * scale)
        for half, table in ((rows, rel_h), (columns, rel_w))
    ]
    return local_attention(
        qkv, num_heads=num_heads, block=(1, 1), halo=halo, rel_h=logits[0], rel_w=logits[1], scale=scale
    )
