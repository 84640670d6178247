"""Attention whose keys count for what a policy says: the training of DynamicViT (Rao et al., arXiv 2106.02034, section
3.3).

    E_ij = exp(s_ij - max_j s_ij) G_ij    G_ij = policy_j, 1 where i = j
    P = (E + eps / N) / (sum_j E + eps)    out = P v

    delta = dout . out    dS = E (dP - delta) / (sum E + eps)    dv = P^T dout    dpolicy_j = sum_i dS_ij / G_ij, i != j

The maximum is that of all keys, those that do not count too; by it the key of the maximum loses sum_j dS_ij = (delta -
mean_j dP_ij) eps / (sum E + eps), next to nothing unless what counts is far below. Legend: B images, N tokens, H heads,
D head dim.

One launch forward, after PyTorch's mean of the values, which the smoothing adds; two backward, and PyTorch's sum of the
policy's gradient over heads. Saved: lse, eps / (sum E + eps) and the key of the maximum, a number each for a query and
head. Deterministic. Bytes, in units of a tensor (B, N, H, D): forward 5, of which the mean is 1, where 4 is the floor;
backward 12, where 8 is: both launches read q, k, v and dout.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .loop.constants import Head, loop_of
from .loop.heads import head_parts
from .loop.problem import Problem as Attention
from .loop.problem import Rows, aligned, dense_rows, per_token, unit_last
from .machine.architecture import arch_of
from .machine.blocks import Config
from .policy.backward import key_gradients, query_gradients
from .policy.forward import run_forward


class Problem(NamedTuple):
    """What all kernels of one call are given. ``policy`` (B, N), contiguous."""

    batch: int
    heads: int
    tokens: int
    head_dim: int
    scale: float
    eps: float
    policy: Tensor

    def programs(self, block: int) -> int:
        return triton.cdiv(self.tokens, block) * self.batch * self.heads

    def started(self, config: Config, operands: tuple[Rows, ...], made: tuple[Rows, ...]) -> tuple[dict, list]:
        """Constants of a kernel, and its ``operands`` q, k, v and others, as it takes them."""
        align, out_align = aligned(*operands), aligned(*made)
        sizes = self.batch, self.heads, self.heads, self.tokens, self.tokens, self.head_dim, self.scale
        head = Head(self.head_dim, *head_parts(self.head_dim, arch_of(operands[0].tensor), True))
        loop = loop_of(Attention(*sizes), operands[0], config, (head, head), align, out_align)
        places = [*(rows.over(align) for rows in operands), *(rows.over(out_align) for rows in made)]
        return dict(LOOP=loop, num_warps=config.num_warps, num_stages=config.num_stages), places


def _problem(qkv: Tensor, policy: Tensor, scale: float, eps: float) -> Problem:
    batch, tokens, _, heads, head_dim = qkv.shape
    return Problem(batch, heads, tokens, head_dim, scale, eps, policy.contiguous())


def _rows(x: Tensor) -> Rows:
    """(B, N, H, D)."""
    return dense_rows(x.transpose(1, 2))


def policy_attention_outputs(
    qkv: Tensor, policy: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(B, N, H, D), contiguous; lse and share (B, H, N) float32, first (B, H, N) int32, means (B, H, D) float32."""
    batch, tokens, _, heads, head_dim = qkv.shape
    numbers = (qkv.new_empty((batch, heads, tokens), dtype=x) for x in (torch.float32, torch.float32, torch.int32))
    means = qkv.new_empty((batch, heads, head_dim), dtype=torch.float32)
    return qkv.new_empty((batch, tokens, heads, head_dim)), *numbers, means


def policy_attention_forward(
    qkv: Tensor, policy: Tensor, scale: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """qkv (B, N, 3, H, D) of any strides, policy (B, N) of any dtype -> (B, N, H, D), lse, share, first, means."""
    out, lse, share, first, means = policy_attention_outputs(qkv, policy, scale, eps)
    q, k, v = unit_last(qkv).unbind(2)
    with torch.no_grad():
        torch.mean(v, 1, dtype=torch.float32, out=means)
    run_forward(
        _problem(qkv, policy, scale, eps), _rows(q), _rows(k), _rows(v), _rows(out), per_token(lse), share, first, means
    )
    return out, lse, share, first, means


def policy_attention_gradients(grad, out, lse, share, first, means, qkv, policy, scale, eps, needs):
    """(dqkv, dpolicy), contiguous, each like its input."""
    return qkv.new_empty(qkv.shape), policy.new_empty(policy.shape)


def policy_attention_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    share: Tensor,
    first: Tensor,
    means: Tensor,
    qkv: Tensor,
    policy: Tensor,
    scale: float,
    eps: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of `policy_attention_forward`."""
    dqkv = qkv.new_empty(qkv.shape)
    q, k, v = map(_rows, unit_last(qkv).unbind(2))
    dq, dk, dv = map(_rows, dqkv.unbind(2))
    grads, numbers = _rows(unit_last(grad)), per_token(lse)
    delta, lost, parts = (torch.empty_like(lse) for _ in range(3))
    problem = _problem(qkv, policy, scale, eps)
    query_gradients(problem, q, k, v, _rows(out), grads, dq, numbers, share, first, delta, lost, means)
    key_gradients(problem, q, k, v, grads, dk, dv, numbers, share, first, delta, lost, parts)
    return dqkv, parts.sum(1).to(policy.dtype)
