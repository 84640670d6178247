"""Tensors in places that kernels meet: permuted, packed, expanded, sliced out of larger ones, at odd addresses.

Everything around a tensor, in the same storage, is NaN (true in a bool tensor), so that what leaks shows.
"""

import torch
from torch import Tensor


def _around(shape, like: Tensor) -> Tensor:
    return torch.full(shape, float("nan") if like.is_floating_point() else True, dtype=like.dtype, device=like.device)


def _filled(view: Tensor, tensor: Tensor) -> Tensor:
    view.copy_(tensor)
    return view


def _permuted(tensor: Tensor) -> Tensor:
    """All dimensions but the last lie in memory in reverse: (B, H, N, D) as (N, H, B, D)."""
    order = [*range(tensor.dim() - 2, -1, -1), tensor.dim() - 1]
    return tensor.permute(order).contiguous().permute(order) if tensor.dim() > 1 else tensor.contiguous()


def _heads_inside(tensor: Tensor) -> Tensor:
    """(B, H, N, D) as a view of (B, N, H, D), as a projection gives it."""
    if tensor.dim() < 3:
        return tensor.contiguous()
    return tensor.transpose(-3, -2).contiguous().transpose(-3, -2)


def _transposed(tensor: Tensor) -> Tensor:
    """The last two dimensions lie the other way round: the last has a stride."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2) if tensor.dim() > 1 else _stepped(tensor)


def _packed(tensor: Tensor) -> Tensor:
    """The middle of three that a joint projection gives: (B, H, N, D) out of (B, N, 3, H, D)."""
    if tensor.dim() != 4:
        return _filled(_around((*tensor.shape[:-1], 3, tensor.shape[-1]), tensor)[..., 1, :], tensor)
    batch, heads, tokens, dim = tensor.shape
    return _filled(_around((batch, tokens, 3, heads, dim), tensor)[:, :, 1].transpose(1, 2), tensor)


def _expanded(tensor: Tensor) -> Tensor:
    """Stride 0 along the first dimension that is longer than 1, the last left out but in a vector; its first entry
    serves all."""
    for i, size in enumerate(tensor.shape[: max(1, tensor.dim() - 1)]):
        if size > 1:
            return tensor.narrow(i, 0, 1).contiguous().expand(tensor.shape)
    return tensor.contiguous()


def _constant(tensor: Tensor) -> Tensor:
    """One element for all, stride 0 throughout: the gradient that a sum gives."""
    return tensor.reshape(-1)[:1].clone().view((1,) * tensor.dim()).expand(tensor.shape) if tensor.numel() else tensor


def _sliced(tensor: Tensor) -> Tensor:
    """Out of a tensor that is larger in every dimension, so that row strides are odd."""
    view = _around([size + 3 for size in tensor.shape], tensor)
    for i, size in enumerate(tensor.shape):
        view = view.narrow(i, 1, size)
    return _filled(view, tensor)


def _misaligned(tensor: Tensor) -> Tensor:
    """One element past an aligned address."""
    return _filled(_around((tensor.numel() + 2,), tensor)[1 : 1 + tensor.numel()].view(tensor.shape), tensor)


def _stepped(tensor: Tensor) -> Tensor:
    """Every second element of rows twice as long."""
    return _filled(_around((*tensor.shape[:-1], 2 * tensor.shape[-1]), tensor)[..., ::2], tensor)


def _overlapping(tensor: Tensor) -> Tensor:
    """Row i + 1 of the last two dimensions is row i, one element on: rows of a sliding window."""
    if tensor.dim() < 2 or tensor.numel() == 0:
        return tensor.contiguous()
    line = torch.cat([tensor[..., 0, :], tensor[..., 1:, -1]], -1).contiguous()  # (..., rows + last dimension - 1)
    return line.as_strided(tensor.shape, (*line.stride()[:-1], 1, 1))


LAYOUTS = {
    "contiguous": Tensor.contiguous,
    "permuted": _permuted,
    "heads inside": _heads_inside,
    "transposed": _transposed,
    "packed": _packed,
    "expanded": _expanded,
    "constant": _constant,
    "sliced": _sliced,
    "misaligned": _misaligned,
    "stepped": _stepped,
    "overlapping": _overlapping,
}


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """``tensor`` in a new place. "expanded", "constant" and "overlapping" repeat some of its values; the other layouts
    keep them all."""
    return LAYOUTS[layout](tensor)
