"""Gated linear units (Shazeer, arXiv 2002.05202): hidden = act(gate) * value, forward and backward; ``pre`` holds both
halves of a row side by side, (T, 2 F), at columns ``gate_at`` and ``value_at``.

Activations are those of activations.py, and
    identity    the bilinear unit
    relu        ReGLU
    sigmoid     GLU
    silu        SwiGLU, x * sigmoid(x)
"""

import triton
import triton.language as tl

from ..machine.architecture import arch_of
from ..machine.launch import launch
from ..machine.tiles import LOG2E
from .activations import activate, activate_with_slope
from .blocks import pointwise_config
from .matmul import load_columns, tile_offsets


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.math.exp2(-x * LOG2E))


@triton.jit
def gate_of(x, ACT: tl.constexpr, EXACT: tl.constexpr):
    """The activation of x, float32."""
    if ACT == "identity":
        return x
    if ACT == "relu":
        return tl.where(x < 0.0, 0.0, x)  # NaN stays
    if ACT == "sigmoid":
        return _sigmoid(x)
    if ACT == "silu":
        return x * _sigmoid(x)
    return activate(x, ACT, EXACT)


@triton.jit
def gate_with_slope(x, ACT: tl.constexpr, EXACT: tl.constexpr):
    """The activation of x, and its derivative there; that of relu is 0 at 0."""
    if ACT == "identity":
        return x, tl.full(x.shape, 1.0, tl.float32)
    if ACT == "relu":
        return tl.where(x < 0.0, 0.0, x), tl.where(x > 0.0, 1.0, 0.0)
    if ACT == "sigmoid":
        share = _sigmoid(x)
        return share, share * (1.0 - share)
    if ACT == "silu":
        share = _sigmoid(x)
        return x * share, share + x * share * (1.0 - share)
    return activate_with_slope(x, ACT, EXACT)


@triton.jit
def gate_and_store(gate, value, row, col, rows, cols, args, ACT: tl.constexpr, EXACT: tl.constexpr):
    """hidden = act(gate + its bias) * (value + its bias), of two products [BLOCK_M, BLOCK_N].

    args (gate_bias, value_bias, pre, gate_at, value_at, hidden); ``pre``, if not None, receives both sums.
    """
    gate_bias, value_bias, pre, gate_at, value_at, hidden = args
    gate += load_columns(gate_bias, 0.0, col, cols)[None, :]
    value += load_columns(value_bias, 0.0, col, cols)[None, :]
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    if pre is not None:
        where = pre + tile_offsets(row, col, 2 * cols)
        tl.store(where + gate_at, gate.to(pre.dtype.element_ty), mask=inside)
        tl.store(where + value_at, value.to(pre.dtype.element_ty), mask=inside)
    result = gate_of(gate, ACT, EXACT) * value
    tl.store(hidden + tile_offsets(row, col, cols), result.to(hidden.dtype.element_ty), mask=inside)


@triton.jit
def gate_backward(acc, row, col, block, rows, cols, args, ACT: tl.constexpr, EXACT: tl.constexpr):
    """A hook of matmul.py, of the gradient of hidden: both halves of dpre, hidden again, and the column sums of dpre
    over this block of rows.

    args (pre, gate_at, value_at, hidden, dpre, partial); ``partial`` (blocks of rows, 2 * cols) float32.
    """
    pre, gate_at, value_at, hidden, dpre, partial = args
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    where = tile_offsets(row, col, 2 * cols)
    gate = tl.load(pre + where + gate_at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(pre + where + value_at, mask=inside, other=0.0).to(tl.float32)
    gate, slope = gate_with_slope(gate, ACT, EXACT)
    tl.store(hidden + tile_offsets(row, col, cols), (gate * value).to(hidden.dtype.element_ty), mask=inside)
    dgate = acc * value * slope  # zero outside, as the product is
    dvalue = acc * gate
    tl.store(dpre + where + gate_at, dgate.to(dpre.dtype.element_ty), mask=inside)
    tl.store(dpre + where + value_at, dvalue.to(dpre.dtype.element_ty), mask=inside)
    sums = partial + block.to(tl.int64) * (2 * cols) + col
    tl.store(sums + gate_at, tl.sum(dgate, 0), mask=col < cols)
    tl.store(sums + value_at, tl.sum(dvalue, 0), mask=col < cols)


@triton.jit
def _gate_fwd(
    pre, args, rows, cols, gate_at, value_at, ACT: tl.constexpr, EXACT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`gate_and_store` alone, on products (rows, 2 * cols) that are in memory already."""
    col_blocks = tl.cdiv(cols, BLOCK_N)
    row = tl.program_id(0) // col_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(0) % col_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    where = pre + tile_offsets(row, col, 2 * cols)
    gate = tl.load(where + gate_at, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(where + value_at, mask=inside, other=0.0).to(tl.float32)
    gate_and_store(gate, value, row, col, rows, cols, args, ACT, EXACT)


def gate_rows(pre, gate_at, value_at, hidden, *, act, exact):
    """hidden (T, F) = act(gate) * value of ``pre`` (T, 2 F), both contiguous."""
    (rows, cols), config = hidden.shape, pointwise_config(arch_of(hidden))
    launch(
        _gate_fwd, (triton.cdiv(rows, config.block_m) * triton.cdiv(cols, config.block_n),),
        pre, (None, None, None, gate_at, value_at, hidden), rows, cols, gate_at, value_at, ACT=act, EXACT=exact,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
