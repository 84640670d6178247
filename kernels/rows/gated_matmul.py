"""Two matrix products of the same rows, gate and value of a gated linear unit, in one launch and two accumulators: the
rows are read once, and what is stored is their gated product."""

import torch
import triton
import triton.language as tl

from ..machine.architecture import arch_of
from ..machine.blocks import dot_precision
from ..machine.launch import launch
from .blocks import matmul_config
from .gates import gate_and_store


@triton.jit
def _gated_matmul(
    a, gate, value, args, rows, cols, inner, a_stride,
    ACT: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """a (rows, inner) with contiguous rows times gate^T and value^T, contiguous weights (cols, inner).

    Programs go down GROUP blocks of rows at a time, so that the weights stay in L2.
    """
    per_group = GROUP * tl.cdiv(cols, BLOCK_N)
    first = tl.program_id(0) // per_group * GROUP
    height = min(tl.cdiv(rows, BLOCK_M) - first, GROUP)
    row = (first + tl.program_id(0) % per_group % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(0) % per_group // height * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_at = a + row.to(tl.int64)[:, None] * a_stride + k[None, :]
    b_at = col.to(tl.int64)[None, :] * inner + k[:, None]
    gates = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    values = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, inner, BLOCK_K):
        a_mask = (row < rows)[:, None]
        b_mask = (col < cols)[None, :]
        if not EVEN_K:
            a_mask = a_mask & (start + k < inner)[None, :]
            b_mask = b_mask & (start + k < inner)[:, None]
        a_tile = tl.load(a_at + start, mask=a_mask, other=0.0)
        gates = tl.dot(a_tile, tl.load(gate + b_at + start, mask=b_mask, other=0.0), gates, input_precision=PRECISION)
        values = tl.dot(
            a_tile, tl.load(value + b_at + start, mask=b_mask, other=0.0), values, input_precision=PRECISION
        )
    gate_and_store(gates, values, row, col, rows, cols, args, ACT, EXACT)


def gated_multiply(a, gate, value, args, *, act):
    """`gate_and_store` of a @ gate^T and a @ value^T.

    Args:
        a: (rows, inner), its rows contiguous. gate, value: (cols, inner), contiguous, dtype of a.
        args: those of `gate_and_store`.
    """
    (rows, inner), cols = a.shape, gate.shape[0]
    config, block_k = matmul_config(a.element_size(), arch_of(a), heavy=True)  # half the columns, twice
    programs = triton.cdiv(rows, config.block_m) * triton.cdiv(cols, config.block_n)
    launch(
        _gated_matmul, (programs,), a, gate, value, args, rows, cols, inner, a.stride(0),
        ACT=act, EXACT=a.dtype == torch.float32, PRECISION=dot_precision(a.dtype),
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=block_k, GROUP=8, EVEN_K=inner % block_k == 0,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
