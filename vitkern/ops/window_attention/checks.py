"""Validation of the arguments that describe windows; the error contract is that of `vitkern.ops.checks`."""

from collections.abc import Iterable

import torch
from torch import Tensor

from vitkern.ops.checks import check_number, check_scale, check_shape, check_tensor
from vitkern.ops.sizes import fixed


def int_pair(op: str, name: str, value: Iterable[int]) -> tuple[int, int]:
    try:
        pair = tuple(fixed(size) if torch.jit.is_tracing() else size for size in value)
    except TypeError:
        pair = ()
    if len(pair) != 2 or not all(isinstance(size, int | torch.SymInt) and not isinstance(size, bool) for size in pair):
        raise TypeError(
            f"{op}: {name} is no pair of integers: got {value!r}; expected ({name}_h, {name}_w). Repeat a single "
            "number."
        )
    return pair


def check_windows(
    op: str,
    image: Tensor,
    channels: int,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    wrap: str,
    mask_value: float | None,
    scale: float | None,
    table: Tensor | None,
    logit_scale: Tensor | None,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What window_attention and projected_window_attention both check -> (window, shift) as tuples.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
    """
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise TypeError(f"{op}: num_heads is no integer: got {num_heads!r}; expected an int above 0.")
    if num_heads <= 0 or channels == 0 or channels % num_heads:
        raise ValueError(
            f"{op}: heads do not divide the channels: got C = {channels}, num_heads = {num_heads}; expected C a "
            "positive multiple of num_heads."
        )
    window, shift = int_pair(op, "window", window), int_pair(op, "shift", shift)
    if min(window) <= 0:
        raise ValueError(f"{op}: window is not usable: got {window}; expected sizes above 0.")
    if any(not 0 <= offset < extent for offset, extent in zip(shift, window, strict=True)):
        raise ValueError(
            f"{op}: shift does not fit the window: got shift {shift}, window {window}; expected 0 <= shift < window "
            "on each axis. "
            "Take it modulo the window."
        )
    if 0 in image.shape[1:3]:
        raise ValueError(
            f"{op}: the image has no tokens: got shape {tuple(image.shape)}; expected img_h and img_w above 0."
        )
    if wrap not in ("image", "padded"):
        raise ValueError(
            f"{op}: wrap has an unknown name: got {wrap!r}; expected 'image' (roll, then pad: timm) or 'padded' "
            "(pad, then roll: "
            "transformers, torchvision)."
        )
    if mask_value is not None:
        check_number(op, "mask_value", mask_value, "a float, or None for -inf")
    if mask_value is not None and not mask_value <= 0:
        raise ValueError(
            f"{op}: mask_value does not mask: got {mask_value}; expected a number that is 0 or less, added to scores "
            "between regions, "
            "or None for -inf."
        )
    check_scale(op, scale)
    if table is not None:
        check_tensor(op, "table", table)
        rows = (2 * window[0] - 1) * (2 * window[1] - 1)
        check_shape(
            op,
            "table",
            table,
            (rows, num_heads),
            f"((2 window_h - 1) (2 window_w - 1), num_heads) = ({rows}, {num_heads}) for window {window}",
        )
    if logit_scale is not None:
        check_tensor(op, "logit_scale", logit_scale)
        if tuple(logit_scale.shape) not in ((num_heads,), (num_heads, 1, 1)):
            raise ValueError(
                f"{op}: logit_scale has the wrong shape: got {tuple(logit_scale.shape)}; expected ({num_heads},) or "
                f"({num_heads}, 1, 1)."
            )
        if scale is not None:
            raise ValueError(
                f"{op}: scale and logit_scale are both given: got scale = {scale}; expected one of them. Drop scale "
                "for cosine scores."
            )
    for name, tensor in (("table", table), ("logit_scale", logit_scale)):
        if tensor is not None and tensor.device != image.device:
            raise ValueError(
                f"{op}: devices differ: got {name} on {tensor.device}, image on {image.device}; expected one device. "
                "Move them together."
            )
    return window, shift
