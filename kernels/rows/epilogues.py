"""What happens to a block of a matrix product before it is stored: the hooks of matmul.py, with its signature."""

import triton
import triton.language as tl

from .activations import activate, activate_with_slope
from .matmul import load_columns, tile_offsets


@triton.jit
def store(acc, row, col, block, rows, cols, args, ACT: tl.constexpr, EXACT: tl.constexpr):
    """args (bias, out)."""
    bias, out = args
    acc += load_columns(bias, 0.0, col, cols)[None, :]
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    tl.store(out + tile_offsets(row, col, cols), acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activate_and_store(acc, row, col, block, rows, cols, args, ACT: tl.constexpr, EXACT: tl.constexpr):
    """out = act(product + bias). args (bias, pre, out); ``pre``, if not None, receives the activation's argument."""
    bias, pre, out = args
    acc += load_columns(bias, 0.0, col, cols)[None, :]
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    where = tile_offsets(row, col, cols)
    if pre is not None:
        tl.store(pre + where, acc.to(pre.dtype.element_ty), mask=inside)
    tl.store(out + where, activate(acc, ACT, EXACT).to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_residual(acc, row, col, block, rows, cols, args, ACT: tl.constexpr, EXACT: tl.constexpr):
    """out = base + row_scale * layer_scale * (product + bias).

    Args (bias, layer_scale, row_scale, base, base_stride, sample_rows, out).
    """
    bias, layer_scale, row_scale, base, base_stride, sample_rows, out = args
    acc += load_columns(bias, 0.0, col, cols)[None, :]
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    if layer_scale is not None:
        acc *= load_columns(layer_scale, 1.0, col, cols)[None, :]
    if row_scale is not None:
        acc *= tl.load(row_scale + row // sample_rows, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    if base is not None:
        acc += tl.load(base + tile_offsets(row, col, base_stride), mask=inside, other=0.0).to(tl.float32)
    tl.store(out + tile_offsets(row, col, cols), acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activation_backward(acc, row, col, block, rows, cols, args, ACT: tl.constexpr, EXACT: tl.constexpr):
    """dpre = product * act'(pre), hidden = act(pre), and the column sums of dpre over this block of rows.

    args (pre, hidden, dpre, partial); ``partial`` (blocks of rows, cols) float32.
    """
    pre, hidden, dpre, partial = args
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    where = tile_offsets(row, col, cols)
    value, slope = activate_with_slope(tl.load(pre + where, mask=inside, other=0.0).to(tl.float32), ACT, EXACT)
    tl.store(hidden + where, value.to(hidden.dtype.element_ty), mask=inside)
    acc *= slope  # zero outside, as the product is
    tl.store(dpre + where, acc.to(dpre.dtype.element_ty), mask=inside)
    tl.store(partial + block.to(tl.int64) * cols + col, tl.sum(acc, 0), mask=col < cols)


@triton.jit
def scale_gradient(acc, row, col, block, rows, cols, args, ACT: tl.constexpr, EXACT: tl.constexpr):
    """Gradient of layer_scale: column sums of grad * row_scale * (product + bias).

    args (bias, row_scale, grad, grad_stride, sample_rows, partial); ``partial`` (blocks of rows, cols) float32.
    """
    bias, row_scale, grad, grad_stride, sample_rows, partial = args
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    acc += load_columns(bias, 0.0, col, cols)[None, :]
    acc *= tl.load(grad + tile_offsets(row, col, grad_stride), mask=inside, other=0.0).to(tl.float32)  # zero outside
    if row_scale is not None:
        acc *= tl.load(row_scale + row // sample_rows, mask=row < rows, other=0.0).to(tl.float32)[:, None]
    tl.store(partial + block.to(tl.int64) * cols + col, tl.sum(acc, 0), mask=col < cols)
