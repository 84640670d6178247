"""Streaming attention, forward, as Hopper would have it: the loop of stream.py with rows that come through tensor
descriptors, in bulk copies that one warp starts, and a loop that the compiler divides among producer and consumer
warps (FlashAttention-3, arXiv 2407.08608, section 3.1).

Dense attention alone, without a hook, dropout or a causal mask. Whether a launch comes here is said by `takes`, and by
the table in configs.py behind it. Legend: see stream.py.
"""

import triton
import triton.language as tl

from . import configs, tokens
from .launch import launch
from .problem import Problem, Rows, aligned
from .stream import hooked
from .tiles import LOG2E, softmax_step, store_softmax

ROW_BYTES = 16  # every row that a descriptor reaches starts at a multiple


@triton.jit
def _described(
    pointer, strides, group, head, count,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Blocks [BLOCK, BLOCK_D] of the rows of one (group, head), both int64: zero from ``count`` and HEAD_DIM on."""
    start = pointer + (group * strides[1][0] + head * strides[0]) * ALIGN
    step = tl.cast(strides[1][1], tl.int64) * ALIGN
    return tl.make_tensor_descriptor(start, [count, HEAD_DIM], [step, 1], [BLOCK, BLOCK_D])


@triton.jit
def _stream_hopper_fwd(
    q, k, v, out, lse, q_strides, k_strides, v_strides, out_strides, lse_strides, heads, N, M, scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, KV_SHARE: tl.constexpr,
    ALIGN: tl.constexpr, OUT_ALIGN: tl.constexpr, EVEN_M: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, BLOCK_M)
    block, row = pid % blocks, (pid // blocks).to(tl.int64)  # row: (group, head)
    group, head = row // heads, row % heads
    kv_head = head // KV_SHARE
    all_queries = _described(q, q_strides, group, head, N, HEAD_DIM, BLOCK_D, BLOCK_M, ALIGN)
    all_keys = _described(k, k_strides, group, kv_head, M, HEAD_DIM, BLOCK_D, BLOCK_N, ALIGN)
    all_values = _described(v, v_strides, group, kv_head, M, HEAD_DIM, BLOCK_D, BLOCK_N, ALIGN)

    queries = all_queries.load([block * BLOCK_M, 0])  # [BLOCK_M, BLOCK_D]
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in tl.range(0, M, BLOCK_N, warp_specialize=True):
        keys = all_keys.load([start, 0])
        s = tl.dot(queries, tl.trans(keys))  # [BLOCK_M, BLOCK_N]
        if not EVEN_M:  # in every turn: a last turn of its own would be work for the warps that only load
            s = tl.where((start + tl.arange(0, BLOCK_N))[None, :] < M, s, float("-inf"))
        weights, maximum, total, acc = softmax_step(s, scale * LOG2E, maximum, total, acc, True)
        values = all_values.load([start, 0])
        acc = tl.dot(weights.to(v.dtype.element_ty), values, acc)

    qi = block * BLOCK_M + tl.arange(0, BLOCK_M)
    store_softmax(
        out, lse, out_strides, lse_strides, (), maximum, total, acc, group, head, qi, N,
        tokens.dense, HEAD_DIM, BLOCK_D, OUT_ALIGN, False,
    )  # fmt: skip


def takes(s: Problem, *operands: Rows) -> bool:
    """Whether dense attention on q, k and v comes here: `configs.takes_descriptors` says so, and descriptors reach
    their rows."""
    tensor = operands[0].tensor
    arch, itemsize = configs.arch_of(tensor), tensor.element_size()
    if not configs.takes_descriptors(s.head_dim, itemsize, arch, s.n, s.m, hooked(s) or s.causal):
        return False
    repeated = any(rows.strides[1] == 0 and rows.tensor.shape[2] > 1 for rows in operands)
    starts = {rows.tensor.data_ptr() % ROW_BYTES for rows in operands}
    return s.m > 0 and starts == {0} and aligned(*operands) * itemsize == ROW_BYTES and not repeated


def stream_hopper_forward(s: Problem, q: Rows, k: Rows, v: Rows, out: Rows, lse: Rows) -> None:
    """`stream.stream_forward` for what `takes` accepts."""
    config = configs.stream_hopper_config(s.head_dim, configs.arch_of(q.tensor))
    align, out_align = aligned(q, k, v), aligned(out)

    def placed(rows: Rows):
        head, (group, token) = rows.over(align)
        return head, (group, token or ROW_BYTES)  # a single token has no stride, and a descriptor wants one

    launch(
        _stream_hopper_fwd, (triton.cdiv(s.n, config.block_m) * s.groups * s.heads,),
        q.tensor, k.tensor, v.tensor, out.tensor, lse.tensor,
        placed(q), placed(k), placed(v), out.over(out_align), lse.over(1), s.heads, s.n, s.m, s.scale,
        HEAD_DIM=s.head_dim, BLOCK_D=configs.head_tile(s.head_dim), BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        KV_SHARE=s.heads // max(s.kv_heads, 1), ALIGN=align, OUT_ALIGN=out_align, EVEN_M=s.m % config.block_n == 0,
        num_warps=config.num_warps, num_stages=config.num_stages, scratch=True,
    )  # fmt: skip
