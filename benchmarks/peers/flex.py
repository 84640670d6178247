"""FlexAttention, compiled: the score of each layer as its ``score_mod``, its mask as a block mask."""

import functools
from collections.abc import Callable

import torch

from benchmarks.layers import Attention, Layer, Neighborhood
from benchmarks.peers.windows import start_of


def peers_of(case: Layer, device: torch.device) -> dict[str, Callable]:
    """FlexAttention for the layers whose tensors it takes as they are: dense attention and neighbourhoods."""
    if isinstance(case, Attention):
        return {"FlexAttention": _dense()}
    return {"FlexAttention": _neighborhood(case, device)} if isinstance(case, Neighborhood) else {}


def _compiled() -> Callable:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _dense() -> Callable:
    compiled = _compiled()

    def run(q, k, v, bias=None, key_padding_mask=None):
        def with_bias(score, b, h, i, j):
            return score + bias[0, h, i, j]

        def masked(score, b, h, i, j):
            return torch.where(key_padding_mask[b, j], score, -float("inf"))

        score_mod = with_bias if bias is not None else masked if key_padding_mask is not None else None
        return compiled(q, k, v, score_mod=score_mod)

    return run


def _neighborhood(case: Neighborhood, device: torch.device) -> Callable:
    from torch.nn.attention.flex_attention import create_block_mask

    compiled, side, heads, kernel, dilation = _compiled(), case.side, case.heads, case.kernel, case.dilation

    def sees(b, h, i, j):
        rows, columns = (i // side, j // side), (i % side, j % side)
        inside = True
        for query, key in (rows, columns):
            step = key // dilation - start_of(query, side, kernel, dilation)
            inside = inside & (query % dilation == key % dilation) & (step >= 0) & (step < kernel)
        return inside

    @functools.cache
    def mask():
        return create_block_mask(sees, None, None, side**2, side**2, device=device)

    def run(qkv, table):
        def biased(score, b, h, i, j):
            dy = (j // side - i // side) // dilation + kernel - 1
            dx = (j % side - i % side) // dilation + kernel - 1
            return score + table[h, dy.clamp(0, 2 * kernel - 2), dx.clamp(0, 2 * kernel - 2)]

        q, k, v = qkv.flatten(1, 2).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = compiled(q, k, v, score_mod=biased, block_mask=mask())
        return out.transpose(1, 2).reshape(*qkv.shape[:3], -1)

    return run
