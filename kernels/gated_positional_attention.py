"""Gated positional self-attention (ConViT, d'Ascoli et al., arXiv 2103.10697, section 3.2, equation 7).

    out = (1 - g) softmax(scale q k^T) v + g (Ay (x) Ax) v                             g = sigmoid(gate), of each head
    Ax_ij = softmax_j(w0 dx + w2 dx^2)    Ay_ij = softmax_j(w1 dy + w2 dy^2)           dx = x_j - x_i, dy = y_j - y_i

The logits of positions are a sum over axes, so that their softmax over the grid is a product of two, and nothing is
N x N. What q and k decide is the dense attention of attention.py, as it is; a program of the kernels here mixes a block
of SIDE x SIDE positions and BLOCK_D channels of an image and head, along one axis and then the other. Legend: B images, N = grid_h grid_w
tokens, H heads, D head dim. ``positions`` (H, 3): w0, w1, w2; ``gate`` (H,).

    s = Ay^T dout    dv = (1 - g) dv_content + g Ax^T s    z = Ax v
    dw0 = g <v, (dAx / dw0)^T s>    dw1 = g <z, (dAy / dw1)^T dout>    dg = <v, Ax^T s> - <content, dout>

with dA / dw = A (d - mean d), and dw2 likewise on both axes. Each program leaves four sums, which PyTorch adds up in
order: nothing is atomic.

Launches beside those of attention: one forward; backward the factor of its gradient, this kernel, and two sums. Bytes,
in units of a tensor (B, N, H, D): forward 3 (read what attention gives, and v; write out), backward 2 for that factor
and 5 (read dout, content, v, dv; write dv). Grids above SIDE are read once for each block, out of the second-level
cache.
"""

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import Terms, _backward, _forward
from .loop.problem import aligned, dense_rows, unit_last
from .machine.architecture import INTERPRETER, arch_of
from .machine.blocks import Config, dot_precision
from .machine.choices import choice
from .machine.launch import launch
from .machine.numbers import all_plain, disguised
from .machine.tiles import LOG2E

SIDE = tl.constexpr(16)  # of a block of positions: what tl.dot takes


@triton.jit
def _block_of(grid, heads, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Of a program: image, head, first row and column of its block, channels [BLOCK_D]."""
    CHUNKS: tl.constexpr = (HEAD_DIM + BLOCK_D - 1) // BLOCK_D
    d = tl.program_id(0) % CHUNKS * BLOCK_D + tl.arange(0, BLOCK_D)
    across = tl.cdiv(grid[1], SIDE)
    blocks = tl.cdiv(grid[0], SIDE) * across
    program = tl.program_id(0) // CHUNKS
    block = program // heads % blocks
    return program // heads // blocks, program % heads, block // across * SIDE, block % across * SIDE, d


@triton.jit
def _axis(i, extent, positions, head, WHICH: tl.constexpr, ALL: tl.constexpr):
    """The softmax of positions ``i`` [SIDE] along an axis: (factors of d and d^2, in units of log2), and of each i the
    pivot, 1 / sum, mean d, mean d^2. WHICH: 0 for x, 1 for y; ALL, a power of two, holds the axis."""
    linear = tl.load(positions + head * 3 + WHICH).to(tl.float32) * LOG2E
    square = tl.load(positions + head * 3 + 2).to(tl.float32) * LOG2E
    j = tl.arange(0, ALL)
    d = (j[None, :] - i[:, None]).to(tl.float32)
    s = tl.where((j < extent)[None, :], d * (linear + square * d), float("-inf"))
    pivot = tl.max(s, 1)
    e = tl.math.exp2(s - pivot[:, None])
    inverse = 1.0 / tl.sum(e, 1)
    return linear, square, pivot, inverse, tl.sum(e * d, 1) * inverse, tl.sum(e * d * d, 1) * inverse


@triton.jit
def _weights(d, inside, axis):
    """A [SIDE, SIDE], columns i, zero where not ``inside``; ``d``: j - i."""
    linear, square, pivot, inverse, _, _ = axis
    s = tl.where(inside, d * (linear + square * d) - pivot[None, :], float("-inf"))
    return tl.math.exp2(s) * inverse[None, :]


@triton.jit
def _distance(j, i):
    """j - i, [j, i]."""
    return (j[:, None] - i[None, :]).to(tl.float32)


@triton.jit
def _places(
    strides, image, head, grid, top, left, d,
    X_FIRST: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Offsets [SIDE * SIDE, BLOCK_D] of channels of a block, and which there are; X_FIRST: y runs fastest."""
    r = tl.arange(0, SIDE * SIDE)
    if X_FIRST:
        y, x = top + r % SIDE, left + r // SIDE
    else:
        y, x = top + r // SIDE, left + r % SIDE
    start = image.to(tl.int64) * strides[1][0] + head.to(tl.int64) * strides[0]
    at = (start + (y * grid[1] + x).to(tl.int64) * strides[1][1]) * ALIGN
    inside = ((y < grid[0]) & (x < grid[1]))[:, None]
    if HEAD_DIM % BLOCK_D != 0:
        inside = inside & (d < HEAD_DIM)[None, :]
    return at[:, None] + d[None, :], inside


@triton.jit
def _wide(rows, BLOCK_D: tl.constexpr):
    """[SIDE * SIDE, BLOCK_D] -> [SIDE, SIDE * BLOCK_D]."""
    return tl.reshape(rows, [SIDE, SIDE * BLOCK_D])


@triton.jit
def _swapped(tile, BLOCK_D: tl.constexpr):
    """[first, (second, d)] -> [second, (first, d)]."""
    return _wide(tl.permute(tl.reshape(tile, [SIDE, SIDE, BLOCK_D]), (1, 0, 2)), BLOCK_D)


@triton.jit
def _total(tile):
    return tl.sum(tl.sum(tile, 1), 0)


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
    image, head, own_top, own_left, d = _block_of(grid, heads, HEAD_DIM, BLOCK_D)
    y, x = own_top + tl.arange(0, SIDE), own_left + tl.arange(0, SIDE)
    along_y = _axis(y, grid[0], positions, head, 1, Y_ALL)
    along_x = _axis(x, grid[1], positions, head, 0, X_ALL)
    DTYPE: tl.constexpr = v.dtype.element_ty
    total = tl.zeros([SIDE, SIDE * BLOCK_D], tl.float32)  # [y, (x, d)]
    for top in tl.range(0, grid[0], SIDE):
        jy = top + tl.arange(0, SIDE)
        z = tl.zeros([SIDE, SIDE * BLOCK_D], tl.float32)  # [x, (jy, d)]
        for left in tl.range(0, grid[1], SIDE):
            jx = left + tl.arange(0, SIDE)
            at, inside = _places(v_strides, image, head, grid, top, left, d, True, HEAD_DIM, BLOCK_D, ALIGN)
            rows = tl.load(v + at, mask=inside, other=0.0)
            ax = _weights(_distance(jx, x), (jx < grid[1])[:, None], along_x).to(DTYPE)
            z = tl.dot(tl.trans(ax), _wide(rows, BLOCK_D), z, input_precision=PRECISION)
        ay = _weights(_distance(jy, y), (jy < grid[0])[:, None], along_y).to(DTYPE)
        total = tl.dot(tl.trans(ay), _swapped(z.to(DTYPE), BLOCK_D), total, input_precision=PRECISION)
    at, inside = _places(content_strides, image, head, grid, own_top, own_left, d, False, HEAD_DIM, BLOCK_D, ALIGN)
    kept = tl.load(content + at, mask=inside, other=0.0).to(tl.float32)
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
    image, head, own_top, own_left, d = _block_of(grid, heads, HEAD_DIM, BLOCK_D)
    jy, jx = own_top + tl.arange(0, SIDE), own_left + tl.arange(0, SIDE)
    in_y, in_x = (jy < grid[0])[:, None], (jx < grid[1])[:, None]
    DTYPE: tl.constexpr = v.dtype.element_ty
    at, here = _places(v_strides, image, head, grid, own_top, own_left, d, True, HEAD_DIM, BLOCK_D, ALIGN)
    value = _wide(tl.load(v + at, mask=here, other=0.0), BLOCK_D)  # [jx, (jy, d)]
    total = tl.zeros([SIDE, SIDE * BLOCK_D], tl.float32)  # [jx, (jy, d)]
    dw0, dw1, dw2 = 0.0, 0.0, 0.0
    for left in tl.range(0, grid[1], SIDE):
        x = left + tl.arange(0, SIDE)
        along_x, dx = _axis(x, grid[1], positions, head, 0, X_ALL), _distance(jx, x)
        ax = _weights(dx, in_x, along_x)  # [jx, x]
        z = tl.dot(tl.trans(ax.to(DTYPE)), value, input_precision=PRECISION)
        z = _swapped(z.to(DTYPE), BLOCK_D)  # [jy, (x, d)]
        s = tl.zeros([SIDE, SIDE * BLOCK_D], tl.float32)  # [jy, (x, d)]
        for top in tl.range(0, grid[0], SIDE):
            y = top + tl.arange(0, SIDE)
            along_y, dy = _axis(y, grid[0], positions, head, 1, Y_ALL), _distance(jy, y)
            ay = _weights(dy, in_y, along_y)  # [jy, y]
            at, inside = _places(grad_strides, image, head, grid, top, left, d, False, HEAD_DIM, BLOCK_D, ALIGN)
            slope = _wide(tl.load(grad + at, mask=inside, other=0.0), BLOCK_D)  # [y, (x, d)]
            s = tl.dot(ay.to(DTYPE), slope, s, input_precision=PRECISION)
            to_linear = (ay * (dy - along_y[4][None, :])).to(DTYPE)
            dw1 += _total(z.to(tl.float32) * tl.dot(to_linear, slope, input_precision=PRECISION))
            to_square = (ay * (dy * dy - along_y[5][None, :])).to(DTYPE)
            dw2 += _total(z.to(tl.float32) * tl.dot(to_square, slope, input_precision=PRECISION))
        s = _swapped(s.to(DTYPE), BLOCK_D)  # [x, (jy, d)]
        total = tl.dot(ax.to(DTYPE), s, total, input_precision=PRECISION)
        to_linear = (ax * (dx - along_x[4][None, :])).to(DTYPE)
        dw0 += _total(value.to(tl.float32) * tl.dot(to_linear, s, input_precision=PRECISION))
        to_square = (ax * (dx * dx - along_x[5][None, :])).to(DTYPE)
        dw2 += _total(value.to(tl.float32) * tl.dot(to_square, s, input_precision=PRECISION))
    dgate = _total(value.to(tl.float32) * total)
    at, here = _places(grad_strides, image, head, grid, own_top, own_left, d, True, HEAD_DIM, BLOCK_D, ALIGN)
    slope = tl.load(grad + at, mask=here, other=0.0).to(tl.float32)
    at, here = _places(content_strides, image, head, grid, own_top, own_left, d, True, HEAD_DIM, BLOCK_D, ALIGN)
    dgate -= _total(slope * tl.load(content + at, mask=here, other=0.0).to(tl.float32))
    g, rest = _gates(gate, head)
    at, here = _places(dv_strides, image, head, grid, own_top, own_left, d, True, HEAD_DIM, BLOCK_D, ALIGN)
    found = tl.load(dv + at, mask=here, other=0.0).to(tl.float32) + g * tl.reshape(total, [SIDE * SIDE, BLOCK_D])
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


def _parts(qk, v):
    """q, k and v, (B, H, N, D) each."""
    return *qk.permute(2, 0, 3, 1, 4).unbind(0), v.transpose(1, 2)


def _terms(scale):
    return Terms(None, None, None, None, None, scale, False, 0.0, 0.0)


def gated_positional_attention_outputs(qk, v, position_weights, gate, grid_h, grid_w, scale):
    """out and what attention by content gives, (B, N, H, D) both; its lse (B, H, N) float32."""
    batch, tokens, heads, _ = v.shape
    return v.new_empty(v.shape), v.new_empty(v.shape), v.new_empty(batch, heads, tokens, dtype=torch.float32)


def gated_positional_attention_forward(
    qk: Tensor, v: Tensor, position_weights: Tensor, gate: Tensor, grid_h: int, grid_w: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """qk (B, N, 2, H, D), v (B, N, H, D) of any strides -> out, content, lse."""
    out, content, lse = gated_positional_attention_outputs(qk, v, position_weights, gate, grid_h, grid_w, scale)
    qk, v = unit_last(qk), unit_last(v)
    _forward(*_parts(qk, v), content, lse, _terms(scale))
    run_mix(content, v, out, position_weights, gate, (grid_h, grid_w))
    return out, content, lse


def run_mix(content, v, out, position_weights, gate, grid):
    """Fills ``out``, which has the strides of ``content``."""
    kept, values = _rows(content), _rows(v)
    programs, constants = _problem(v, grid, False, kept, values)
    launch(
        _gated_mix_fwd, (prod(programs),),
        content, v, out, position_weights.contiguous(), gate.contiguous(),
        kept.strides_over(constants["ALIGN"]), values.strides_over(constants["ALIGN"]),
        tuple(map(disguised, grid)), v.shape[2], **constants,
    )  # fmt: skip


def gated_positional_attention_gradients(
    grad, out, content, lse, qk, v, position_weights, gate, grid_h, grid_w, scale, needs
):
    """dqk and dv, contiguous, and those of position_weights and gate."""
    return tuple(x.new_empty(x.shape) for x in (qk, v, position_weights, gate))


def gated_positional_attention_backward(
    grad: Tensor,
    out: Tensor,
    content: Tensor,
    lse: Tensor,
    qk: Tensor,
    v: Tensor,
    position_weights: Tensor,
    gate: Tensor,
    grid_h: int,
    grid_w: int,
    scale: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `gated_positional_attention_forward`; deterministic."""
    dqk, dv = qk.new_empty(qk.shape), v.new_empty(v.shape)
    qk, v, grad = unit_last(qk), unit_last(v), unit_last(grad)
    rest = torch.sigmoid(-gate.float())[:, None]  # 1 - g loses what is left of it beside 1
    of_content = torch.mul(grad, rest, out=grad.new_empty(grad.shape))
    _backward(of_content, content, lse, *_parts(qk, v), *_parts(dqk, dv), None, None, _terms(scale), False, False)
    partial = run_mix_backward(grad, content, v, dv, position_weights, gate, (grid_h, grid_w))
    dweights = partial[..., :3].sum((0, 1, 3)).to(position_weights.dtype)
    return dqk, dv, dweights, partial[..., 3].sum((0, 1, 3)).to(gate.dtype)


def run_mix_backward(grad, content, v, dv, position_weights, gate, grid):
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
