"""Gated positional self-attention (ConViT): validation, dispatch, the registered operator, the PyTorch path."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast, no_autocast
from vitkern.ops import checks
from vitkern.ops.attention import MAX_HEAD_DIM
from vitkern.ops.attention.softmax import attention_in_pytorch
from vitkern.ops.sizes import fixed
from vitkern.ops.window_attention.checks import int_pair
from vitkern.plans import plan_of
from vitkern.reference.gated_positional_attention import gated_weights
from vitkern.register import kernel_op

MAX_SIDE = 256  # of the kernels: their registers hold rows of an axis


def gated_positional_attention(
    qk: Tensor,
    v: Tensor,
    position_weights: Tensor,
    gate: Tensor,
    grid: tuple[int, int] | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention by content and by position, mixed by a gate of each head: ``(1 - g) softmax(scale q k^T) v + g
    softmax(w . (dx, dy, dx^2 + dy^2)) v``, g = sigmoid(gate) (ConViT, d'Ascoli et al., arXiv 2103.10697, section 3.2,
    equation 7).

    (dx, dy) leads from the token that attends to the other. No N x N tensor is in memory: the softmax of positions is
    a product of one along x and one along y.

    Args:
        qk: (B, N, 2, H, D), v: (B, N, H, D), as projections leave them; float16, bfloat16 or float32 (float64, D > 256
            and grids above 256 on a side run in PyTorch); any strides.
        position_weights: (H, 3), w: of dx, dy and the squared distance, any floating dtype. A bias would drop out of
            the softmax.
        gate: (H,), before the sigmoid, any floating dtype.
        grid: (grid_h, grid_w) of the N tokens, row by row; a square by default.
        scale: factor of q k^T; 1 / sqrt(D) by default.
        dropout_p: probability of dropping a mixed weight, 0 <= p < 1; the others are divided by 1 - p. Above 0 the
            PyTorch path runs, and holds all weights.

    Returns:
        (B, N, H, D), contiguous, in the dtype of ``v`` (the autocast dtype under autocast). Differentiable in all
        tensors; deterministic.

    Raises:
        TypeError: dtypes differ, an argument is no dense floating-point tensor, or ``grid`` is no pair.
        ValueError: shapes, devices or numbers do not fit, or ``grid`` has not N positions.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "gated_positional_attention"
    call = plan_of(op, (qk, v, position_weights, gate), (grid, scale, dropout_p))
    if not call.checked:
        checks.check_tensor(op, "qk", qk, ndim=5)
        checks.check_tensor(op, "v", v, ndim=4)
    if call.casts:
        qk, v = autocast(qk, v)
    if not call.checked:
        _check(op, qk, v, position_weights, gate)
        checks.check_scale(op, scale)
        checks.check_probability(op, "dropout_p", dropout_p)
    grid_h, grid_w = grid_of(op, fixed(v.shape[1]), grid)
    scale = 1 / math.sqrt(v.shape[-1]) if scale is None else float(scale)
    arguments = (qk, v, position_weights, gate, grid_h, grid_w, scale)
    if call.known or call.runs_kernel(arguments[:4], _reasons(v, grid_h, grid_w, dropout_p)):
        return call.run(gated_positional_attention_op, *arguments)[0]
    return _in_pytorch(*arguments, dropout_p)[0]


@torch.no_grad()
def mean_weights(qk: Tensor, position_weights: Tensor, gate: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mixed weights (H, N, N), as a mean over images; arguments as of `gated_positional_attention`. One image's are
    in memory at a time."""
    batch, tokens, _, heads, _ = qk.shape
    total = position_weights.new_zeros(heads, tokens, tokens)
    for image in qk:
        total += gated_weights(image[None], position_weights, gate, grid, None)[0]
    return total / batch


def grid_of(op: str, tokens: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """``grid``, or the square of so many tokens.

    Raises:
        TypeError: no pair of integers.
        ValueError: it has another number of positions, or there is no such square.
    """
    if grid is None:
        side = int(tokens**0.5 + 0.5)
        if side * side != tokens:
            raise ValueError(
                f"{op}: tokens are no square: got N = {tokens}; expected as many as the positions of a grid. Pass grid="
                "(grid_h, grid_w); a class token has no position: it joins where attention has no positions."
            )
        return side, side
    grid_h, grid_w = int_pair(op, "grid", grid)
    if grid_h < 0 or grid_w < 0 or grid_h * grid_w != tokens:
        raise ValueError(
            f"{op}: grid does not match the tokens: got {(grid_h, grid_w)} for N = {tokens}; expected grid_h * grid_w "
            "= N. Pass the patches in a column and in a row of the image, and leave out class tokens."
        )
    return grid_h, grid_w


def _check(op: str, qk: Tensor, v: Tensor, position_weights: Tensor, gate: Tensor) -> None:
    checks.check_same(op, qk=qk, v=v)
    batch, tokens, heads, head_dim = v.shape
    expected = (batch, tokens, 2, heads, head_dim)
    checks.check_shape(op, "qk", qk, expected, lambda: f"(B, N, 2, H, D) = {expected} for v {tuple(v.shape)}")
    if head_dim == 0:
        raise ValueError(f"{op}: head dim is 0: got v {tuple(v.shape)}; expected at least 1.")
    for name, value, shape, meaning in (
        ("position_weights", position_weights, (heads, 3), "(H, 3)"),
        ("gate", gate, (heads,), "(H,)"),
    ):
        checks.check_tensor(op, name, value)
        checks.check_shape(op, name, value, shape, lambda meaning=meaning: f"{meaning} with H = {heads}")  # type: ignore[misc]
        if value.device != v.device:
            raise ValueError(
                f"{op}: devices differ: got v on {v.device}, {name} on {value.device}; expected one. Move them "
                "together."
            )


def _reasons(v: Tensor, grid_h: int, grid_w: int, dropout_p: float) -> list[str]:
    """Why the kernels cannot run, beside the tensors themselves."""
    found = ["the kernel does not drop weights"] * (dropout_p > 0.0)
    if v.shape[-1] > MAX_HEAD_DIM:
        found.append(f"head dim {v.shape[-1]} is above {MAX_HEAD_DIM}")
    if max(grid_h, grid_w) > MAX_SIDE:
        found.append(f"a side of the grid {(grid_h, grid_w)} is above {MAX_SIDE}")
    return found


def _in_pytorch(
    qk: Tensor,
    v: Tensor,
    position_weights: Tensor,
    gate: Tensor,
    grid_h: int,
    grid_w: int,
    scale: float,
    dropout_p: float = 0.0,
) -> tuple[Tensor, None, None]:
    """What the operator computes: (B, N, H, D), and nothing that its backward reads."""
    wide = torch.float64 if v.dtype == torch.float64 else torch.float32
    position_weights, gate = position_weights.to(wide), gate.to(wide)[:, None, None]
    values = v.transpose(1, 2)  # (B, H, N, D)
    with no_autocast(v):
        if dropout_p > 0.0:
            weights = F.dropout(gated_weights(qk, position_weights, gate, (grid_h, grid_w), scale), dropout_p)
            return (weights.to(v.dtype) @ values).transpose(1, 2).contiguous(), None, None
        q, k = qk.permute(2, 0, 3, 1, 4)
        content, _ = attention_in_pytorch(q, k, values, None, None, None, None, scale, False, 0.0, 0.0, False)
        across, along = _axis(position_weights, 0, grid_w, v.dtype), _axis(position_weights, 1, grid_h, v.dtype)
        mixed = across[:, None] @ values.unflatten(2, (grid_h, grid_w))  # (B, H, grid_h, grid_w, D)
        mixed = (along @ mixed.flatten(3)).view_as(mixed).flatten(2, 3)
        out = torch.lerp(content.to(wide), mixed.to(wide), torch.sigmoid(gate)).to(v.dtype)
    return out.transpose(1, 2).contiguous(), None, None


def _axis(position_weights: Tensor, axis: int, extent: int, dtype: torch.dtype) -> Tensor:
    """(H, extent, extent), the softmax of positions along x (0) or y (1)."""
    place = torch.arange(extent, device=position_weights.device, dtype=position_weights.dtype)
    d = place[None, :] - place[:, None]
    linear, square = position_weights[:, axis, None, None], position_weights[:, 2, None, None]
    return (linear * d + square * (d * d)).softmax(-1).to(dtype)


if HAS_TRITON:
    from vitkern.kernels import gated_positional_attention as kernels

    gated_positional_attention_op = kernel_op(
        kernels.gated_positional_attention_outputs,
        differentiable=("qk", "v", "position_weights", "gate"),
        fallback=_in_pytorch,
    )(kernels.gated_positional_attention_forward)
    gated_positional_attention_op.backward(kernels.gated_positional_attention_gradients)(
        kernels.gated_positional_attention_backward
    )

    def _flops(v_shape: Sequence[int], grid_h: int, grid_w: int) -> tuple[int, int]:
        """Of attention, and of mixing along both axes."""
        return 4 * math.prod(v_shape) * v_shape[1], 2 * math.prod(v_shape) * (grid_h + grid_w)

    @register_flop_formula(torch.ops.vitkern.gated_positional_attention)
    def _forward_flops(
        qk: Any, v_shape: Sequence[int], weights: Any, gate: Any, grid_h: int, grid_w: int, *args: Any, **kwargs: Any
    ) -> int:
        return sum(_flops(v_shape, grid_h, grid_w))

    @register_flop_formula(torch.ops.vitkern.gated_positional_attention_backward)
    def _backward_flops(
        grad: Any, out: Any, content: Any, lse: Any, qk: Any, v_shape: Sequence[int], weights: Any, gate: Any,
        grid_h: int, grid_w: int, *args: Any, **kwargs: Any,
    ) -> int:  # fmt: skip
        content_flops, mixing = _flops(v_shape, grid_h, grid_w)
        return content_flops * 5 // 2 + 2 * mixing
