"""FlexAttention, compiled: the score of each layer as its ``score_mod``, its mask as a block mask."""

import functools
from collections.abc import Callable

import torch

from benchmarks.peers.windows import Partition, cosines, start_of
from vitkern.lab.compiling.layer import Layer
from vitkern.lab.proving.grouping import framed, heads_of


def peers_of(case: Layer, options: dict, device: torch.device) -> dict[str, Callable]:
    """FlexAttention for every layer that is softmax attention without gates."""
    match case.op:
        case "attention":
            run = _dense()
        case "window_attention":
            run = _windows(options, device)
        case "neighborhood_attention":
            run = _neighborhood(case, device)
        case "standalone_attention":
            run = _standalone(case, device)
        case _ if case.operator == "local_attention":
            run = _grouped(case)
        case _:
            return {}
    return {"FlexAttention": run}


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


def _neighborhood(case: Layer, device: torch.device) -> Callable:
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


def _windows(options: dict, device: torch.device) -> Callable:
    """On windows that were cut out of the rolled image: the table as a small bias, regions compared by number."""
    compiled, of = _compiled(), Partition(options, device)

    def run(qkv, table=None, padding=None, logit_scale=None):
        side = qkv.shape[1]
        q, k, v = of.windows(qkv, padding)
        bias = None if table is None else of.bias(table)
        of_query = of.regions(side) if of.shift[0] else None
        of_key = None if of_query is None else of_query.clone()  # one buffer may be indexed once

        def score_mod(score, b, h, i, j):
            score = score if bias is None else score + bias[h, i, j]
            if of_query is None:
                return score
            window = b % of_query.shape[0]
            return torch.where(of_query[window, i] == of_key[window, j], score, score - 100.0)

        q, k, scale = cosines(q, k, logit_scale)
        plain = bias is None and of_query is None
        return of.image(compiled(q, k, v, score_mod=None if plain else score_mod, scale=scale), side)

    return run


def _grouped(case: Layer) -> Callable:
    """On groups of queries with copies of their keys; what is added to a score is read where it belongs."""
    compiled = _compiled()

    def run(**tensors):
        of = case.groups(**tensors)
        bias, rows, columns = of.bias, of.rows, of.columns

        def with_bias(score, b, h, i, j):
            return score + bias[b % bias.shape[0], h % bias.shape[1], i % bias.shape[2], j]

        def relative(score, b, h, i, j):
            return score + rows[b, h, i, j // rows.shape[3]] + columns[b, h, i, j % rows.shape[3]]

        score_mod = relative if bias is None else with_bias
        return of.image(compiled(of.q, of.k, of.v, score_mod=score_mod, scale=case.scale))

    return run


def _standalone(case: Layer, device: torch.device) -> Callable:
    """On the image in its frame of zeros, with a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    compiled, side, kernel = _compiled(), case.side, case.kernel
    width = side + kernel - 1  # of the frame

    def steps(i, j):
        return j // width - i // side, j % width - i % side

    def sees(b, h, i, j):
        dy, dx = steps(i, j)
        return (dy >= 0) & (dy < kernel) & (dx >= 0) & (dx < kernel)

    @functools.cache
    def mask():
        return create_block_mask(sees, None, None, side**2, width**2, device=device)

    def run(qkv, rel_h, rel_w):
        q, k, v = heads_of(qkv, case.heads)
        q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in (q, framed(k, kernel // 2), framed(v, kernel // 2)))
        rows, columns = (
            torch.einsum("bhnd,hed->bhne", *pair) for pair in zip(q.chunk(2, -1), (rel_h, rel_w), strict=True)
        )

        def relative(score, b, h, i, j):
            dy, dx = (step.clamp(0, kernel - 1) for step in steps(i, j))
            return score + rows[b, h, i, dy] + columns[b, h, i, dx]

        out = compiled(q, k, v, score_mod=relative, block_mask=mask(), scale=case.scale)
        return out.transpose(1, 2).reshape(*qkv.shape[:3], -1)

    return run
