"""Matrix product whose result passes through a hook before it is stored.

    EPILOGUE(acc, row, col, block, rows, cols, args, ACT, EXACT)

with ``acc`` [BLOCK_M, BLOCK_N] float32 the product, ``row`` [BLOCK_M] and ``col`` [BLOCK_N] int32 its place,
``block`` the index of the block of rows, ``rows`` and ``cols`` the size of the whole, ``args`` the hook's own tuple,
``ACT`` and ``EXACT`` as in activations.py. The hook stores.
`_pointwise` feeds the same hooks from a product that is in memory already, cuBLAS's.
"""

import torch
import triton
import triton.language as tl

from ..machine.architecture import arch_of
from ..machine.blocks import dot_precision
from ..machine.launch import launch
from .blocks import matmul_config, pointwise_config


@triton.jit
def tile_offsets(row, col, cols):
    """Offsets [BLOCK_M, BLOCK_N] of a tile of a contiguous matrix with ``cols`` columns."""
    return row.to(tl.int64)[:, None] * cols + col[None, :]


@triton.jit
def load_columns(pointer, default: tl.constexpr, col, cols):
    """[BLOCK_N] float32, one value per column; ``default`` where there is no pointer."""
    if pointer is None:
        return tl.full(col.shape, default, tl.float32)
    else:
        return tl.load(pointer + col, mask=col < cols, other=0.0).to(tl.float32)


@triton.jit
def _matmul(
    a, b, args, rows, cols, inner, a_stride, b_inner_stride, b_col_stride,
    EPILOGUE: tl.constexpr, ACT: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """a (rows, inner) with contiguous rows times b (inner, cols).

    Programs go down GROUP blocks of rows at a time, so that b stays in L2.
    """
    row_blocks = tl.cdiv(rows, BLOCK_M)
    per_group = GROUP * tl.cdiv(cols, BLOCK_N)
    first = tl.program_id(0) // per_group * GROUP
    height = min(row_blocks - first, GROUP)
    block = first + tl.program_id(0) % per_group % height
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(0) % per_group // height * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_at = a + row.to(tl.int64)[:, None] * a_stride + k[None, :]
    b_at = b + col.to(tl.int64)[None, :] * b_col_stride + k.to(tl.int64)[:, None] * b_inner_stride
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, inner, BLOCK_K):
        a_mask = (row < rows)[:, None]
        b_mask = (col < cols)[None, :]
        if not EVEN_K:
            a_mask = a_mask & (start + k < inner)[None, :]
            b_mask = b_mask & (start + k < inner)[:, None]
        a_tile = tl.load(a_at, mask=a_mask, other=0.0)
        b_tile = tl.load(b_at, mask=b_mask, other=0.0)
        acc = tl.dot(a_tile, b_tile, acc, input_precision=PRECISION)
        a_at += BLOCK_K
        b_at += BLOCK_K * tl.cast(b_inner_stride, tl.int64)
    EPILOGUE(acc, row, col, block, rows, cols, args, ACT, EXACT)


@triton.jit
def _pointwise(
    product, args, rows, cols, EPILOGUE: tl.constexpr, ACT: tl.constexpr, EXACT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The hook alone, on a contiguous ``product`` (rows, cols)."""
    col_blocks = tl.cdiv(cols, BLOCK_N)
    block = tl.program_id(0) // col_blocks
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(0) % col_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (row < rows)[:, None] & (col < cols)[None, :]
    acc = tl.load(product + tile_offsets(row, col, cols), mask=inside, other=0.0).to(tl.float32)
    EPILOGUE(acc, row, col, block, rows, cols, args, ACT, EXACT)


def row_blocks(rows, like, own):
    """Blocks of rows that `multiply` cuts ``rows`` into: the number of partial sums that a hook leaves."""
    arch = arch_of(like)
    config = matmul_config(like.element_size(), arch)[0] if own else pointwise_config(arch)
    return triton.cdiv(rows, config.block_m)


def pointwise(product, epilogue, args, *, act="gelu", exact=False):
    """EPILOGUE(product) for a contiguous product (rows, cols)."""
    rows, cols = product.shape
    config = pointwise_config(arch_of(product))
    launch(
        _pointwise, (triton.cdiv(rows, config.block_m) * triton.cdiv(cols, config.block_n),), product, args, rows, cols,
        EPILOGUE=epilogue, ACT=act, EXACT=exact,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def multiply(a, b, epilogue, args, *, own, act="gelu", heavy=False):
    """EPILOGUE(a @ b): by the kernel above if ``own``, else by cuBLAS and one pointwise kernel.

    Args:
        a: (rows, inner), its rows contiguous. b: (inner, cols), one of its strides 1, dtype of a.
        args: the hook's tuple. heavy: the hook holds several tiles at once.
    """
    exact = a.dtype == torch.float32
    if not own:
        pointwise(torch.mm(a, b), epilogue, args, act=act, exact=exact)
        return
    (rows, inner), cols = a.shape, b.shape[1]
    config, block_k = matmul_config(a.element_size(), arch_of(a), heavy)
    launch(
        _matmul, (triton.cdiv(rows, config.block_m) * triton.cdiv(cols, config.block_n),),
        a, b, args, rows, cols, inner, a.stride(0), b.stride(0), b.stride(1),
        EPILOGUE=epilogue, ACT=act, EXACT=exact, PRECISION=dot_precision(a.dtype),
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=block_k, GROUP=8, EVEN_K=inner % block_k == 0,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
