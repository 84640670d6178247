"""What the kernels of the loop know when they are compiled: hooks, and one tuple of all the rest."""

import functools
from typing import NamedTuple

import triton
import triton.language as tl

from ..machine.architecture import arch_of
from ..machine.blocks import Config, dot_precision, head_tile
from . import scores
from .heads import head_parts, zeros
from .problem import Problem, Rows


class Loop(NamedTuple):
    """Travels as one tl.constexpr, read as LOOP.BLOCK_M.

    No field is a function: Triton keeps kernels by the text of such a tuple, in which a function is a name, and a
    hook that changes would find what the old one was compiled to. Hooks are parameters of their own.
    """

    PLAIN: tl.constexpr  # SCORE changes nothing
    CAUSAL: tl.constexpr
    HEAD_DIM: tl.constexpr
    BLOCK_D: tl.constexpr  # of the first tile of a head
    TAIL_D: tl.constexpr  # of the second, 0 where there is none
    BLOCK_M: tl.constexpr  # queries
    BLOCK_N: tl.constexpr  # keys
    KV_SHARE: tl.constexpr  # heads of q for each of k and v
    ALIGN: tl.constexpr  # what strides of q, k and v are in units of
    OUT_ALIGN: tl.constexpr  # the same for out and all gradients
    EVEN_N: tl.constexpr  # whole blocks of queries
    EVEN_M: tl.constexpr  # whole blocks of keys
    PADDED: tl.constexpr  # some tokens have no row
    PRECISION: tl.constexpr  # of products of float32


@functools.lru_cache(maxsize=1024)
def _loop(**values) -> Loop:
    if not isinstance(zeros, triton.JITFunction):  # interpreted: constants are what they are, as Triton's own
        return Loop(**values)
    return Loop(**{name: tl.constexpr(value) for name, value in values.items()})  # before 3.9 no shape takes an int


def hooked(s: Problem) -> bool:
    """Whether a score hook, unit rows or dropout take registers of their own."""
    return s.score is not scores.plain or s.cosine is not None or s.seed is not None


def _tiles(s: Problem, q: Rows) -> tuple[int, int]:
    """Widths of those that hold a head: one where lengths are those of whole rows, or each row has an address."""
    if s.cosine is not None or s.ragged:
        return head_tile(s.head_dim), 0
    return head_parts(s.head_dim, arch_of(q.tensor), hooked(s))


def loop_of(s: Problem, q: Rows, config: Config, tiles: tuple[int, int], align: int, out_align: int) -> Loop:
    """``tiles``: widths of those that hold a head."""
    return _loop(
        PLAIN=s.score is scores.plain,
        CAUSAL=s.causal,
        HEAD_DIM=s.head_dim,
        BLOCK_D=tiles[0],
        TAIL_D=tiles[1],
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        KV_SHARE=s.heads // max(s.kv_heads, 1),
        ALIGN=align,
        OUT_ALIGN=out_align,
        EVEN_N=(s.multiple or s.n) % config.block_m == 0,
        EVEN_M=(s.multiple or s.m) % config.block_n == 0,
        PADDED=s.ragged or s.padding is not None,
        PRECISION=dot_precision(q.tensor.dtype),
    )


def constants(s: Problem, q: Rows, config: Config, align: int, out_align: int) -> dict:
    """What all kernels of the loop have in common when they are launched."""
    return dict(
        Q_TOKENS=s.q_tokens,
        K_TOKENS=s.k_tokens,
        SCORE=s.score,
        LOOP=loop_of(s, q, config, _tiles(s, q), align, out_align),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
