"""Talking-heads attention (Shazeer et al., arXiv 2003.02436; CaiT, Touvron et al., arXiv 2103.17239).

    S_h = scale q_h k_h^T    L = Wl S    A = softmax(L)    P = Ww A + bw    out_g = P_g v_g

    dP = dout v^T    dA = Ww^T dP    delta = rowsum(A dA)    dL = A (dA - delta)    dS = Wl^T dL
    dq = dS k    dk = dS^T q    dv = P^T dout    dWl = <dL, S>    dWw = <dP, A>    dbw = sum dP

where Wl and Ww mix the heads of each pair of tokens. A bias of the mixed logits shifts whole rows of them: no softmax
sees it, and its gradient is 0. Legend: B images, N tokens, H heads, D head dim.

A program has all heads of 16 tokens, or of several times 16 where lanes are left (talking/lanes.py); scores stay in
registers. Mixing is as accurate as float32, in half precision too. One launch forward, two backward. What is saved is
lse (B, H, N). Shares of the gradients of matrices are added up in a fixed order, and nothing is atomic.

Bytes, in units of a tensor (B, N, H, D): forward 4, the floor; backward 11, where 7 would be the floor: both launches
read q, k, v and dout. What each program reads of all tokens comes out of the second-level cache, keys twice forward.
Compiled for sm_90 in bfloat16, H = 16 and D = 48, nothing spills: registers 216, 250, 255 of forward, queries and keys;
instructions of a turn 1344, 1096, 1343, which are 42, 69 and 84 a score.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .loop.problem import Rows, aligned, dense_rows, unit_last
from .machine.architecture import arch_of
from .machine.blocks import dot_precision
from .talking.backward import key_gradients, query_gradients
from .talking.blocks import MAX_HEADS, mixing_precision, talking_backward_config, talking_forward_config, talking_takes
from .talking.forward import run_forward


class Problem(NamedTuple):
    """What the kernels of one pass are given. ``mixing``: Wl, Ww and bw, which may be None."""

    programs: int
    blocks: int
    tokens: int
    scale: float
    mixing: tuple[Tensor, Tensor, Tensor | None]
    constants: dict

    @property
    def sizes(self):
        return self.tokens, self.blocks, self.scale

    def strides(self, *operands):
        return tuple(rows.strides_over(self.constants["ALIGN"]) for rows in operands)


def _problem(qkv, before, after, after_bias, scale, choose, operands):
    """``choose``: of the configurations in talking/blocks.py."""
    batch, tokens, _, heads, head_dim = qkv.shape
    arch = arch_of(qkv)
    config = choose(qkv.element_size(), arch)
    tile = triton.next_power_of_2(max(1, heads))
    blocks = triton.cdiv(tokens, config.block_m * (MAX_HEADS // tile))
    constants = dict(
        HEADS=heads, HEAD_TILE=tile, HEAD_DIM=head_dim, PART=32 if head_dim % 32 == 0 else 16,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, ALIGN=aligned(*operands),
        PRECISION=dot_precision(qkv.dtype), MIXING=mixing_precision(qkv.dtype, arch),
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    mixing = (before.contiguous(), after.contiguous(), None if after_bias is None else after_bias.contiguous())
    return Problem(batch * blocks if heads else 0, blocks, tokens, scale, mixing, constants)


def _rows(x: Tensor) -> Rows:
    """(B, N, H, D)."""
    return dense_rows(x.transpose(1, 2))


def fits(qkv: Tensor) -> bool:
    """Whether the kernels take these operands."""
    return talking_takes(qkv.shape[3], qkv.shape[4], qkv.element_size(), arch_of(qkv))


def talking_heads_attention_outputs(qkv, before, after, before_bias, after_bias, scale):
    """(B, N, H, D), contiguous, and lse (B, H, N) float32 of the mixed logits."""
    batch, tokens, _, heads, head_dim = qkv.shape
    lse = torch.empty(batch, heads, tokens, dtype=torch.float32, device=qkv.device)
    return qkv.new_empty((batch, tokens, heads, head_dim)), lse


def talking_heads_attention_forward(
    qkv: Tensor, before: Tensor, after: Tensor, before_bias: Tensor | None, after_bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """qkv (B, N, 3, H, D) of any strides; before, after (H, H) and biases (H,) of any dtype -> (B, N, H, D), lse."""
    out, lse = talking_heads_attention_outputs(qkv, before, after, before_bias, after_bias, scale)
    q, k, v = map(_rows, unit_last(qkv).unbind(2))
    rows = _rows(out)
    problem = _problem(qkv, before, after, after_bias, scale, talking_forward_config, (q, rows))
    run_forward(problem, q, k, v, rows, lse)
    return out, lse


def talking_heads_attention_gradients(grad, out, lse, qkv, before, after, before_bias, after_bias, scale, needs):
    """(dqkv, dbefore, dafter, dbefore_bias, dafter_bias), each like its input; empty where there is no such input."""
    tensors = (qkv, before, after, before_bias, after_bias)
    return tuple(qkv.new_empty(0) if x is None else x.new_empty(x.shape) for x in tensors)


def talking_heads_attention_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    qkv: Tensor,
    before: Tensor,
    after: Tensor,
    before_bias: Tensor | None,
    after_bias: Tensor | None,
    scale: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `talking_heads_attention_forward`; deterministic. That of ``before_bias`` is zeros."""
    dqkv = qkv.new_empty(qkv.shape)
    q, k, v = map(_rows, unit_last(qkv).unbind(2))
    dq, dk, dv = map(_rows, dqkv.unbind(2))
    rows = _rows(unit_last(grad))
    problem = _problem(qkv, before, after, after_bias, scale, talking_backward_config, (q, rows, dq))
    heads, delta = qkv.shape[3], torch.empty_like(lse)
    blocks = problem.programs * (MAX_HEADS // problem.constants["HEAD_TILE"])
    shares = torch.empty(blocks, 2 * heads + 1, heads, dtype=torch.float32, device=qkv.device)
    query_gradients(problem, q, k, v, rows, lse, delta, dq, shares)
    key_gradients(problem, q, k, v, rows, lse, delta, dk, dv)
    total = shares.sum(0)
    empty = qkv.new_empty(0)
    return (
        dqkv,
        total[:heads].to(before.dtype, copy=True),
        total[heads:-1].to(after.dtype, copy=True),
        empty if before_bias is None else torch.zeros_like(before_bias),
        empty if after_bias is None else total[-1].to(after_bias.dtype, copy=True),
    )
