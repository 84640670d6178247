"""Additive attention (Bahdanau et al., arXiv 1409.0473, appendix A.1.2): a score is a small perceptron of a query and a
key.

    s_ij = sum_f w_f tanh(q_if + k_jf)     P = softmax_j(s)     out = P v
    dS = P (dO v^T - rowsum(dO O))     dq_if = w_f sum_j dS_ij (1 - tanh^2)     dk_jf alike     dw_f = sum_ij dS_ij tanh

Legend: B sequences, H heads, N queries, M keys, F hidden features, D width of values. No tensor of N x M, nor of
N x M x F: the features are a loop around tiles of scores in registers.

Launches: one forward, two backward, and PyTorch's copies of q and k to (B, H, F, N), where tokens lie side by side.
Bytes are nothing beside the work: for each of N M F terms half precision has 1 special function and 4 multiplications
and additions forward, twice 1 and 9 backward; float32 has 2, a division and 12, for a tanh that is exact. A GPU has 8
multiply-adds for a special function, so that these are the floor. Sums are float32 in a fixed order; nothing is atomic.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .additive.blocks import additive_backward_config, additive_forward_config
from .additive.features import are_near, place_of, seen_keys, tile_scores, tile_slopes, tokens_of
from .loop.problem import Rows, aligned, dense_rows, unit_last
from .machine.architecture import arch_of
from .machine.blocks import dot_precision, head_tile
from .machine.launch import launch
from .machine.tiles import load_rows, softmax_step, store_rows


@triton.jit
def _additive_fwd(
    q, k, v, weight, mask, out, lse, v_strides, out_strides, heads, N, M, features,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """lse (B, H, N) in units of log2, inf where a query sees no key."""
    row, sequence, head, i = tokens_of(N, heads, BLOCK_M)
    near = are_near(q, row, i, N, features, EXACT)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in tl.range(0, M, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        both = near & are_near(k, row, j, M, features, EXACT)
        s = tile_scores(q, k, weight, row, head, i, j, N, M, features, both, EXACT)
        s = tl.where(seen_keys(mask, sequence, j, M)[None, :], s, float("-inf"))
        weights, maximum, shrink = softmax_step(s, 1.0, maximum, False)
        total = total * shrink + tl.sum(weights, 1)
        values = load_rows(v, place_of(v_strides, sequence, head, j), j < M, HEAD_DIM, ALIGN, 0, BLOCK_D)
        acc = acc * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    pivot = tl.where(empty, float("inf"), maximum + tl.math.log2(total))
    tl.store(lse + row.to(tl.int64) * N + i, pivot, mask=i < N)
    acc = acc * (1.0 / total)[:, None]
    store_rows(out, place_of(out_strides, sequence, head, i), acc, i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)


@triton.jit
def _additive_bwd_queries(
    q, k, v, weight, mask, out, grad, lse, delta, dq, dweight, v_strides, out_strides, grad_strides, heads, N, M,
    features,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
    FEATURES: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """delta (B, H, N) and dq (B, H, N, F); dweight (B, H, blocks, F), what each program has of dw. It owns BLOCK_M
    queries and a share of FEATURES features."""
    share = tl.program_id(1)
    row, sequence, head, i = tokens_of(N, heads, BLOCK_M)
    near = are_near(q, row, i, N, features, EXACT)
    grads = load_rows(grad, place_of(grad_strides, sequence, head, i), i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)
    outs = load_rows(out, place_of(out_strides, sequence, head, i), i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)
    deltas = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    at = row.to(tl.int64) * N + i
    tl.store(delta + at, deltas, mask=i < tl.where(share == 0, N, 0))
    pivot = tl.load(lse + at, mask=i < N, other=float("inf"))
    slopes = tl.zeros([BLOCK_M, FEATURES], tl.float32)
    hidden = tl.zeros([BLOCK_M, FEATURES], tl.float32)
    for start in tl.range(0, M, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        both = near & are_near(k, row, j, M, features, EXACT)
        s = tile_scores(q, k, weight, row, head, i, j, N, M, features, both, EXACT)
        p = tl.where(seen_keys(mask, sequence, j, M)[None, :], tl.math.exp2(s - pivot[:, None]), 0.0)
        values = load_rows(v, place_of(v_strides, sequence, head, j), j < M, HEAD_DIM, ALIGN, 0, BLOCK_D)
        dp = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        ds = p * (dp - deltas[:, None])
        slope, value = tile_slopes(ds, q, k, row, i, j, N, M, features, share * FEATURES, both, FEATURES, EXACT)
        slopes += slope
        hidden += value
    f = share * FEATURES + tl.arange(0, FEATURES)
    w = tl.load(weight + head.to(tl.int64) * features + f, mask=f < features, other=0.0).to(tl.float32)
    where = at[:, None] * features + f[None, :]
    inside = (i < N)[:, None] & (f < features)[None, :]
    tl.store(dq + where, (slopes * w[None, :]).to(dq.dtype.element_ty), mask=inside)
    part = row.to(tl.int64) * tl.cdiv(N, BLOCK_M) + tl.program_id(0) % tl.cdiv(N, BLOCK_M)
    tl.store(dweight + part * features + f, tl.sum(hidden, 0), mask=f < features)


@triton.jit
def _additive_bwd_keys(
    q, k, v, weight, mask, grad, lse, delta, dk, dv, v_strides, grad_strides, dv_strides, heads, N, M, features,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr,
    FEATURES: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk (B, H, M, F) and dv; a program owns BLOCK_M keys and a share of the features, and walks BLOCK_N queries."""
    share = tl.program_id(1)
    row, sequence, head, j = tokens_of(M, heads, BLOCK_M)
    near = are_near(k, row, j, M, features, EXACT)
    seen = seen_keys(mask, sequence, j, M)
    values = load_rows(v, place_of(v_strides, sequence, head, j), j < M, HEAD_DIM, ALIGN, 0, BLOCK_D)
    slopes = tl.zeros([BLOCK_M, FEATURES], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in tl.range(0, N, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        both = near & are_near(q, row, i, N, features, EXACT)
        at = row.to(tl.int64) * N + i
        pivot = tl.load(lse + at, mask=i < N, other=float("inf"))
        deltas = tl.load(delta + at, mask=i < N, other=0.0)
        s = tile_scores(k, q, weight, row, head, j, i, M, N, features, both, EXACT)  # [BLOCK_M, BLOCK_N]
        p = tl.where(seen[:, None], tl.math.exp2(s - pivot[None, :]), 0.0)
        grads = load_rows(grad, place_of(grad_strides, sequence, head, i), i < N, HEAD_DIM, ALIGN, 0, BLOCK_D)
        acc += tl.dot(p.to(grads.dtype), grads, input_precision=PRECISION)
        dp = tl.dot(values, tl.trans(grads), input_precision=PRECISION)
        ds = p * (dp - deltas[None, :])
        slopes += tile_slopes(ds, k, q, row, j, i, M, N, features, share * FEATURES, both, FEATURES, EXACT)[0]
    f = share * FEATURES + tl.arange(0, FEATURES)
    w = tl.load(weight + head.to(tl.int64) * features + f, mask=f < features, other=0.0).to(tl.float32)
    where = (row.to(tl.int64) * M + j)[:, None] * features + f[None, :]
    inside = (j < M)[:, None] & (f < features)[None, :]
    tl.store(dk + where, (slopes * w[None, :]).to(dk.dtype.element_ty), mask=inside)
    own = j < tl.where(share == 0, M, 0)
    store_rows(dv, place_of(dv_strides, sequence, head, j), acc, own, HEAD_DIM, ALIGN, 0, BLOCK_D)


SHARE = 256  # bytes of them at most; a program computes scores of all features


class Operands(NamedTuple):
    """Of all three kernels: q and k (B, H, F, tokens), v (B, M, H, D), weight (H, F), mask (B, M) or None."""

    q: Tensor
    k: Tensor
    v: Rows
    weight: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, q, k, v, weight, mask):
        q, k = (x.transpose(-1, -2).contiguous() for x in (q, k))
        return cls(q, k, dense_rows(unit_last(v)), weight.contiguous(), None if mask is None else mask.contiguous())

    @property
    def sizes(self):
        """(H, N, M, F)."""
        _, heads, features, queries = self.q.shape
        return heads, queries, self.k.shape[3], features

    def grid(self, tokens, block, shares=1):
        """Programs: of each block of a row's ``tokens``, and of each share of the features."""
        return triton.cdiv(tokens, block) * self.q.shape[0] * self.q.shape[1], shares

    @property
    def share(self):
        """Features whose gradients one program has."""
        return min(head_tile(self.q.shape[2]), SHARE // self.q.element_size())

    @property
    def width(self):
        """Columns that a program has in registers: of the values, and a share of the features."""
        return max(self.share, self.v.tensor.shape[3])

    def constants(self, config, *others):
        """With ``others``: operands that are laid out as v."""
        head_dim = self.v.tensor.shape[3]
        return dict(
            HEAD_DIM=head_dim, BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_D=head_tile(head_dim),
            ALIGN=aligned(self.v, *others), EXACT=self.q.element_size() == 4, PRECISION=dot_precision(self.q.dtype),
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip


def additive_attention_outputs(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(B, N, H, D), contiguous, and the logarithm of each row's denominator (B, H, N), float32, in units of log2."""
    batch, heads, queries, _ = q.shape
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    return q.new_empty(batch, queries, heads, v.shape[3]), lse


def additive_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """q (B, H, N, F), k (B, H, M, F), v (B, H, M, D) of any strides, weight (H, F), mask (B, M) bool -> (B, N, H, D),
    lse."""
    out, lse = additive_attention_outputs(q, k, v, weight, mask)
    run_forward(Operands.of(q, k, v, weight, mask), dense_rows(out.transpose(1, 2)), lse)
    return out, lse


def run_forward(s: Operands, out: Rows, lse: Tensor) -> None:
    """Fills out and lse."""
    config = additive_forward_config(s.width, s.q.element_size(), arch_of(s.q))
    constants = s.constants(config, out)
    strides = (x.strides_over(constants["ALIGN"]) for x in (s.v, out))
    launch(
        _additive_fwd, s.grid(s.sizes[1], config.block_m),
        s.q, s.k, s.v.tensor, s.weight, s.mask, out.tensor, lse, *strides, *s.sizes, **constants,
    )  # fmt: skip


def additive_attention_gradients(grad, out, lse, q, k, v, weight, mask, needs):
    """(dq, dk, dv, dweight), each like its input, contiguous."""
    return tuple(x.new_empty(x.shape) for x in (q, k, v, weight))


def additive_attention_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `additive_attention_forward`; deterministic."""
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    operands, delta = Operands.of(q, k, v, weight, mask), torch.empty_like(lse)
    outs, grads = (dense_rows(x.transpose(1, 2)) for x in (out, unit_last(grad)))
    parts = run_queries(operands, outs, grads, lse, delta, dq)
    run_keys(operands, grads, lse, delta, dk, dense_rows(dv))
    return dq, dk, dv, parts.sum((0, 2)).to(weight.dtype)


def run_queries(s: Operands, out: Rows, grad: Rows, lse: Tensor, delta: Tensor, dq: Tensor) -> Tensor:
    """Fills delta (B, H, N) and dq (B, H, N, F); returns the parts of dweight, (B, H, blocks, F) float32."""
    config = additive_backward_config(s.width, s.q.element_size(), arch_of(s.q))
    heads, queries, _, features = s.sizes
    blocks = triton.cdiv(queries, config.block_m)
    parts = lse.new_empty(s.q.shape[0], heads, blocks, features)
    constants = s.constants(config, out, grad) | dict(FEATURES=s.share)
    strides = (x.strides_over(constants["ALIGN"]) for x in (s.v, out, grad))
    launch(
        _additive_bwd_queries, s.grid(queries, config.block_m, triton.cdiv(features, s.share)),
        s.q, s.k, s.v.tensor, s.weight, s.mask, out.tensor, grad.tensor, lse, delta, dq, parts, *strides, *s.sizes,
        **constants,
    )  # fmt: skip
    return parts


def run_keys(s: Operands, grad: Rows, lse: Tensor, delta: Tensor, dk: Tensor, dv: Rows) -> None:
    """Fills dk (B, H, M, F) and dv."""
    config = additive_backward_config(s.width, s.q.element_size(), arch_of(s.q))
    _, _, keys, features = s.sizes
    constants = s.constants(config, grad, dv) | dict(FEATURES=s.share)
    strides = (x.strides_over(constants["ALIGN"]) for x in (s.v, grad, dv))
    launch(
        _additive_bwd_keys, s.grid(keys, config.block_m, triton.cdiv(features, s.share)),
        s.q, s.k, s.v.tensor, s.weight, s.mask, grad.tensor, lse, delta, dk, dv.tensor, *strides, *s.sizes,
        **constants,
    )  # fmt: skip
