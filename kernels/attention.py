"""Dense attention: the launchers that put (B, H, N, D) tensors, biases and masks before the one-pass or the streaming
kernels.

Legend: B batch, H heads, N query and M key tokens, D head dim. ``bias`` and ``mask`` are 4-D and broadcast to (B, H,
N, M); ``key_mask`` (B, M) is bool; ``seed`` an int64 tensor of one element, or None for no dropout. Dv is
the width of v.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .loop import scores, starts, weighing
from .loop.problem import CAPPED_LOGIT, Problem, dense_rows, per_token, unit_last
from .loop.stream import stream_forward
from .loop.stream_backward import stream_dkdv, stream_dq
from .loop.stream_bias import stream_bias_gradient
from .loop.stream_hopper import stream_hopper_forward, takes
from .tile import short_attention
from .tile.short_attention import LOG2_OF_E
from .tile.short_attention_backward import short_backward


class Terms(NamedTuple):
    """What changes weights. ``sinks`` (H,) of any float dtype; ``softcap`` 0 for none."""

    bias: Tensor | None
    mask: Tensor | None
    key_mask: Tensor | None
    sinks: Tensor | None
    seed: Tensor | None
    scale: float
    causal: bool
    dropout_p: float
    softcap: float


def attention_outputs(q, k, v, bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap):
    """out (B, N, H, Dv) and lse (B, H, N) float32."""
    batch, heads, n, _ = q.shape
    return q.new_empty(batch, n, heads, v.shape[3]), q.new_empty(batch, heads, n, dtype=torch.float32)


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    key_mask: Tensor | None,
    sinks: Tensor | None,
    seed: Tensor | None,
    scale: float,
    causal: bool,
    dropout_p: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """q (B, H, N, D), k (B, Hk, M, D), v (B, Hk, M, Dv) of any strides -> out (B, N, H, Dv), lse (B, H, N)."""
    out, lse = attention_outputs(q, k, v, bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap)
    q, k, v = unit_last(q), unit_last(k), unit_last(v)
    _forward(q, k, v, out, lse, Terms(bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap))
    return out, lse


def attention_gradients(
    grad, out, lse, q, k, v, bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap, needs
):
    """Gradients of q, k, v, laid out as contiguous (B, tokens, heads, D), of bias and of sinks."""
    d_qkv = (t.new_empty(t.shape[0], t.shape[2], t.shape[1], t.shape[3]).transpose(1, 2) for t in (q, k, v))
    rest = zip((bias, sinks), needs[3:], strict=True)
    return *d_qkv, *(t.new_empty(t.shape) if need else q.new_empty(0) for t, need in rest)


def attention_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    key_mask: Tensor | None,
    sinks: Tensor | None,
    seed: Tensor | None,
    scale: float,
    causal: bool,
    dropout_p: float,
    softcap: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """grad and out (B, N, H, Dv) -> gradients of q, k, v, bias and sinks."""
    dq, dk, dv, *rest = attention_gradients(
        grad, out, lse, q, k, v, bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap, needs
    )
    q, k, v = unit_last(q), unit_last(k), unit_last(v)
    terms = Terms(bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap)
    _backward(grad, out, lse, q, k, v, dq, dk, dv, *rest, terms, *needs[3:])
    return dq, dk, dv, *rest


def attention_qkvpacked_outputs(qkv, bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap):
    """out (B, N, H, D) and lse (B, H, N) float32."""
    batch, n, _, heads, head_dim = qkv.shape
    return qkv.new_empty(batch, n, heads, head_dim), qkv.new_empty(batch, heads, n, dtype=torch.float32)


def attention_qkvpacked_forward(
    qkv: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    key_mask: Tensor | None,
    sinks: Tensor | None,
    seed: Tensor | None,
    scale: float,
    causal: bool,
    dropout_p: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """qkv (B, N, 3, H, D) of any strides -> out (B, N, H, D), lse (B, H, N)."""
    out, lse = attention_qkvpacked_outputs(qkv, bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap)
    terms = Terms(bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap)
    _forward(*_unpacked(unit_last(qkv)), out, lse, terms)
    return out, lse


def attention_qkvpacked_gradients(
    grad, out, lse, qkv, bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap, needs
):
    """One contiguous gradient of qkv, and those of bias and sinks."""
    rest = zip((bias, sinks), needs[1:], strict=True)
    return qkv.new_empty(qkv.shape), *(t.new_empty(t.shape) if need else qkv.new_empty(0) for t, need in rest)


def attention_qkvpacked_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    key_mask: Tensor | None,
    sinks: Tensor | None,
    seed: Tensor | None,
    scale: float,
    causal: bool,
    dropout_p: float,
    softcap: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """grad and out (B, N, H, D) -> gradients of qkv, written in place by the kernels, of bias and of sinks."""
    dqkv, *rest = attention_qkvpacked_gradients(
        grad, out, lse, qkv, bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap, needs
    )
    terms = Terms(bias, mask, key_mask, sinks, seed, scale, causal, dropout_p, softcap)
    q, k, v = _unpacked(unit_last(qkv))
    _backward(grad, out, lse, q, k, v, *_unpacked(dqkv), *rest, terms, *needs[1:])
    return dqkv, *rest


def takes_short(q, k, v, terms: Terms) -> bool:
    """Whether the one-pass kernels run and not the loop: they hold a group in one tile, draw no dropout, skip no causal
    block and know neither caps nor sinks.
    """
    if terms.seed is not None or terms.causal or terms.softcap or terms.sinks is not None:
        return False
    added = any(term is not None for term in (terms.bias, terms.mask, terms.key_mask))
    return short_attention.fits(q, k, v, terms=added)


def _forward(q, k, v, out, lse, terms: Terms):
    out = out.transpose(1, 2)
    if takes_short(q, k, v, terms):
        hook = _score(None, terms.mask, terms.key_mask, q, k)
        short_attention.short_forward(q, k, v, out, scale=terms.scale, lse=lse, bias=terms.bias, **hook)
        return
    problem = _problem(q, k, v, terms)
    operands = dense_rows(q), dense_rows(k), dense_rows(v)
    forward = stream_hopper_forward if takes(problem, *operands) else stream_forward
    forward(problem, *operands, dense_rows(out), per_token(lse))


def _backward(grad, out, lse, q, k, v, dq, dk, dv, dbias, dsinks, terms: Terms, needs_bias: bool, needs_sinks: bool):
    grad, bias = unit_last(grad).transpose(1, 2), terms.bias
    if takes_short(q, k, v, terms):
        hook = _score(None, terms.mask, terms.key_mask, q, k)
        total = short_backward(grad, q, k, v, dq, dk, dv, scale=terms.scale, bias=bias, bias_grad=needs_bias, **hook)
    else:
        problem, delta, log = _problem(q, k, v, terms), torch.empty_like(lse), per_token(lse)
        operands, grad = (dense_rows(q), dense_rows(k), dense_rows(v)), dense_rows(grad)
        stream_dq(problem, *operands, dense_rows(out.transpose(1, 2)), grad, log, delta, dense_rows(dq))
        stream_dkdv(problem, *operands, grad, log, delta, dense_rows(dk), dense_rows(dv))
        if needs_bias:
            kept = dict(per_group=bias.shape[0] != 1, per_head=bias.shape[1] != 1)
            total = stream_bias_gradient(problem, *operands, grad, log, delta, **kept).sum_to_size(bias.shape)
        if needs_sinks:  # the weight of a sink times what is lost by each unit of it
            weights = torch.exp(terms.sinks.float()[:, None] - lse).masked_fill(lse == -torch.inf, 0.0)
            dsinks.copy_((weights * delta).sum((0, 2)).neg())
    if needs_bias:
        dbias.copy_(total)


def _problem(q, k, v, terms: Terms) -> Problem:
    batch, heads, n, head_dim = q.shape
    kv_heads, m, value_dim = v.shape[1:]
    hooks = _score(terms.bias, terms.mask, terms.key_mask, q, k)
    if terms.seed is not None:
        hooks |= dict(weigh=weighing.dropout, weigh_args=(terms.seed, terms.dropout_p, heads))
    if terms.softcap:
        hooks |= dict(logit=CAPPED_LOGIT, logit_args=(terms.softcap * LOG2_OF_E,))
    if terms.sinks is not None:
        hooks |= dict(start=starts.sink, start_args=(terms.sinks.contiguous(),))
    if value_dim != head_dim:
        hooks |= dict(value_dim=value_dim)
    return Problem(batch, heads, kv_heads, n, m, head_dim, terms.scale, causal=terms.causal, **hooks)


def _score(bias, mask, key_mask, q, k) -> dict:
    """Score hook and its arguments for the terms that are there."""
    if key_mask is not None:
        key_mask = key_mask[:, None, None, :]
    args = tuple(_term(term, q.shape[2], k.shape[2]) for term in (bias, mask, key_mask) if term is not None)
    return dict(score=scores.terms if args else scores.plain, score_args=args)


def _term(term: Tensor, n: int, m: int):
    """One term with strides of 0 where it broadcasts. Rows whose loads would not be 16 bytes wide are copied to a
    padded place.

    The copy is of the term before any expansion: H N M elements for a bias that the batch shares.
    """
    term = term[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in term.stride())]
    keys = m
    if term.shape[3] > 1 and term.shape[2] > 1:
        keys = -(-m // 16) * 16
        outer = [stride for size, stride in zip(term.shape[:3], term.stride()[:3], strict=True) if size > 1]
        if keys != m or term.stride(3) != 1 or any(stride % 16 for stride in outer) or term.data_ptr() % 16:
            term = torch.nn.functional.pad(term, (0, keys - m)).contiguous()
    strides = tuple(0 if size == 1 else stride for size, stride in zip(term.shape, term.stride(), strict=True))
    return term, strides, n, keys, tl.constexpr(strides[2] != 0)


def _unpacked(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3, H, D) -> three views (B, H, N, D)."""
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)
