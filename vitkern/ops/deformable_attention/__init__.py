"""Multi-scale deformable attention (Deformable DETR): validation, dispatch, the registered operator."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast
from vitkern.ops import checks
from vitkern.ops.deformable_attention.sampling import in_pytorch
from vitkern.ops.window_attention.checks import int_pair
from vitkern.plans import plan_of
from vitkern.register import kernel_op

MAX_HEAD_DIM = 256  # of one tile
MAX_POINTS = 2**31  # of an image and head

if HAS_TRITON:
    from vitkern.kernels import deformable_attention as kernels

    deformable_attention_op = kernel_op(
        kernels.deformable_attention_outputs, differentiable=("value", "locations", "weights"), fallback=in_pytorch
    )(kernels.deformable_attention_forward)
    deformable_attention_op.backward(kernels.deformable_attention_gradients)(kernels.deformable_attention_backward)

    @register_flop_formula([torch.ops.vitkern.deformable_attention, torch.ops.vitkern.deformable_attention_backward])
    def _flops(*args: Any, **kwargs: Any) -> int:
        return 0  # as PyTorch counts its own: matrix products only


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Each query's weighted sum of values at a few points of several feature maps (Zhu et al., Deformable DETR, arXiv
    2010.04159, equation 3, without its projections): bilinear between pixels, zero outside of a map, whose corners are
    those of its outer pixels (``align_corners=False``).

    Args:
        value: (B, S, H, D), the pixels of all levels by rows, one level after the other, in H heads. float16, bfloat16,
            float32 (float64 in PyTorch), any strides.
        spatial_shapes: (height, width) of each level, S pixels in all. As a tensor (L, 2) it has to come to the host,
            for which a GPU is waited for, and which CUDA graphs and torch.compile cannot hold: pass integers there.
        sampling_locations: (B, Q, H, L, P, 2), x in widths and y in heights of the level: (0, 0) is its top left
            corner, (1, 1) the bottom right one; any number. P points for each query, head and level.
        attention_weights: (B, Q, H, L, P), any numbers; models take a softmax over L and P.

        The last two may have another floating dtype than the values, and autocast leaves them as they are: in bfloat16,
        1 pixel in 256 is all that a location can tell apart.

    Returns:
        (B, Q, H * D) in the dtype of ``value`` (the autocast dtype under autocast), contiguous. Sums are float32.
        Differentiable in the three tensors, on kernels with the same bits in every run on one GPU: nothing is atomic.
        A point a pixel or more outside of a level, infinitely far too, counts for nothing and has no gradient. One
        that is NaN makes its query and head NaN, and gives no pixel a gradient.

    Raises:
        TypeError: a tensor is not dense or not floating-point, or ``spatial_shapes`` are no pairs of integers.
        ValueError: shapes or devices do not fit, or levels do not add up to S pixels.
        NotImplementedError: a kernel was forced and cannot run; heads wider than 256 run in PyTorch.
    """
    op = "deformable_attention"
    shapes = _pairs(op, spatial_shapes)
    given = value, sampling_locations, attention_weights
    call = plan_of(op, given, (shapes,))
    if not call.known:
        for name, tensor, ndim in (
            ("value", value, 4),
            ("sampling_locations", given[1], 6),
            ("attention_weights", given[2], 5),
        ):
            checks.check_tensor(op, name, tensor, ndim=ndim)
    if call.casts:
        (value,) = autocast(value)
    if not call.known:
        _check(op, value, shapes, sampling_locations, attention_weights)
    flat = [size for pair in shapes for size in pair]
    operands = value, sampling_locations, attention_weights
    if call.known or call.runs_kernel(operands, _reasons(value, attention_weights)):
        return call.run(deformable_attention_op, *operands, flat)
    return in_pytorch(*operands, flat)


def _reasons(value: Tensor, weights: Tensor) -> list[str]:
    """Why the kernels cannot run, beside the tensors themselves."""
    found = []
    if value.shape[3] > MAX_HEAD_DIM:
        found.append(f"heads of {value.shape[3]} dims are wider than {MAX_HEAD_DIM}")
    points = weights.shape[1] * weights.shape[3] * weights.shape[4]
    if points >= MAX_POINTS:
        found.append(f"{points} points of a head are more than kernels count")
    return found


def _pairs(op: str, spatial_shapes: Sequence[Sequence[int]] | Tensor) -> tuple[tuple[int, int], ...]:
    found: Any = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    if not isinstance(found, list | tuple):
        raise TypeError(
            f"{op}: spatial_shapes is no list of pairs: got {spatial_shapes!r}; expected (height, width) of each level."
        )
    return tuple([int_pair(op, f"spatial_shapes[{i}]", pair) for i, pair in enumerate(found)])


def _check(
    op: str, value: Tensor, shapes: tuple[tuple[int, int], ...], sampling_locations: Tensor, attention_weights: Tensor
) -> None:
    batch, pixels, heads, head_dim = value.shape
    if head_dim == 0:
        raise ValueError(f"{op}: head dim is 0: got value {tuple(value.shape)}; expected at least 1.")
    if not shapes or any(size < 1 for pair in shapes for size in pair):
        raise ValueError(f"{op}: a level is empty: got spatial_shapes {shapes}; expected one or more of 1 x 1 or more.")
    count = sum(height * width for height, width in shapes)
    if count != pixels:
        raise ValueError(
            f"{op}: levels do not add up to the values: got spatial_shapes {shapes}, {count} pixels in all, and value "
            f"{tuple(value.shape)}; expected (B, S, H, D) with S = {count}. Give (height, width) of each level, in "
            "the order in which the values were concatenated."
        )
    queries, levels, points = attention_weights.shape[1], len(shapes), attention_weights.shape[4]
    meaning = lambda: f"(B, Q, H, L, P) with B, H, L = {batch}, {heads}, {levels}"  # noqa: E731
    checks.check_shape(op, "attention_weights", attention_weights, (batch, None, heads, levels, None), meaning)
    meaning = lambda: f"(B, Q, H, L, P, 2) for attention_weights {tuple(attention_weights.shape)}"  # noqa: E731
    at = sampling_locations
    checks.check_shape(op, "sampling_locations", at, (batch, queries, heads, levels, points, 2), meaning)
    if points == 0:
        raise ValueError(
            f"{op}: no points: got attention_weights {tuple(attention_weights.shape)}; expected one a level or more."
        )
    devices = {x.device for x in (value, sampling_locations, attention_weights)}
    if len(devices) > 1:
        raise ValueError(f"{op}: devices differ: got {sorted(map(str, devices))}; expected one. Move them together.")
