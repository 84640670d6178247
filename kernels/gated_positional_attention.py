"""Gated positional self-attention (ConViT, d'Ascoli et al., arXiv 2103.10697, section 3.2, equation 7).

    out = (1 - g) softmax(scale q k^T) v + g (Ay (x) Ax) v                             g = sigmoid(gate), of each head
    Ax_ij = softmax_j(w0 dx + w2 dx^2)    Ay_ij = softmax_j(w1 dy + w2 dy^2)           dx = x_j - x_i, dy = y_j - y_i

The logits of positions are a sum over axes, so that their softmax over the grid is a product of two, and nothing is
N x N. What q and k decide is the dense attention of attention.py, as it is; positions are mixed by kernels of their own
(positions/mix.py), a program of which takes SIDE x SIDE positions and BLOCK_D channels of an image and head, along one
axis and then the other. Legend: B images, N = grid_h grid_w tokens, H heads, D head dim; ``position_weights`` (H, 3):
w0, w1, w2; ``gate`` (H,).

    s = Ay^T dout    dv = (1 - g) dv_content + g Ax^T s    z = Ax v
    dw0 = g <v, (dAx / dw0)^T s>    dw1 = g <z, (dAy / dw1)^T dout>    dg = <v, Ax^T s> - <content, dout>

with dA / dw = A (d - mean d), and dw2 likewise on both axes. Each program leaves four sums, which PyTorch adds up in
order: nothing is atomic, and there are no gradients of A in memory.

Launches beside those of attention: forward one; backward 1 - g and its product with dout, one, and two sums. Bytes, in
units of a tensor (B, N, H, D): forward 3 (read what attention gives, and v; write out), backward 2 for that product and
5 (read dout, content, v, dv; write dv). A grid of several blocks is read once for each of them, out of the second-level
cache.

Compiled for sm_90 in bfloat16 (Triton 3.9) at 14 x 14 tokens: forward 123 registers and 134 instructions a turn, four
programs an SM; backward 255 and 459, two. Nothing spills.
"""

import torch
from torch import Tensor

from .attention import Terms, _backward, _forward
from .loop.problem import unit_last
from .positions.mix import mix_positions, mix_positions_backward


def _parts(qk, v):
    """q, k and v, (B, H, N, D) each."""
    return *qk.permute(2, 0, 3, 1, 4).unbind(0), v.transpose(1, 2)


def _terms(scale):
    return Terms(None, None, None, None, None, scale, False, 0.0, 0.0)


def gated_positional_attention_outputs(qk, v, position_weights, gate, grid_h, grid_w, scale):
    """out and what attention by content gives, (B, N, H, D) both; its lse (B, H, N) float32."""
    batch, tokens, heads, _ = v.shape
    return v.new_empty(v.shape), v.new_empty(v.shape), v.new_empty(batch, heads, tokens, dtype=torch.float32)


def gated_positional_attention_forward(
    qk: Tensor, v: Tensor, position_weights: Tensor, gate: Tensor, grid_h: int, grid_w: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """qk (B, N, 2, H, D), v (B, N, H, D) of any strides -> out, content, lse."""
    out, content, lse = gated_positional_attention_outputs(qk, v, position_weights, gate, grid_h, grid_w, scale)
    qk, v = unit_last(qk), unit_last(v)
    _forward(*_parts(qk, v), content, lse, _terms(scale))
    mix_positions(content, v, out, position_weights, gate, (grid_h, grid_w))
    return out, content, lse


def gated_positional_attention_gradients(
    grad, out, content, lse, qk, v, position_weights, gate, grid_h, grid_w, scale, needs
):
    """dqk and dv, contiguous, and those of position_weights and gate."""
    return tuple(x.new_empty(x.shape) for x in (qk, v, position_weights, gate))


def gated_positional_attention_backward(
    grad: Tensor,
    out: Tensor,
    content: Tensor,
    lse: Tensor,
    qk: Tensor,
    v: Tensor,
    position_weights: Tensor,
    gate: Tensor,
    grid_h: int,
    grid_w: int,
    scale: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `gated_positional_attention_forward`; deterministic."""
    dqk, dv = qk.new_empty(qk.shape), v.new_empty(v.shape)
    qk, v, grad = unit_last(qk), unit_last(v), unit_last(grad)
    rest = torch.sigmoid(-gate.float())[:, None]  # 1 - g loses what is left of it beside 1
    with torch.no_grad():  # into a tensor of grad's dtype
        of_content = torch.mul(grad, rest, out=grad.new_empty(grad.shape))
    _backward(of_content, content, lse, *_parts(qk, v), *_parts(dqk, dv), None, None, _terms(scale), False, False)
    partial = mix_positions_backward(grad, content, v, dv, position_weights, gate, (grid_h, grid_w))
    dweights = partial[..., :3].sum((0, 1, 3)).to(position_weights.dtype)
    return dqk, dv, dweights, partial[..., 3].sum((0, 1, 3)).to(gate.dtype)
