"""Streaming attention, forward, as Hopper would have it: the loop of stream.py with tiles that come through tensor
descriptors, in bulk copies that one warp starts, and a loop that the compiler divides among producer and consumer
warps (FlashAttention-3, arXiv 2407.08608, section 3.1).

Dense attention alone: plain, or with one dense bias or additive mask. Whether a launch comes here is said by `takes`.
Legend: see stream.py.
"""

import triton
import triton.language as tl

from ..machine.architecture import INTERPRETER, arch_of
from ..machine.blocks import head_tile
from ..machine.choices import choice
from ..machine.launch import launch
from ..machine.switch import Switch
from ..machine.tiles import LOG2E, softmax_step
from . import scores, starts, tokens
from .blocks import stream_hopper_config
from .constants import Head, hooked, loop_of
from .heads import store_softmax
from .problem import Problem, Rows, aligned

START = 16  # bytes: every row that a descriptor reaches starts at a multiple
# (head tile, whether there is a bias) -> fewest queries and keys from which this kernel was measured to be faster than
# that of stream.py on sm_90. UNMEASURED: no GPU has timed it, so nothing is here and the pointer kernel runs.
DESCRIPTORS_FROM = {}
_asked = Switch(None)


@triton.jit
def _described(
    operand, group, head, rows, columns,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Blocks [BLOCK, COLUMNS] of the rows of one (group, head), both int64: zero from ``rows`` and ``columns`` on.
    operand (pointer, stride of heads, (group, row)) in units of ALIGN. Made in the kernel: tiles of descriptors that
    come from the host are not divided among groups of warps (triton-lang/triton issue 11587).
    """
    pointer, head_stride, strides = operand
    start = pointer + (group * strides[0] + head * head_stride) * ALIGN
    step = tl.cast(strides[1], tl.int64) * ALIGN
    return tl.make_tensor_descriptor(start, [rows, columns], [step, 1], [BLOCK, COLUMNS])


@triton.jit
def _stream_hopper_fwd(
    q, k, v, bias, out, lse, heads, N, M, scale,
    BIAS_ALIGN: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    blocks = tl.cdiv(N, LOOP.BLOCK_M)
    block, row = pid % blocks, (pid // blocks).to(tl.int64)  # row: (group, head)
    group, head = row // heads, row % heads
    kv_head = head // LOOP.KV_SHARE
    all_queries = _described(q, group, head, N, LOOP.QK.DIM, LOOP.BLOCK_M, LOOP.QK.BLOCK_D, LOOP.ALIGN)
    all_keys = _described(k, group, kv_head, M, LOOP.QK.DIM, LOOP.BLOCK_N, LOOP.QK.BLOCK_D, LOOP.ALIGN)
    all_values = _described(v, group, kv_head, M, LOOP.V.DIM, LOOP.BLOCK_N, LOOP.V.BLOCK_D, LOOP.ALIGN)
    if not LOOP.PLAIN:
        all_biases = _described(bias, group, head, N, M, LOOP.BLOCK_M, LOOP.BLOCK_N, BIAS_ALIGN)

    queries = all_queries.load([block * LOOP.BLOCK_M, 0])  # [BLOCK_M, BLOCK_D]
    factor = scale * LOG2E
    maximum = tl.full([LOOP.BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([LOOP.BLOCK_M], tl.float32)
    acc = tl.zeros([LOOP.BLOCK_M, LOOP.V.BLOCK_D], tl.float32)
    for start in tl.range(0, M, LOOP.BLOCK_N, warp_specialize=True):
        keys = all_keys.load([start, 0])
        s = tl.dot(queries, tl.trans(keys))  # [BLOCK_M, BLOCK_N]
        if not LOOP.PLAIN:
            s = s * factor + all_biases.load([block * LOOP.BLOCK_M, start]).to(tl.float32) * LOG2E
        if not LOOP.EVEN_M:  # in every turn: a last turn of its own would be work for the warps that only load
            s = tl.where((start + tl.arange(0, LOOP.BLOCK_N))[None, :] < M, s, float("-inf"))
        weights, maximum, shrink = softmax_step(s, factor, maximum, LOOP.PLAIN)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        values = all_values.load([start, 0])
        acc = tl.dot(weights.to(v[0].dtype.element_ty), values, acc)

    qi = block * LOOP.BLOCK_M + tl.arange(0, LOOP.BLOCK_M)
    store_softmax(out, lse, (), maximum, total, (acc,), group, head, qi, N, tokens.dense, LOOP)


def _reached(rows: Rows) -> bool:
    """Whether a descriptor reaches the rows of a tensor."""
    repeated = rows.strides[1] == 0 and rows.tensor.shape[2] > 1
    wide = aligned(rows) * rows.tensor.element_size() == START
    return wide and rows.tensor.data_ptr() % START == 0 and not repeated


def _bias(s: Problem) -> Rows | None:
    """The one dense term of a problem, of at most 4 bytes an element, which is added to its logits."""
    if s.score is not scores.terms or len(s.score_args) != 1:
        return None
    term, (group, head, query, key) = s.score_args[0][:2]
    added = term.is_floating_point() and term.element_size() <= 4 and query > 0 and key == 1
    return Rows(term, head, (group, query)) if added else None


def descriptors(asked: bool | None):
    """Within the block this kernel runs wherever it can (True) or nowhere (False), whatever was measured."""
    return _asked.set(asked)


@choice
def takes_descriptors(head_dim, itemsize, arch, queries, keys, biased):
    """Whether dense attention of such a size comes here: where `DESCRIPTORS_FROM` says that it pays, which is nowhere
    as long as that is unmeasured, or where `descriptors` asks for it."""
    if itemsize != 2 or head_dim % 8 or not 32 < head_dim <= 128 or arch not in (90, INTERPRETER):
        return False
    if _asked.value is not None:
        return _asked.value
    return min(queries, keys) >= DESCRIPTORS_FROM.get((head_tile(head_dim), biased), float("inf"))


def takes(s: Problem, *operands: Rows) -> bool:
    """Whether dense attention on q, k and v comes here: `takes_descriptors` says so, and descriptors reach all rows."""
    tensor, bias = operands[0].tensor, _bias(s)
    if s.causal or s.m == 0 or s.value_dim is not None or s.start is not starts.empty:
        return False
    if hooked(s if bias is None else s._replace(score=scores.plain)):
        return False
    arch, itemsize = arch_of(tensor), tensor.element_size()
    if not takes_descriptors(s.head_dim, itemsize, arch, s.n, s.m, bias is not None):
        return False
    return all(map(_reached, operands if bias is None else (*operands, bias)))


def stream_hopper_forward(s: Problem, q: Rows, k: Rows, v: Rows, out: Rows, lse: Rows) -> None:
    """`stream.stream_forward` for what `takes` accepts."""
    bias = _bias(s)
    config = stream_hopper_config(s.head_dim, arch_of(q.tensor), bias is not None)
    align, out_align, bias_align = aligned(q, k, v), aligned(out), 1 if bias is None else aligned(bias)

    head = Head(s.head_dim, head_tile(s.head_dim), 0)

    def placed(rows: Rows):
        tensor, head, (group, token) = rows.over(align)
        return tensor, head, (group, token or START)  # a single token has no stride, and a descriptor wants one

    launch(
        _stream_hopper_fwd, (triton.cdiv(s.n, config.block_m) * s.groups * s.heads,),
        placed(q), placed(k), placed(v), None if bias is None else bias.over(bias_align),
        out.over(out_align), lse.over(1), s.heads, s.n, s.m, s.scale,
        BIAS_ALIGN=bias_align, LOOP=loop_of(s, q, config, (head, head), align, out_align),
        num_warps=config.num_warps, num_stages=config.num_stages, scratch=True,
    )  # fmt: skip
