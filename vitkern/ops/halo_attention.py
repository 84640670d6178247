"""HaloNet's attention: each block of queries sees its own tokens and a rim of others around them (arXiv 2103.12731)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.dispatch import autocast, runs_kernel
from vitkern.ops.checks import check_number, check_same, check_scale, check_shape, check_tensor
from vitkern.ops.local_attention import head_dim_reasons, local_attention
from vitkern.ops.local_attention.checks import check_locality
from vitkern.ops.relative_logits import places, queries_of, relative_logits
from vitkern.ops.sizes import fixed


def halo_attention_qkvpacked(
    qkv: Tensor,
    height_rel: Tensor,
    width_rel: Tensor,
    *,
    num_heads: int,
    block: int = 8,
    halo: int = 3,
    scale: float | None = None,
    rel_scale: float = 1.0,
) -> Tensor:
    """Attention of blocks of block x block queries to the keys at most ``halo`` away; differentiable in every tensor.

    softmax(scale q k^T + rel_scale (q . height_rel[y] + q . width_rel[x])) v, with y and x the row and column of the
    key in its window of E = block + 2 halo, less those of the query in its block, plus E - 1. What a window holds
    beyond the image is zero and stays in the softmax (arXiv 2103.12731, section 3.2; timm's `HaloAttn`).

    Args:
        qkv: (B, img_h, img_w, 3 * C) in natural token order, the channels split as (3, H, D); float16, bfloat16,
            float32, float64. ``block`` divides img_h and img_w.
        height_rel, width_rel: (2 E - 1, D), the dtype of ``qkv``.
        num_heads: H, divides C.
        block, halo: in tokens; halo <= block.
        scale: factor of q k^T; D ** -0.5 by default. rel_scale: of the relative logits.

    Returns:
        (B, img_h, img_w, C), contiguous, in the dtype of ``qkv`` (under autocast: the autocast dtype).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit; the message says which.
    """
    op = "halo_attention_qkvpacked"
    check_tensor(op, "qkv", qkv, ndim=4)
    check_locality(op, qkv, num_heads, (block, block), (halo, halo), "keep", (1, 1))
    head_dim = qkv.shape[-1] // (3 * num_heads)
    _check(op, qkv.shape[1:3], block, halo, head_dim, height_rel, width_rel, scale, rel_scale)
    qkv, height_rel, width_rel = autocast(qkv, height_rel, width_rel)
    check_same(op, qkv=qkv, height_rel=height_rel, width_rel=width_rel)
    rel_h, rel_w = _logits(queries_of(qkv, num_heads), height_rel, width_rel, block, rel_scale)
    return local_attention(
        qkv, num_heads=num_heads, block=(block, block), halo=(halo, halo), rel_h=rel_h, rel_w=rel_w, scale=scale
    )


def halo_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    height_rel: Tensor,
    width_rel: Tensor,
    *,
    block: int = 8,
    halo: int = 3,
    scale: float | None = None,
    rel_scale: float = 1.0,
) -> Tensor:
    """`halo_attention_qkvpacked` with values of another size, or with fewer queries, that make the image smaller.

    Every stride-th row and column has queries; places in a block count these alone. The kernel reads queries, keys and
    values packed: they are copied once, with queries of zero in between. In PyTorch keys and values are copied
    (E / block)^2 times.

    Args:
        q: (B, img_h / stride, img_w / stride, H, D), for a stride that divides ``block``. k: (B, img_h, img_w, H, D).
            v: (B, img_h, img_w, H, Dv). Of one dtype: float16, bfloat16, float32, float64.
        height_rel, width_rel, block, halo, scale, rel_scale: as there, in tokens of ``k``.

    Returns:
        (B, img_h / stride, img_w / stride, H, Dv), in the dtype of ``q`` (under autocast: the autocast dtype).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit; the message says which.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "halo_attention"
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_tensor(op, name, tensor, ndim=5)
    image, head_dim = k.shape[1:3], k.shape[4]
    _check(op, image, block, halo, head_dim, height_rel, width_rel, scale, rel_scale)
    stride = max(fixed(image[0]) // max(fixed(q.shape[1]), 1), 1)
    shape = (k.shape[0], image[0] // stride, image[1] // stride, *k.shape[3:])
    if tuple(q.shape) != shape or block % stride:
        raise ValueError(
            f"{op}: q has the wrong shape: got {tuple(q.shape)}; expected (B, img_h / stride, img_w / stride, H, D) "
            f"for k of {tuple(k.shape)} and a stride that divides the block, {block}."
        )
    check_shape(op, "v", v, (*k.shape[:4], None), f"(B, img_h, img_w, H, Dv), all but Dv as k, {tuple(k.shape)}")
    tensors = q, k, v, height_rel, width_rel = autocast(q, k, v, height_rel, width_rel)
    check_same(op, q=q, k=k, v=v, height_rel=height_rel, width_rel=width_rel)
    side, extent = block // stride, block + 2 * halo
    logits = _logits(q, height_rel, width_rel, side, rel_scale)
    if runs_kernel(op, tensors, head_dim_reasons(max(head_dim, v.shape[4])), "local_attention"):
        return _packed(q, k, v, logits, stride, block, halo, head_dim**-0.5 if scale is None else scale)
    rel_h, rel_w = (_blocks(rel, side, side) for rel in logits)
    bias = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(3)  # (B * blocks, H, side * side, E * E)
    k, v = (F.pad(part, (0, 0, 0, 0, halo, halo, halo, halo)) for part in (k, v))
    k, v = (_blocks(part, extent, block) for part in (k, v))
    out = F.scaled_dot_product_attention(_blocks(q, side, side), k, v, attn_mask=bias, scale=scale)
    out = out.view(shape[0], image[0] // block, image[1] // block, shape[3], side, side, v.shape[-1])
    return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(*shape[:4], v.shape[-1])


def _packed(
    q: Tensor, k: Tensor, v: Tensor, logits: list[Tensor], stride: int, block: int, halo: int, scale: float
) -> Tensor:
    """`halo_attention` by `local_attention`, which has a query for each key, and heads of one size."""
    width = max(q.shape[4], v.shape[4])
    q, rel_h, rel_w = (_spread(part, stride) for part in (q, *logits))
    qkv = torch.stack([F.pad(part, (0, width - part.shape[4])) for part in (q, k, v)], 3).flatten(3)
    out = local_attention(
        qkv, num_heads=k.shape[3], block=(block, block), halo=(halo, halo), rel_h=rel_h, rel_w=rel_w, scale=scale
    ).unflatten(3, (k.shape[3], width))
    return out[:, ::stride, ::stride, :, : v.shape[4]].contiguous()


def _spread(x: Tensor, stride: int) -> Tensor:
    """(B, img_h, img_w, H, D) -> (B, stride * img_h, stride * img_w, H, D), zeros below and to the right of each."""
    x = F.pad(x[:, :, None, :, None], (0, 0, 0, 0, 0, stride - 1, 0, 0, 0, stride - 1))
    return x.flatten(3, 4).flatten(1, 2)


def _blocks(x: Tensor, extent: int, step: int) -> Tensor:
    """(B, img_h, img_w, H, D) -> its blocks of extent x extent that begin every ``step``: (B * blocks, H, extent *
    extent, D)."""
    blocks = x.unfold(1, extent, step).unfold(2, extent, step)  # (B, blocks_h, blocks_w, H, D, extent, extent)
    return blocks.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5).flatten(0, 2)


def _logits(q: Tensor, height_rel: Tensor, width_rel: Tensor, block: int, rel_scale: float) -> list[Tensor]:
    """What queries (B, img_h, img_w, H, D) in blocks of ``block`` add to the rows and columns of their windows: two
    of (B, img_h, img_w, H, E)."""
    extent = (height_rel.shape[0] + 1) // 2
    entry, logits = torch.arange(extent, device=q.device) + extent - 1, []
    for axis, table in ((1, height_rel), (2, width_rel)):
        entries = entry - places(q.shape[axis], block, q.device)
        logits.append(relative_logits(q, table if rel_scale == 1.0 else table * rel_scale, axis, entries))
    return logits


def _check(
    op: str,
    image: torch.Size,
    block: int,
    halo: int,
    head_dim: int,
    height_rel: Tensor,
    width_rel: Tensor,
    scale: float | None,
    rel_scale: float,
) -> None:
    """What does not depend on how queries, keys and values lie.

    Raises:
        TypeError: arguments of the wrong type.
        ValueError: shapes or values that do not fit.
    """
    if any(isinstance(n, bool) or not isinstance(n, int) for n in (block, halo)):
        raise TypeError(f"{op}: block and halo are no integers: got {block!r}, {halo!r}; expected int.")
    if not 0 <= halo <= block or block == 0:
        raise ValueError(
            f"{op}: the halo does not fit the block: got halo {halo}, block {block}; expected 0 <= halo <= block. Take "
            "larger blocks."
        )
    if any(size % block for size in image):
        raise ValueError(
            f"{op}: blocks do not divide the image: got image {tuple(image)}, block {block}; expected multiples. Pad "
            "or resize the image, or take another block."
        )
    length = 2 * (block + 2 * halo) - 1
    for name, table in (("height_rel", height_rel), ("width_rel", width_rel)):
        check_tensor(op, name, table)
        check_shape(op, name, table, (length, head_dim), f"(2 E - 1, D) = ({length}, {head_dim})")
    check_scale(op, scale)
    check_number(op, "rel_scale", rel_scale, "a finite number above 0")
    check_scale(op, rel_scale)
