"""What a query adds to the scores of the rows and columns that it sees: products with learnt vectors of offsets."""

import torch
import torch.nn.functional as F
from torch import Tensor


def relative_logits(q: Tensor, table: Tensor, axis: int, entries: Tensor) -> Tensor:
    """q . table[entry], for each row (axis 1) or column (axis 2) of the interval that a query sees.

    Args:
        q: (B, img_h, img_w, H, D), as a rule not scaled.
        table: (T, D), the dtype of ``q``.
        entries: (size, E) integers, size that of ``axis``: which vector belongs to key row or column j of a query in
            row or column i.

    Returns:
        (B, img_h, img_w, H, E), as `vitkern.ops.local_attention.local_attention` takes rel_h and rel_w.
    """
    vectors = table[entries]  # (size, E, D); its gradient is summed in order, that of index_select is not
    return torch.einsum("byxhd,yed->byxhe" if axis == 1 else "byxhd,xed->byxhe", q, vectors)


def places(size: int, block: int, device: torch.device) -> Tensor:
    """(size, 1): where in its block each position lies."""
    return torch.arange(size, device=device)[:, None] % block


def queries_of(qkv: Tensor, num_heads: int) -> Tensor:
    """(B, img_h, img_w, 3 * C) -> its queries (B, img_h, img_w, H, D), a view."""
    return qkv.chunk(3, -1)[0].unflatten(-1, (num_heads, -1))


def resized(table: Tensor, length: int) -> Tensor:
    """(T, D) -> (length, D), interpolated linearly along the offsets as ViTDet and SAM do; as it is where T fits."""
    if table.shape[0] == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear")[0].T
