"""Finite differences of dense attention: of one tile up to 64 tokens, without causality or dropout, at equal head
counts; all others stream, in blocks of 16."""

from dataclasses import replace

import torch
from torch import Tensor

from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.proving.problem import normal, only
from vitkern.lab.specimens._attention import key_padding, random_mask
from vitkern.lab.specimens._attention_case import packed, problem


def _dropped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float) -> Tensor:
    """The formula with the operator's own mask: the zeros of its output where the values are one-hot. M = D."""
    from vitkern.ops.attention import attention

    one_hot = torch.eye(v.shape[2], dtype=v.dtype).expand(*v.shape[:2], -1, -1)
    kept = attention(q, k, one_hot, bias=bias, dropout_p=dropout_p).detach() != 0
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
    return scores.softmax(-1) * kept / (1 - dropout_p) @ v


def _tile() -> list[GradientCase]:
    short = problem("bias of the batch", (3, 1, 3, 2), keys=4, bias=(1, 1, 3, 4))
    each, column = "bias of each sample, two heads", "bias of a column for all keys"
    empty, lse = random_mask(2, 1, 5, 5, empty_row=True), dict(outputs=("out", "lse"), return_lse=True)
    added, padded = (lambda g: dict(mask=normal(g, 5, 5))), key_padding(2, 9)
    return [
        GradientCase(problem("N=5", (1, 1, 5, 2)), full=True, sample=True),
        GradientCase(short, full=True, ordered=True),
        GradientCase(problem("N=1 M=3", (1, 1, 1, 3), keys=3), full=True),
        GradientCase(problem(each, (2, 2, 5, 2), bias=(2, 1, 5, 5)), seeds=2, sample=True),
        GradientCase(problem("bias of each head, N=40", (3, 2, 40, 3), bias=(2, 40, 40)), seeds=2),
        GradientCase(problem("bias of a row for all queries", (2, 2, 6, 2), keys=7, bias=(2, 1, 7)), seeds=2),
        GradientCase(problem(column, (2, 1, 6, 2), keys=7, bias=(2, 1, 6, 1)), constant=("bias",)),
        GradientCase(problem("bias, bool mask, an empty row", (2, 1, 5, 2), bias=(5, 5), extra=empty), seeds=2),
        GradientCase(problem("additive mask, scale 0.7", (1, 2, 5, 3), scale=0.7, extra=added)),
        GradientCase(problem("key padding, log-sum-exp", (2, 1, 5, 2), keys=9, extra=padded, **lse), seeds=2),
        GradientCase(problem("q, k and v are one tensor", (1, 1, 5, 3)), full=True, tied=dict(k="q", v="q")),
        *(GradientCase(only(short, name)) for name in ("bias", "k")),
    ]


def _streaming() -> list[GradientCase]:
    def streaming(name, *arguments, **options):
        return problem(f"streaming, {name}", *arguments, **options)

    masked = dict(extra=random_mask(1, 1, 18, 34, empty_row=True), causal=True)
    padded = dict(extra=key_padding(2, 18), causal=True)
    biased = streaming("bias of the batch", (2, 1, 18, 2), bias=(1, 1, 18, 18), causal=True)
    dropped = streaming("dropout", (1, 2, 18, 18), bias=(1, 2, 18, 18), dropout_p=0.3)
    shared = streaming("two heads on one, N=18, bias", (1, 2, 18, 2), kv_heads=1, bias=(1, 2, 18, 18))
    row, each = "bias of a row, mask, an empty row", "bias of each sample, key padding"
    return [
        GradientCase(streaming("causal, N=5", (1, 1, 5, 2), causal=True), full=True),
        GradientCase(streaming("causal, N=17, head dim 1", (1, 1, 17, 1), causal=True), full=True),
        GradientCase(streaming("causal, N=20 M=36", (1, 1, 20, 2), keys=36, causal=True), seeds=2),
        GradientCase(streaming("causal, N=34 M=18", (1, 1, 34, 3), keys=18, causal=True)),
        GradientCase(streaming("N=3 M=70", (1, 1, 3, 2), keys=70), seeds=2, sample=True),
        GradientCase(streaming("head dim 34", (1, 1, 17, 34), keys=17)),
        GradientCase(streaming("four heads on two", (1, 4, 5, 2), kv_heads=2), seeds=2),
        GradientCase(shared),
        GradientCase(biased, seeds=2, ordered=True),
        GradientCase(only(biased, "bias")),
        GradientCase(only(biased, "q", "v")),
        GradientCase(streaming(row, (1, 1, 18, 2), keys=34, bias=(1, 1, 1, 34), **masked)),
        GradientCase(streaming(each, (2, 2, 3, 2), keys=18, bias=(2, 1, 3, 18), **padded)),
        GradientCase(replace(dropped, formula=_dropped), seeds=2),
        # no soft cap here: its tanh is exact to float32
        GradientCase(streaming("sinks", (1, 2, 5, 2), keys=18, sinks=True), seeds=2, sample=True),
        GradientCase(only(streaming("many keys", (1, 1, 3, 2), keys=50, causal=True), "q")),
        GradientCase(only(streaming("many queries", (1, 1, 50, 2), keys=16, causal=True), "k", "v")),
        GradientCase(streaming("values of another width", (1, 1, 5, 2), keys=6, width=3), full=True),
    ]


def _packed() -> list[GradientCase]:
    biased = packed("packed, streaming, causal, bias", 1, 18, 2, 2, bias=(2, 18, 18), causal=True)
    shared = packed("N=6, two heads, bias of the batch", 3, 6, 2, 3, bias=(1, 2, 6, 6))
    return [
        GradientCase(packed("N=4", 1, 4, 1, 2), full=True, sample=True),
        GradientCase(shared, seeds=2, sample=True),
        GradientCase(biased, seeds=2, ordered=True),
        GradientCase(only(biased, "bias")),
        GradientCase(packed("packed, sinks, causal", 1, 18, 2, 2, sinks=True, causal=True), seeds=2, sample=True),
    ]


GRADIENTS = (*_tile(), *_streaming(), *_packed())
