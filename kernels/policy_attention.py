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
backward 12, where 8 is: both launches read q, k, v and dout. Compiled for sm_90 in bfloat16, D = 64, nothing spills:
registers 252, 168, 160 of forward, queries and keys; instructions of a turn 771, 552, 481: 24, 17 and 30 a score.
"""

import torch
from torch import Tensor

from .loop.packed import Packed, head_rows
from .loop.problem import per_token, unit_last
from .policy.backward import key_gradients, query_gradients
from .policy.forward import run_forward


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
    q, k, v, rows = map(head_rows, (q, k, v, out))
    of, policy = Packed.of(qkv, scale), policy.contiguous()
    run_forward(of, policy, eps, q, k, v, rows, per_token(lse), share, first, means)
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
    q, k, v = map(head_rows, unit_last(qkv).unbind(2))
    dq, dk, dv = map(head_rows, dqkv.unbind(2))
    rows, grads, numbers = head_rows(out), head_rows(unit_last(grad)), per_token(lse)
    delta, lost, parts = (torch.empty_like(lse) for _ in range(3))
    of, flat = Packed.of(qkv, scale), policy.contiguous()
    query_gradients(of, flat, q, k, v, rows, grads, dq, numbers, share, first, delta, lost, means)
    key_gradients(of, flat, q, k, v, grads, dk, dv, numbers, share, first, delta, lost, parts)
    return dqkv, parts.sum(1).to(policy.dtype)
