"""Attention between the channels of a head (DaViT, arXiv 2204.03645), and of unit channels (XCiT, arXiv 2106.09681).

    G = left^T right (D x D, over tokens)    A = softmax_rows(f G)    out = carried A^T

left, right, carried are k, v, q of DaViT, and q, k, v of its later variants and of XCiT, where columns of left and
right have unit length and f is a temperature. Legend: B images, N tokens, H heads, D head dim, S = N // chunk shares of
the tokens.

Images shorter than a chunk: one launch each way, a program for each image and head, nothing saved. Others: three, sums
of each share, the D x D matrix, what it mixes; shares are added in their order, so results are deterministic. Heads are
neighbours in the grid, as they are in a packed row. Bytes, in units of a tensor (B, N, H, D): forward 4, the floor;
backward 7, the floor, for short images and 8 for others, which read the gradient of out twice. The sums, which are
saved, are D / 512 of a unit at most in half precision.

Compiled for sm_90 in bfloat16 nothing spills. Registers and instructions, of D = 32 and 48: sums 72 and 96, 214 and 494
a turn of 128 and 64 tokens, these with norms; what is mixed 63 and 64, 256 and 288 in all; its gradients 63 and 101,
376 and 584; in one launch, forward 146 and 154, backward 76 and 176.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .channels.blocks import (
    channel_backward_config,
    channel_chunk,
    channel_forward_config,
    channel_matrix_warps,
)
from .channels.shares import mix_tokens, mix_tokens_backward, slope, sum_shares, weigh
from .channels.short import short_backward, short_forward
from .loop.problem import Rows, aligned, dense_rows, unit_last
from .machine.architecture import arch_of
from .machine.blocks import dot_precision


class Problem(NamedTuple):
    """What all kernels of one pass are given. ``matrices``: B * H. ``temperature`` (H,), or None: the scale."""

    matrices: int
    heads: int
    tokens: int
    scale: float
    temperature: Tensor | None
    constants: dict

    @property
    def matrix_constants(self):
        """Of kernels that see no token."""
        block_d = self.constants["BLOCK_D"]
        warps = channel_matrix_warps(block_d)
        return dict(HEAD_DIM=self.constants["HEAD_DIM"], BLOCK_D=block_d, num_warps=warps, num_stages=1)

    def strides(self, *operands):
        return tuple(rows.strides_over(self.constants["ALIGN"]) for rows in operands)


def _problem(qkv, temperature, scale, choose, operands):
    """``choose``: of the configurations in blocks.py."""
    batch, tokens, _, heads, head_dim = qkv.shape
    config = choose(head_dim, qkv.element_size(), arch_of(qkv))
    constants = dict(
        HEAD_DIM=head_dim, BLOCK_M=config.block_m, BLOCK_D=config.block_n, ALIGN=aligned(*operands),
        PRECISION=dot_precision(qkv.dtype), num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    temperature = None if temperature is None else temperature.contiguous()
    return Problem(batch * heads, heads, tokens, scale, temperature, constants)


def _rows(x: Tensor) -> Rows:
    """(B, N, H, D)."""
    return dense_rows(x.transpose(1, 2))


def _parts(qkv: Tensor, mixes_q: bool) -> list[Rows]:
    """left, right and carried of (B, N, 3, H, D)."""
    q, k, v = map(_rows, qkv.unbind(2))
    return [k, v, q] if mixes_q else [q, k, v]


def channel_attention_outputs(
    qkv: Tensor, temperature: Tensor | None, scale: float, mixes_q: bool
) -> tuple[Tensor, Tensor]:
    """(B, N, H, D), contiguous, and the sums of each share of the tokens, float32."""
    batch, tokens, _, heads, head_dim = qkv.shape
    rows = head_dim if temperature is None else head_dim + 2
    shares = tokens // channel_chunk(arch_of(qkv))
    sums = torch.empty(batch, heads, shares, rows, head_dim, dtype=torch.float32, device=qkv.device)
    return qkv.new_empty((batch, tokens, heads, head_dim)), sums


def channel_attention_forward(
    qkv: Tensor, temperature: Tensor | None, scale: float, mixes_q: bool
) -> tuple[Tensor, Tensor]:
    """qkv (B, N, 3, H, D) of any strides; temperature (H,), of unit columns, or None: the scale; ``mixes_q``: q is
    what is mixed, not v -> (B, N, H, D), sums."""
    out, sums = channel_attention_outputs(qkv, temperature, scale, mixes_q)
    left, right, carried = _parts(unit_last(qkv), mixes_q)
    rows = _rows(out)
    problem = _problem(qkv, temperature, scale, channel_forward_config, (left, rows))
    if sums.shape[2]:
        weights = qkv.new_empty((*sums.shape[:2], *sums.shape[-1:] * 2))  # (B, H, D, D)
        sum_shares(problem, left, right, sums, temperature is not None)
        weigh(problem, sums, weights)
        mix_tokens(problem, carried, rows, weights)
    else:
        short_forward(problem, left, right, carried, rows)
    return out, sums


def channel_attention_gradients(grad, out, sums, qkv, temperature, scale, mixes_q, needs):
    """dqkv, contiguous, and dtemperature, empty where there is none."""
    return qkv.new_empty(qkv.shape), qkv.new_empty(0) if temperature is None else temperature.new_empty(
        temperature.shape
    )


def channel_attention_backward(
    grad: Tensor,
    out: Tensor,
    sums: Tensor,
    qkv: Tensor,
    temperature: Tensor | None,
    scale: float,
    mixes_q: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of `channel_attention_forward`; deterministic."""
    dqkv = qkv.new_empty(qkv.shape)
    (left, right, carried), found = _parts(unit_last(qkv), mixes_q), _parts(dqkv, mixes_q)
    rows = _rows(unit_last(grad))
    problem = _problem(qkv, temperature, scale, channel_backward_config, (left, rows, found[0]))
    partial = None
    if temperature is not None:
        partial = torch.empty(qkv.shape[0], problem.heads, dtype=torch.float32, device=qkv.device)
    if sums.shape[2]:
        (batch, heads, shares), head_dim = sums.shape[:3], qkv.shape[-1]
        dsums = sums.new_empty(batch, heads, shares, head_dim, head_dim)
        matrices = qkv.new_empty(batch, heads, 3, head_dim, head_dim)
        vectors = sums.new_empty(batch, heads, 2 if temperature is None else 4, head_dim)
        sum_shares(_problem(qkv, None, scale, channel_forward_config, (rows, carried)), rows, carried, dsums, False)
        slope(problem, sums, dsums, matrices, vectors, partial)
        mix_tokens_backward(problem, left, right, rows, *found, matrices, vectors)
    else:
        short_backward(problem, left, right, carried, rows, *found, partial)
    if temperature is None:
        return dqkv, qkv.new_empty(0)
    return dqkv, partial.sum(0).to(temperature.dtype)
