"""Attention whose queries and keys are normalised over the channels of a head (Henry et al., arXiv 2010.04245; ViT-22B,
Dehghani et al., arXiv 2302.05442), in the tile: q and k stay raw in memory.

A bias of the keys shifts whole rows of logits: no softmax sees it, and its gradient is 0. Legend: B images, N tokens, H
heads, D head dim. One launch forward, two backward, and PyTorch's sums of the parts of the gradients of weights and of
the queries' bias; nothing is atomic. Saved: lse, a number for a query and head. Each block of queries normalises all
keys again, which long sequences pay for: `qk_norm_in_tile`.

Bytes, in units of a tensor (B, N, H, D): forward 4, the floor, where a norm before has 8; backward 12, where a norm
after has 18 and the floor is 8. Both launches of it read q, k, v and dout. Compiled for sm_90 in bfloat16, D = 64,
nothing spills: registers 160, 236, 230 of forward, queries and keys; instructions of a turn 721, 703, 440: 23, 22 and
28 a score.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .loop.packed import Packed, head_rows
from .loop.problem import per_token, unit_last
from .machine.architecture import arch_of
from .machine.choices import choice
from .qk_norm.backward import key_gradients, query_gradients
from .qk_norm.forward import run_forward


class Norms(NamedTuple):
    """``parameters``: q_weight, q_bias and k_weight (D,), or None. ``centred``: LayerNorm, else RMSNorm."""

    parameters: tuple[Tensor | None, ...]
    eps: float
    centred: bool


@choice
def qk_norm_in_tile(tokens, head_dim, arch):
    """Whether it takes less than a norm before: keys are normalised once for each block of queries, and rows of wider
    heads take more registers than there are."""
    return tokens < 1024 and head_dim <= 80


def takes(qkv: Tensor) -> bool:
    """Whether this kernel is the one to run on (B, N, 3, H, D)."""
    return qk_norm_in_tile(qkv.shape[1], qkv.shape[4], arch_of(qkv))


def _norms(parameters, eps, centred):
    return Norms(tuple(None if x is None else x.contiguous() for x in parameters), eps, centred)


def qk_norm_attention_outputs(qkv, q_weight, q_bias, k_weight, k_bias, scale, eps, centred):
    """(B, N, H, D), contiguous, and lse (B, H, N) float32."""
    batch, tokens, _, heads, head_dim = qkv.shape
    lse = qkv.new_empty((batch, heads, tokens), dtype=torch.float32)
    return qkv.new_empty((batch, tokens, heads, head_dim)), lse


def qk_norm_attention_forward(
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    scale: float,
    eps: float,
    centred: bool,
) -> tuple[Tensor, Tensor]:
    """qkv (B, N, 3, H, D) of any strides, parameters (D,) of any dtype -> (B, N, H, D), lse."""
    out, lse = qk_norm_attention_outputs(qkv, q_weight, q_bias, k_weight, k_bias, scale, eps, centred)
    q, k, v = map(head_rows, unit_last(qkv).unbind(2))
    norms = _norms((q_weight, q_bias, k_weight), eps, centred)
    run_forward(Packed.of(qkv, scale), norms, q, k, v, head_rows(out), per_token(lse))
    return out, lse


def qk_norm_attention_gradients(grad, out, lse, qkv, q_weight, q_bias, k_weight, k_bias, scale, eps, centred, needs):
    """Gradients of qkv and of the parameters; empty where there is no such parameter."""
    parameters = q_weight, q_bias, k_weight, k_bias
    return tuple(qkv.new_empty(0) if x is None else x.new_empty(x.shape) for x in (qkv, *parameters))


def qk_norm_attention_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    scale: float,
    eps: float,
    centred: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `qk_norm_attention_forward`; deterministic."""
    dqkv = qkv.new_empty(qkv.shape)
    q, k, v = map(head_rows, unit_last(qkv).unbind(2))
    dq, dk, dv = map(head_rows, dqkv.unbind(2))
    grads, numbers, delta = head_rows(unit_last(grad)), per_token(lse), torch.empty_like(lse)
    of, norms = Packed.of(qkv, scale), _norms((q_weight, q_bias, k_weight), eps, centred)
    of_q = query_gradients(of, norms, q, k, v, head_rows(out), grads, dq, numbers, delta).sum(0)
    of_k = key_gradients(of, norms, q, k, v, grads, dk, dv, numbers, delta).sum(0)
    empty = qkv.new_empty(0)
    return (
        dqkv,
        empty if q_weight is None else of_q[0].to(q_weight.dtype, copy=True),
        empty if q_bias is None else of_q[1].to(q_bias.dtype, copy=True),
        empty if k_weight is None else of_k.to(k_weight.dtype),
        empty if k_bias is None else torch.zeros_like(k_bias),
    )
