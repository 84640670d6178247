"""What the kernels of the loop know when they are compiled: hooks, and one tuple of all the rest."""

import functools
from typing import NamedTuple

import triton
import triton.language as tl

from ..machine.architecture import arch_of
from ..machine.blocks import Config, dot_precision, head_tile
from . import scores, weighing
from .heads import head_parts, zeros
from .problem import PLAIN_LOGIT, PLAIN_ROWS, Problem, Rows


class Head(NamedTuple):
    """The one or two tiles that hold the rows of a head, see heads.py."""

    DIM: tl.constexpr
    BLOCK_D: tl.constexpr  # of the first tile
    TAIL_D: tl.constexpr  # of the second, 0 where there is none


class Loop(NamedTuple):
    """Travels as one tl.constexpr, read as LOOP.BLOCK_M.

    No field is a function: Triton keeps kernels by the text of such a tuple, in which a function is a name, and a
    hook that changes would find what the old one was compiled to. Hooks are parameters of their own.
    """

    PLAIN: tl.constexpr  # nothing changes a product but its factor
    WEIGHED: tl.constexpr  # WEIGH changes what a weight counts for
    CAUSAL: tl.constexpr
    QK: Head  # of q and k
    V: Head  # of v and out
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
def constant(kind: type, **values):
    """A ``kind`` of tuple, of constants and heads. Before Triton 3.9 no shape takes an int; interpreted, constants are
    what they are."""
    if not isinstance(zeros, triton.JITFunction):
        return kind(**values)
    made = {name: constant(Head, **v._asdict()) if isinstance(v, Head) else v for name, v in values.items()}
    return kind(**{name: tl.constexpr(v) for name, v in made.items()})


def hooked(s: Problem) -> bool:
    """Whether hooks take registers of their own."""
    return (s.score, s.logit, s.norm, s.weigh) != (scores.plain, PLAIN_LOGIT, PLAIN_ROWS, weighing.plain)


def widest(s: Problem) -> int:
    """The largest head dim."""
    return max(s.head_dim, s.value_dim or 0)


def _head(s: Problem, dim: int, q: Rows) -> Head:
    """One tile where each row has an address of its own."""
    return Head(dim, *((head_tile(dim), 0) if s.ragged else head_parts(dim, arch_of(q.tensor), hooked(s))))


def loop_of(s: Problem, q: Rows, config: Config, heads: tuple[Head, Head], align: int, out_align: int) -> Loop:
    """``heads``: of q and k, and of v."""
    return constant(
        Loop,
        PLAIN=s.score is scores.plain and s.logit is PLAIN_LOGIT,
        WEIGHED=s.weigh is not weighing.plain,
        CAUSAL=s.causal,
        QK=heads[0],
        V=heads[1],
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
        NORM=s.norm.forward,
        LOGIT=s.logit.forward,
        PREPARE=s.prepare,
        SCORE=s.score,
        WEIGH=s.weigh,
        LOOP=loop_of(
            s, q, config, tuple(_head(s, d, q) for d in (s.head_dim, s.value_dim or s.head_dim)), align, out_align
        ),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
