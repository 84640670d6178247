"""Separable attention (MobileViT v2 and v3): validation, dispatch, the registered operator, the PyTorch path."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast, is_eager
from vitkern.ops import checks
from vitkern.ops.sizes import fixed
from vitkern.ops.window_attention.checks import int_pair
from vitkern.plans import plan_of
from vitkern.register import kernel_op


def _in_pytorch(qkv: Tensor, value: Tensor | None, patch_h: int, patch_w: int, dropout_p: float = 0.0) -> Tensor:
    if value is None:
        channels = fixed(qkv.shape[1]) // 2
        q, k, value = qkv.split_with_sizes((1, channels, channels), 1)
    else:
        q, k = qkv.split_with_sizes((1, fixed(qkv.shape[1]) - 1), 1)
    unfolded = patch_w == 1 and k.shape[2] == value.shape[2] == patch_h
    weights = q.softmax(-1) if unfolded else _weights(q, patch_h, patch_w)
    if dropout_p > 0.0:
        weights = F.dropout(weights, dropout_p)
    if unfolded:
        return _rectified(value, (k * weights).sum(-1, keepdim=True))
    sums = (_by_rows(k, patch_h) * weights).sum(2)  # (B, C, patch_h * W)
    sums = sums.unflatten(2, (patch_h, k.shape[3] // patch_w, patch_w)).sum(3)  # (B, C, patch_h, patch_w)
    across = sums[:, :, :, None].expand(-1, -1, -1, value.shape[3] // patch_w, -1).flatten(2)
    out = _rectified(_by_rows(value, patch_h), across[:, :, None])
    return out.unflatten(3, (patch_h, value.shape[3])).flatten(2, 3)


def _rectified(value: Tensor, factor: Tensor) -> Tensor:
    """relu(value) * factor."""
    graded = torch.is_grad_enabled() and (value.requires_grad or factor.requires_grad)
    return value.relu() * factor if graded or not is_eager(value, factor) else value.relu().mul_(factor)


def _weights(q: Tensor, patch_h: int, patch_w: int) -> Tensor:
    """The softmax of scores (B, 1, H, W) over each class of pixels, as `_by_rows` has them."""
    rows, across = q.shape[2] // patch_h, q.shape[3] // patch_w
    scores = q[:, 0].unflatten(2, (across, patch_w)).unflatten(1, (rows, patch_h))
    weights = scores.permute(0, 2, 4, 1, 3).flatten(3).softmax(-1).unflatten(3, (rows, across))
    return weights.permute(0, 3, 1, 4, 2).flatten(2)[:, None]


def _by_rows(image: Tensor, patch_h: int) -> Tensor:
    """(B, C, H, W) -> (B, C, rows of patches, patch_h * W), without unfolding them."""
    return image.unflatten(2, (image.shape[2] // patch_h, patch_h)).flatten(3)


if HAS_TRITON:
    from vitkern.kernels import separable_attention as kernels

    separable_attention_op = kernel_op(
        kernels.separable_attention_outputs, differentiable=("qkv", "value"), fallback=_in_pytorch
    )(kernels.separable_attention_forward)
    separable_attention_op.backward(kernels.separable_attention_gradients)(kernels.separable_attention_backward)

    @register_flop_formula([torch.ops.vitkern.separable_attention, torch.ops.vitkern.separable_attention_backward])
    def _flops(*args: Any, **kwargs: Any) -> int:
        return 0  # as PyTorch counts its own: matrix products only


def separable_attention(
    qkv: Tensor,
    value: Tensor | None = None,
    *,
    patch_size: tuple[int, int] = (2, 2),
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention of linear cost to one context of each class of pixels (Mehta and Rastegari, arXiv 2206.02680, section
    3.1): ``relu(v) * sum_n softmax_n(q)_n k_n``.

    A class is the pixels of one place in the patches, (y % patch_h, x % patch_w); n runs over patches. Where a model
    has unfolded its image into (B, 1 + 2 C, P, N), P pixels of N patches, that is an image of one row of patches:
    ``patch_size=(P, 1)``.

    Args:
        qkv: (B, 1 + 2 C, H, W): a score, C keys, C values. float16, bfloat16, float32 (float64 in PyTorch), any
            strides.
        value: (B, C, H, W), where the values are another image's; then ``qkv`` is (B, 1 + C, H', W'), a score and C
            keys.
        patch_size: (patch_h, patch_w), which divides heights and widths.
        dropout_p: probability of dropping a weight of the softmax, 0 <= p < 1; the others are divided by 1 - p. Above 0
            the PyTorch path runs.

    Returns:
        (B, C, H, W) in the dtype of ``qkv`` (the autocast dtype under autocast), channels last where the values are.
        Without a pixel of keys it is 0. Differentiable in both tensors.

    Raises:
        TypeError: an argument is not a dense floating-point tensor, dtypes differ, or ``patch_size`` is no pair.
        ValueError: shapes, devices or ``dropout_p`` do not fit.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "separable_attention"
    call = plan_of(op, (qkv, value), (patch_size, dropout_p))
    if not call.known:
        checks.check_tensor(op, "qkv", qkv, ndim=4)
        if value is not None:
            checks.check_tensor(op, "value", value, ndim=4)
    if call.casts:
        qkv, value = autocast(qkv, value)
    patch_h, patch_w = patch_size if call.known else int_pair(op, "patch_size", patch_size)
    if not call.known:
        _check(op, qkv, value, patch_h, patch_w)
        checks.check_probability(op, "dropout_p", dropout_p)
    if call.known or call.runs_kernel((qkv, value), ["the kernel does not drop weights"] * (dropout_p > 0.0)):
        out, _ = call.run(separable_attention_op, qkv, value, patch_h, patch_w)
        return out
    return _in_pytorch(qkv, value, patch_h, patch_w, dropout_p)


def _check(op: str, qkv: Tensor, value: Tensor | None, patch_h: int, patch_w: int) -> None:
    if value is None:
        if qkv.shape[1] < 3 or qkv.shape[1] % 2 == 0:
            raise ValueError(
                f"{op}: qkv has the wrong shape: got {tuple(qkv.shape)}; expected (B, 1 + 2 C, H, W), a score, C keys "
                "and C values, C at least 1. Pass value where it is another image."
            )
    else:
        checks.check_same(op, qkv=qkv, value=value)
        expected = (qkv.shape[0], qkv.shape[1] - 1, None, None)
        meaning = lambda: f"(B, C, H, W) for qkv {tuple(qkv.shape)} of (B, 1 + C, H', W')"  # noqa: E731
        checks.check_shape(op, "value", value, expected, meaning)
        if qkv.shape[1] < 2:
            raise ValueError(
                f"{op}: no channels: got qkv {tuple(qkv.shape)}; expected (B, 1 + C, H', W'), C at least 1."
            )
    if patch_h < 1 or patch_w < 1:
        raise ValueError(f"{op}: patch_size is empty: got {(patch_h, patch_w)}; expected 1 x 1 pixels or more.")
    for name, image in (("qkv", qkv), ("value", value)):
        if image is not None and (image.shape[2] % patch_h or image.shape[3] % patch_w):
            raise ValueError(
                f"{op}: patches do not divide the image: got {name} {tuple(image.shape)}, patch_size "
                f"{(patch_h, patch_w)}; expected (..., H, W) that are multiples of them. Resize or pad the image."
            )
