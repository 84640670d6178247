"""(1 - g) content + g (Ay (x) Ax) v of each head, and its gradients; see `gated_positional_attention`."""

from math import prod

import torch
import triton
import triton.language as tl

from ..loop.problem import aligned, dense_rows
from ..machine.architecture import INTERPRETER, arch_of
from ..machine.blocks import Config, dot_precision
from ..machine.choices import choice
from ..machine.launch import launch
from ..machine.numbers import all_plain, disguised
from ..machine.tiles import LOG2E
from .axis import axis_of, weights_of
from .block import SIDE, block_of, places, swapped, wide


@triton.jit
def _gates(gate, head):
    """g and 1 - g, which would lose what is left of it beside 1."""
    logit = tl.load(gate + head).to(tl.float32) * LOG2E
    return 1.0 / (1.0 + tl.math.exp2(-logit)), 1.0 / (1.0 + tl.math.exp2(logit))


@triton.jit
def _gated_mix_fwd(
    content, v, out, positions, gate, content_strides, v_strides, grid, heads,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, Y_ALL: tl.constexpr, X_ALL: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = (1 - g) content + g (Ay (x) Ax) v; ``out`` has the strides of ``content``."""
    grid = all_plain(grid)
    image, head, own_top, own_left, d = block_of(grid, heads, HEAD_DIM, BLOCK_D)
    y, x = own_top + tl.arange(0, SIDE), own_left + tl.arange(0, SIDE)
    along_y = axis_of(y, grid[0], positions, head, 1, Y_ALL)
    along_x = axis_of(x, grid[1], positions, head, 0, X_ALL)
    DTYPE: tl.constexpr = v.dtype.element_ty
    total = tl.zeros([SIDE, SIDE * BLOCK_D], tl.float32)  # [y, (x, d)]
    for top in tl.range(0, grid[0], SIDE):
        jy = top + tl.arange(0, SIDE)
        z = tl.zeros([SIDE, SIDE * BLOCK_D], tl.float32)  # [x, (jy, d)]
        for left in tl.range(0, grid[1], SIDE):
            jx = left + tl.arange(0, SIDE)
            at, inside = places(v_strides, image, head, grid, top, left, d, True, HEAD_DIM, BLOCK_D, ALIGN)
            rows = tl.load(v + at, mask=inside, other=0.0)
            ax = weights_of(jx[:, None] - x[None, :], (jx < grid[1])[:, None], along_x).to(DTYPE)
            z = tl.dot(tl.trans(ax), wide(rows, BLOCK_D), z, input_precision=PRECISION)
        ay = weights_of(jy[:, None] - y[None, :], (jy < grid[0])[:, None], along_y).to(DTYPE)
        total = tl.dot(tl.trans(ay), swapped(z.to(DTYPE), BLOCK_D), total, input_precision=PRECISION)
    at, inside = places(content_strides, image, head, grid, own_top, own_left, d, False, HEAD_DIM, BLOCK_D, ALIGN)
    kept = tl.load(content + at, mask=inside, other=0.0)
    g, rest = _gates(gate, head)
    result = rest * kept + g * tl.reshape(total, [SIDE * SIDE, BLOCK_D])
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_mix_bwd(
    grad, content, v, dv, partial, positions, gate, grad_strides, content_strides, v_strides, dv_strides, grid, heads,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, Y_ALL: tl.constexpr, X_ALL: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dv += g (Ay (x) Ax)^T grad; partial [programs, 4]: a program's part of dw0, dw1, dw2, dgate. Positions j are the
    program's own; i runs over the image."""
    grid = all_plain(grid)
    image, head, own_top, own_left, d = block_of(grid, heads, HEAD_DIM, BLOCK_D)
    jy, jx = own_top + tl.arange(0, SIDE), own_left + tl.arange(0, SIDE)
    in_y, in_x = (jy < grid[0])[:, None], (jx < grid[1])[:, None]
    DTYPE: tl.constexpr = v.dtype.element_ty
    at, here = places(v_strides, image, head, grid, own_top, own_left, d, True, HEAD_DIM, BLOCK_D, ALIGN)
    value = wide(tl.load(v + at, mask=here, other=0.0), BLOCK_D)  # [jx, (jy, d)]
    total = tl.zeros([SIDE, SIDE * BLOCK_D], tl.float32)  # [jx, (jy, d)]
    dw0, dw1, dw2 = 0.0, 0.0, 0.0
    for left in tl.range(0, grid[1], SIDE):
        x = left + tl.arange(0, SIDE)
        along_x, dx = axis_of(x, grid[1], positions, head, 0, X_ALL), jx[:, None] - x[None, :]
        ax = weights_of(dx, in_x, along_x)  # [jx, x]
        z = tl.dot(tl.trans(ax.to(DTYPE)), value, input_precision=PRECISION)
        z = swapped(z.to(DTYPE), BLOCK_D)  # [jy, (x, d)]
        s = tl.zeros([SIDE, SIDE * BLOCK_D], tl.float32)  # [jy, (x, d)]
        for top in tl.range(0, grid[0], SIDE):
            y = top + tl.arange(0, SIDE)
            along_y, dy = axis_of(y, grid[0], positions, head, 1, Y_ALL), jy[:, None] - y[None, :]
            ay = weights_of(dy, in_y, along_y)  # [jy, y]
            at, inside = places(grad_strides, image, head, grid, top, left, d, False, HEAD_DIM, BLOCK_D, ALIGN)
            slope = wide(tl.load(grad + at, mask=inside, other=0.0), BLOCK_D)  # [y, (x, d)]
            s = tl.dot(ay.to(DTYPE), slope, s, input_precision=PRECISION)
            to_linear = (ay * (dy - along_y[4][None, :])).to(DTYPE)
            dw1 += tl.sum(z * tl.dot(to_linear, slope, input_precision=PRECISION))
            to_square = (ay * (dy * dy - along_y[5][None, :])).to(DTYPE)
            dw2 += tl.sum(z * tl.dot(to_square, slope, input_precision=PRECISION))
        s = swapped(s.to(DTYPE), BLOCK_D)  # [x, (jy, d)]
        total = tl.dot(ax.to(DTYPE), s, total, input_precision=PRECISION)
        to_linear = (ax * (dx - along_x[4][None, :])).to(DTYPE)
        dw0 += tl.sum(value * tl.dot(to_linear, s, input_precision=PRECISION))
        to_square = (ax * (dx * dx - along_x[5][None, :])).to(DTYPE)
        dw2 += tl.sum(value * tl.dot(to_square, s, input_precision=PRECISION))
    dgate = tl.sum(value * total)
    at, here = places(grad_strides, image, head, grid, own_top, own_left, d, True, HEAD_DIM, BLOCK_D, ALIGN)
    slope = tl.load(grad + at, mask=here, other=0.0).to(tl.float32)
    at, here = places(content_strides, image, head, grid, own_top, own_left, d, True, HEAD_DIM, BLOCK_D, ALIGN)
    dgate -= tl.sum(slope * tl.load(content + at, mask=here, other=0.0))
    g, rest = _gates(gate, head)
    at, here = places(dv_strides, image, head, grid, own_top, own_left, d, True, HEAD_DIM, BLOCK_D, ALIGN)
    found = tl.load(dv + at, mask=here, other=0.0) + g * tl.reshape(total, [SIDE * SIDE, BLOCK_D])
    tl.store(dv + at, found.to(dv.dtype.element_ty), mask=here)
    sums = partial + tl.program_id(0).to(tl.int64) * 4
    tl.store(sums, g * dw0)
    tl.store(sums + 1, g * dw1)
    tl.store(sums + 2, g * dw2)
    tl.store(sums + 3, g * rest * dgate)


@choice
def gated_mix_config(itemsize, backward, arch):
    """``block_m``: the side of a block of positions; ``block_n``: channels of a head that a program takes, 32 bytes.
    Where there are no tensor cores, operands of products fill the registers of four warps."""
    return Config(SIDE.value, 16 if arch == INTERPRETER else 32 // itemsize, 8 if backward and itemsize == 4 else 4, 1)


def _problem(v, grid, backward, *operands):
    """Number of programs, and the constants of both kernels."""
    batch, _, heads, head_dim = v.shape
    config = gated_mix_config(v.element_size(), backward, arch_of(v))
    constants = dict(
        HEAD_DIM=head_dim,
        BLOCK_D=config.block_n,
        Y_ALL=max(16, triton.next_power_of_2(grid[0])),
        X_ALL=max(16, triton.next_power_of_2(grid[1])),
        ALIGN=aligned(*operands),
        PRECISION=dot_precision(v.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    blocks = triton.cdiv(grid[0], config.block_m) * triton.cdiv(grid[1], config.block_m)
    return (batch, blocks, heads, triton.cdiv(head_dim, config.block_n)), constants


def _rows(x):
    """(B, N, H, D)."""
    return dense_rows(x.transpose(1, 2))


def mix_positions(content, v, out, position_weights, gate, grid):
    """Fills ``out``, which has the strides of ``content``."""
    kept, values = _rows(content), _rows(v)
    programs, constants = _problem(v, grid, False, kept, values)
    launch(
        _gated_mix_fwd, (prod(programs),),
        content, v, out, position_weights.contiguous(), gate.contiguous(),
        kept.strides_over(constants["ALIGN"]), values.strides_over(constants["ALIGN"]),
        tuple(map(disguised, grid)), v.shape[2], **constants,
    )  # fmt: skip


def mix_positions_backward(grad, content, v, dv, position_weights, gate, grid):
    """Adds to ``dv``; the parts (B, blocks, H, chunks, 4) of the gradients of positions and gate."""
    operands = tuple(map(_rows, (grad, content, v, dv)))
    programs, constants = _problem(v, grid, True, *operands)
    partial = torch.empty(*programs, 4, dtype=torch.float32, device=v.device)
    launch(
        _gated_mix_bwd, (prod(programs),),
        grad, content, v, dv, partial, position_weights.contiguous(), gate.contiguous(),
        *(rows.strides_over(constants["ALIGN"]) for rows in operands), tuple(map(disguised, grid)), v.shape[2],
        **constants,
    )  # fmt: skip
    return partial
